"""The greedy reduction as torch.compile makes it from plain tensor code, against ours on the same logits."""

import torch
from torch import Tensor

from benches.python.measure import MASK, Row, Timed, best, line
from stp_rs.rollout.logits import Reads, Reducer
from stp_rs.rollout.params import GREEDY

NOTHING = Reads(top2=False, entropy=False, argmax=False)


def few(logits_NV: Tensor) -> Tensor:
    """Return token and log-prob of the greedy law."""
    values_NV = _possible(logits_NV)
    max_N1, argmax_N1 = values_NV.max(-1, keepdim=True)
    top1_N = -(values_NV - max_N1).exp().sum(-1).log()
    return torch.stack([argmax_N1.squeeze(-1).float(), top1_N], dim=1)


def every(logits_NV: Tensor) -> Tensor:
    """Return token, log-prob, the second log-prob and the entropy."""
    values_NV = _possible(logits_NV)
    max_N1, argmax_N1 = values_NV.max(-1, keepdim=True)
    below_NV = values_NV - max_N1
    weight_NV = below_NV.exp()
    total_N = weight_NV.sum(-1)
    at_V = torch.arange(values_NV.shape[-1])
    second_N = torch.where(at_V == argmax_N1, -1e30, below_NV).amax(-1)
    entropy_N = total_N.log() - (weight_NV * below_NV).sum(-1) / total_N
    columns = (argmax_N1.squeeze(-1).float(), -total_N.log(), second_N - total_N.log(), entropy_N)
    return torch.stack(columns, dim=1)


def _possible(logits_NV: Tensor) -> Tensor:
    values_NV = logits_NV.clamp(min=-1e30)
    return torch.where(torch.arange(values_NV.shape[-1]) == MASK, -1e30, values_NV)


def rows() -> list[Row]:
    """Return rows for a small and a large vocabulary; compiling is not timed."""
    found = []
    for count, vocab in ((2048, 512), (128, 126_464)):
        logits = torch.randn((count, vocab), generator=torch.Generator().manual_seed(0)) * 3
        uniforms, out = torch.full((count,), 0.5), torch.empty(count, 7)
        for name, function, reads in (("token, log-prob", few, NOTHING), ("all numbers", every, Reads())):
            compiled, reducer = torch.compile(function, dynamic=False), Reducer(GREEDY, MASK)
            contestants: dict[str, Timed] = {
                "ours": lambda: lambda: reducer(logits, uniforms, out, None, reads),  # noqa: B023 - run at once
                "compiled": lambda: lambda: compiled(logits),  # noqa: B023
            }
            times = best(contestants, 12)
            shape = f"N={count} V={vocab} T=0, {name}"
            found.append(line("reduction", shape, times["ours"], "torch.compile", times["compiled"]))
    return found
