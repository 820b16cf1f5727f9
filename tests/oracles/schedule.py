"""Plans in plain Python: quotas from their published formulas, pruning as list surgery."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stp_rs.types import Mark

QUOTAS = ("ceil_remaining", "llada", "dllm", "dream", "powers_of_two")


@dataclass(frozen=True)
class Options:
    """The arguments of `Unmasking`, by the same names."""

    diffusion_steps: int
    block_length: int = 0
    quota: str = "ceil_remaining"
    selection: str = "top_k"
    confidence: str = "prob"
    temporal: str = "none"
    max_nfe: int = 0


def quota(rule: str, n: int, left: int, step: int, steps: int) -> int:
    """Return the tokens of schedule step `step` (from 0) with `left` of `n` masks left; the last takes all."""
    if step >= steps - 1:
        return left
    if rule == "ceil_remaining":
        count = math.ceil(left / (steps - step))
    elif rule == "llada":
        count = n // steps + (step < n % steps)
    elif rule == "dllm":
        count = round(left / (steps - step))  # Python rounds half to even
    elif rule == "dream":
        times = [1 - (1 - 1e-3) * i / steps for i in range(steps + 1)]
        count = int(left * (1 - times[step + 1] / times[step]))
    else:
        count = 2**step
    return min(count, left)


def quotas(rule: str, n: int, steps: int) -> Iterator[int]:
    """Yield the reveals of an undisturbed decode, without the steps that would reveal nothing."""
    left = n
    for step in range(steps):
        count = quota(rule, n, left, step, steps)
        left -= count
        if count:
            yield count


def counts(reveals: Sequence[int]) -> list[int]:
    """Return the mask counts before each step."""
    return [sum(reveals[i:]) for i in range(len(reveals))]


def pruned_steps(n: int, length: int, steps: int) -> int:
    """Return the steps for n of length tokens at the same tokens per step."""
    return math.ceil(n * steps / length) if length else 0


def blocks(length: int, block_length: int) -> list[range]:
    """Return the completion positions of each block."""
    size = min(block_length, length) or length
    return [range(i, min(i + size, length)) for i in range(0, length, size)] if length else []


def block_steps(masked: int, block: int, length: int, steps: int) -> int:
    """Return the schedule steps of a block: its share of all steps, pruned to its masks."""
    return pruned_steps(masked, block, pruned_steps(block, length, steps))


def spatial_reveals(free: Sequence[int], options: Options) -> list[int]:
    """Return the reveals of a row whose free positions are marked 1, without temporal pruning."""
    out: list[int] = []
    for block in blocks(len(free), options.block_length):
        n = sum(free[p] for p in block)
        out += quotas(options.quota, n, block_steps(n, len(block), len(free), options.diffusion_steps))
    return out


def plan(free: Sequence[int], options: Options) -> list[int] | None:
    """Return the mask counts that a row follows; None where they depend on the model."""
    rule, *numbers = options.temporal.split(":")
    if options.selection != "top_k" or rule not in ("none", "fill_ratio", "steps"):
        return None
    reveals = spatial_reveals(free, options)
    filled = len(free) - sum(free)
    for step, count in enumerate(reveals):
        filled += count
        done = step + 1 == options.max_nfe
        done |= rule == "fill_ratio" and filled >= float(numbers[0]) * len(free) - 1e-4
        done |= rule == "steps" and step + 1 >= float(numbers[0]) * len(reveals) - 1e-4
        if done:
            return counts(reveals)[: step + 1]
    return counts(reveals)


def realised(unmask_step: Sequence[int]) -> list[int]:
    """Return the mask counts of the steps that revealed something."""
    steps = sorted({s for s in unmask_step if s >= 0})
    return [sum(s >= step for s in unmask_step) for step in steps]


def scored(unmask_step: Sequence[int], *, score_prior: bool, steps: int, rule: str = "ceil_remaining") -> list[int]:
    """Return the plan of the likelihood: the realised one, or the whole completion's with the row's temporal merge."""
    own = realised(unmask_step)
    if not score_prior:
        return own
    length = sum(s >= Mark.PRIOR for s in unmask_step)
    canvas = sum(s != Mark.OUTSIDE for s in unmask_step)
    whole = counts(list(quotas(rule, length, pruned_steps(length, canvas, steps))))
    if not own:
        return whole
    alone = counts(list(quotas(rule, own[0], pruned_steps(own[0], canvas, steps))))
    if own[-1] <= alone[-1]:  # its last step is an ordinary one: nothing was merged
        return whole
    share = math.ceil(length * own[-1] / own[0])
    small = [i for i, count in enumerate(whole) if count <= share]
    return whole[: small[0] + 1] if small else whole
