"""All trajectories of a table policy, one by one: the law of an unmasking and the policy gradient, as sums."""

import itertools
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from stp_rs.testing.tabular import TabularPolicy


@dataclass
class Trajectory:
    """What a rollout shows of itself: the tokens and the step that revealed each; probabilities keep their graph."""

    tokens: tuple[int, ...]
    steps: tuple[int, ...]
    probability: Tensor
    logprob: Tensor
    """Sum of the log-probs of the revealed tokens, each at its state."""


def trajectories(policy: TabularPolicy, reveals: list[int], kind: str, temperature: float = 1.0) -> list[Trajectory]:
    """Return every trajectory; those that differ only in what was sampled and not revealed are one.

    At each step a token is sampled at every masked position; then the positions of highest confidence are revealed.
    """
    length, mask = policy.length, policy.mask_token_id
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    states = {((mask,) * length, (-1,) * length): (one, zero)}
    for step, count in enumerate(reveals):
        grown: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Tensor]] = defaultdict(list)
        logprobs: dict[tuple[tuple[int, ...], tuple[int, ...]], Tensor] = {}
        for (tokens, steps), (probability, logprob) in states.items():
            table = policy.log_conditionals(torch.tensor([tokens]))[0]
            tempered = torch.log_softmax(table / temperature, -1)
            masked = [i for i, token in enumerate(tokens) if token == mask]
            for sampled in itertools.product(range(policy.vocab_size), repeat=len(masked)):
                drawn = dict(zip(masked, sampled, strict=True))
                chance = torch.stack([tempered[i, v] for i, v in drawn.items()]).sum().exp() * probability
                for share, chosen in choices(kind, table.detach(), drawn, count):
                    shown = tuple(drawn[i] if i in chosen else token for i, token in enumerate(tokens))
                    when = tuple(step if i in chosen else old for i, old in enumerate(steps))
                    grown[shown, when].append(chance * share)
                    logprobs[shown, when] = logprob + torch.stack([tempered[i, drawn[i]] for i in chosen]).sum()
        states = {key: (torch.stack(parts).sum(), logprobs[key]) for key, parts in grown.items()}
    return [Trajectory(*key, *value) for key, value in states.items()]


def choices(kind: str, table: Tensor, drawn: dict[int, int], count: int) -> list[tuple[float, tuple[int, ...]]]:
    """Return (probability, positions) of what a step reveals."""
    if kind == "random":
        subsets = list(itertools.combinations(drawn, count))
        return [(1 / len(subsets), subset) for subset in subsets]
    rank = {
        "prob": lambda i: table[i].max(),
        "sampled_prob": lambda i: table[i, drawn[i]],
        "margin": lambda i: table[i].exp().sort().values.diff()[-1],
        "entropy": lambda i: -torch.special.entr(table[i].exp()).sum(),
        "leftmost": lambda i: -i,
    }[kind]
    return [(1.0, tuple(sorted(sorted(drawn, key=lambda i: float(rank(i)), reverse=True)[:count])))]


def objective(found: list[Trajectory], rewards: dict[tuple[int, ...], float]) -> Tensor:
    """Return J: the expected reward."""
    return torch.stack([t.probability * rewards[t.tokens] for t in found]).sum()


def score_function(found: list[Trajectory], rewards: dict[tuple[int, ...], float], baseline: float) -> Tensor:
    """Return a scalar whose gradient is E[grad log pi * A], with A = reward - baseline."""
    return torch.stack([t.probability.detach() * t.logprob * (rewards[t.tokens] - baseline) for t in found]).sum()
