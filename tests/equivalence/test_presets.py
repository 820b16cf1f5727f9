"""Every preset against its published formula, written out token by token: same masks, same loss, same gradient.

The oracle shares nothing with the package but the masks: it evaluates each canvas alone and unpadded, computes
advantages from the rewards, and adds up the loss in the paper's own form. Both inner iterations are compared, so that
ratios leave 1.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stp_rs.config.limits import VISITED
from stp_rs.config.presets import PRESETS, PRUNINGS
from stp_rs.priors import Hint
from stp_rs.train import update as module
from stp_rs.train.estimates import Estimator
from tests.fixtures import LENGTH, tiny, tokenizer, trainer

OWN = {  # what these tests set for all: a step large enough for ratios to leave their clip range, one micro-batch
    "num_iterations": 2,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "learning_rate": 6e-2,
    "max_grad_norm": 0.0,
    "stp_blame_prior": True,
}


@dataclass
class Row:
    """One completion: its scores under the masks of an inner iteration, f[k] = {position: log-prob}."""

    advantage: float
    reward: float
    n: int
    weights: list[dict[int, float]]
    new: list[dict[int, Tensor]]
    old: list[dict[int, float]]
    ref: list[dict[int, float]]
    steps: int = 0
    """Steps of the whole rollout."""
    entropy: tuple[float, ...] = ()
    """Mean entropy of what each pass scores, before the update."""
    one_step: tuple[float, ...] = ()
    """Reward of each pass's greedy one-step completion."""

    def mean_score(self, which: str) -> dict[int, Any]:
        """Return each token's estimate: the weighted sum of its scores over passes."""
        total: dict[int, Any] = {}
        for weight, score in zip(self.weights, getattr(self, which), strict=True):
            for i, w in weight.items():
                total[i] = total.get(i, 0.0) + w * score[i]
        return total

    def token_logprob(self, which: str) -> dict[int, Any]:
        """Return the plain average over the passes that hide a token."""
        total: dict[int, Any] = {}
        count: dict[int, int] = {}
        for score in getattr(self, which):
            for i, value in score.items():
                total[i] = total.get(i, 0.0) + value
                count[i] = count.get(i, 0) + 1
        return {i: total[i] / count[i] for i in total}


def clip(ratio: Any, advantage: float, epsilon: float) -> Any:
    """Return PPO's clipped surrogate."""
    ratio = torch.as_tensor(ratio)
    return torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)


def k2(gap: Any) -> Any:
    return 0.5 * gap**2


def k3(gap: Any) -> Any:
    return torch.exp(-torch.as_tensor(gap)) - 1 + gap


def token_ratio(rows: list[Row], epsilon: float, beta: float) -> Any:
    """GRPO on token estimates: mean over completions of the mean over tokens."""
    loss: Any = 0.0
    for row in rows:
        new, old = row.mean_score("new"), row.mean_score("old")
        ref = row.mean_score("ref") if beta else new
        for i, value in new.items():
            loss = loss - clip(torch.exp(value - old[i]), row.advantage, epsilon) / row.n / len(rows)
            if beta:
                loss = loss + beta * k3(value - ref[i]) / row.n / len(rows)
    return loss


def masked_mean(rows: list[Row], divisor: Callable[[Row], float]) -> Any:
    """UniGRPO, STP: token ratios of plain log-probs, over masked tokens only; `divisor` says what the mean is over."""
    loss: Any = 0.0
    for row in rows:
        new, old, ref = (row.token_logprob(which) for which in ("new", "old", "ref"))
        for i, value in new.items():
            times = sum(i in score for score in row.new)
            term = -clip(torch.exp(value - old[i]), row.advantage, 0.2) + 0.04 * k3(value - ref[i])
            loss = loss + times * term / divisor(row) / len(rows)
    return loss


def merged_steps(rows: list[Row]) -> Any:
    """d2: token ratios of log-probs at the states where stretches of steps start, a mean over the batch's tokens."""
    tokens = sum(row.n for row in rows)
    loss: Any = 0.0
    for row in rows:
        new, old = row.token_logprob("new"), row.token_logprob("old")
        for i, value in new.items():
            loss = loss - clip(torch.exp(value - old[i]), row.advantage, 0.2) / tokens
    return loss


def visited(rows: list[Row]) -> Any:
    """Token ratios at visited states: a token's log-prob is its weighted mean over passes, its part its weight."""
    loss: Any = 0.0
    for row in rows:
        new, old = row.mean_score("new"), row.mean_score("old")
        for i, value in new.items():
            part = sum(weight.get(i, 0.0) for weight in row.weights)
            loss = loss - part * clip(torch.exp((value - old[i]) / part), row.advantage, 0.2) / len(rows)
    return loss


def sequence_ratio(rows: list[Row], beta: float = 0.0, negative: float = 1.0) -> Any:
    """ESPO, GDPO, STP: one ratio exp((L_new - L_old) / n) per completion, k2 on the same scale."""
    loss: Any = 0.0
    for row in rows:
        gap = sum(row.mean_score("new").values()) - sum(row.mean_score("old").values())
        weight = negative if row.advantage < 0 else 1.0
        loss = loss - weight * clip(torch.exp(gap / row.n), row.advantage, 0.2) / len(rows)
        if beta:
            apart = sum(row.mean_score("new").values()) - sum(row.mean_score("ref").values())
            loss = loss + beta * k2(apart / row.n) / len(rows)
    return loss


def bound(row: Row, which: str) -> Any:
    """SPG: the mean CE over masked tokens where A > 0, else half of it and half of the upper bound, beta 1.5."""
    passes = getattr(row, which)
    elbo: Any = sum(sum(score.values()) / len(score) for score in passes) / len(passes)
    if row.advantage > 0:
        return elbo
    eubo: Any = 0.0
    for i in sorted({i for score in passes for i in score}):
        inside: Any = 0.0
        for score in passes:
            if i in score:
                share = len(score) / row.n
                inside = inside + torch.exp(torch.as_tensor(1.5 * score[i])) / share / len(passes)
        eubo = eubo + torch.log(inside) / 1.5 / row.n
    return 0.5 * elbo + 0.5 * eubo


def spg(rows: list[Row]) -> Any:
    """SPG: -A times the bound, completions weighted by their length."""
    tokens = sum(row.n for row in rows)
    return -sum(row.advantage * bound(row, "new") * row.n / tokens for row in rows)


def stable_drl(rows: list[Row]) -> Any:
    """StableDRL on SPG's bounds: weights clipped whatever the sign, divided by their sum over trained completions."""
    used = [row for row in rows if row.advantage != 0]
    weights = []
    for row in used:
        gap = float(bound(row, "new").detach()) - float(bound(row, "old"))
        weights.append(min(max(math.exp(gap), 0.8), 1.2))
    total: Any = 0.0
    for row, weight in zip(used, weights, strict=True):
        total = total - weight * row.advantage * bound(row, "new")
    return total / sum(weights) * len(used) / len(rows)


def wd1(rows: list[Row]) -> Any:
    """wd1: minus the softmax(A)-weighted likelihood plus the softmax(-A)-weighted one, a mean over groups."""
    loss: Any = 0.0
    groups = [rows[start : start + 4] for start in range(0, len(rows), 4)]
    for group in groups:
        centred = [row.reward - sum(r.reward for r in group) / len(group) for row in group]
        if max(centred) == min(centred):
            continue
        up, down = sum(map(math.exp, centred)), sum(math.exp(-c) for c in centred)
        for row, c in zip(group, centred, strict=True):
            likelihood = sum(row.mean_score("new").values()) / row.n
            loss = loss - (math.exp(c) / up - math.exp(-c) / down) * likelihood / len(groups)
    return loss


def bgpo(rows: list[Row]) -> Any:
    """BGPO: a bound that is linear in the passes: 1 + d where A >= 0, exp(d) elsewhere."""
    loss: Any = 0.0
    for row in rows:
        k = len(row.new)
        for weight, new, old in zip(row.weights, row.new, row.old, strict=True):
            gap: Any = sum(k * w * (new[i] - old[i]) for i, w in weight.items()) / row.n
            inside = 1 + gap if row.advantage >= 0 else torch.exp(torch.as_tensor(gap))
            loss = loss - inside * row.advantage / k / len(rows)
    return loss


def egspo(rows: list[Row], lam: float = 0.0) -> Any:
    """EGSPO: a ratio per state, of all tokens revealed there; mean over states, per token that a step reveals; k3.

    With lambda a state's return is (R + lambda (R - r)) / (1 + lambda), centred within the group by rank of entropy.
    """
    returns: dict[int, list[float]] = {}
    for place, row in enumerate(rows):
        ranked = sorted(range(len(row.new)), key=lambda k: (-row.entropy[k], k))
        returns[place] = [(row.reward + lam * (row.reward - row.one_step[k])) / (1 + lam) for k in ranked]
    loss: Any = 0.0
    for place, row in enumerate(rows):
        group = [place // 4 * 4 + j for j in range(4)]
        ranked = sorted(range(len(row.new)), key=lambda k: (-row.entropy[k], k))
        for rank, k in enumerate(ranked):
            others = [returns[j][rank] for j in group if rank < len(returns[j])]
            advantage = returns[place][rank] - sum(others) / len(others)
            gap = sum(row.new[k].values()) - sum(row.old[k].values())
            apart = sum(row.new[k].values()) - sum(row.ref[k].values())
            high = torch.exp(torch.as_tensor(gap)).clamp(0.8, 1.5)
            term = -torch.minimum(torch.exp(torch.as_tensor(gap)) * advantage, high * advantage) + 0.04 * k3(apart)
            loss = loss + term / len(row.new) / (row.n / row.steps) / len(rows)
    return loss


def gdsd(rows: list[Row]) -> Any:
    """GDSD: the clamped change of the masked tokens' log-prob, over n, is drawn to the advantage; k2 as in ESPO."""
    loss: Any = 0.0
    for row in rows:
        gap = sum(row.new[0].values()) - sum(row.old[0].values())
        held = torch.as_tensor(gap).clamp(math.log(1 - 4e-4), math.log(1 + 4e-4))
        apart = sum(row.new[0].values()) - sum(row.ref[0].values())
        loss = loss + ((held / row.n - row.advantage) ** 2 + 0.001 * k2(apart / row.n)) / len(rows)
    return loss


FORMULAS: dict[str, tuple[str, Callable[[list[Row]], Any]]] = {
    "stp": ("z", visited),
    "stp_spread": ("z", lambda rows: sequence_ratio(rows, negative=0.2)),
    "d2_stepmerge": ("z", merged_steps),
    "egspo": ("mean", egspo),
    "egspo_sa": ("mean", lambda rows: egspo(rows, 0.5)),
    "gdsd": ("loo", gdsd),
    "rldf": ("z", visited),
    "stp_canvas": ("z", visited),
    "stp_mix": ("z", visited),
    "stp_decision": ("z", lambda rows: token_ratio(rows, 0.2, 0.0)),
    "elbo": ("z", lambda rows: sequence_ratio(rows, negative=0.2)),
    "grpo": ("z", lambda rows: token_ratio(rows, 0.2, 0.0)),
    "diffu_grpo": ("mean", lambda rows: token_ratio(rows, 0.5, 0.04)),
    "unigrpo": ("z", lambda rows: masked_mean(rows, lambda row: sum(len(score) for score in row.new))),
    "stp_paper": ("z", lambda rows: masked_mean(rows, lambda row: 3 * row.n)),
    "espo": ("loo", lambda rows: sequence_ratio(rows, beta=0.01)),
    "coupled_grpo": ("loo", lambda rows: token_ratio(rows, 0.5, 0.01)),
    "spg": ("mean", spg),
    "wd1": ("softmax", wd1),
    "cj_grpo": ("z", lambda rows: token_ratio(rows, 0.5, 0.04)),
    "trace": ("z", lambda rows: token_ratio(rows, 0.2, 0.01)),
    "just_grpo": ("z", lambda rows: token_ratio(rows, 0.2, 0.0)),
    "stable_drl": ("mean", stable_drl),
    "bgpo": ("z", bgpo),
    "gdpo": ("mean", sequence_ratio),
    "igpo": ("z", lambda rows: token_ratio(rows, 0.5, 0.01)),
}


def advantages(rewards: list[float], kind: str) -> list[float]:
    """Return the advantages of groups of four neighbours."""
    out = []
    for start in range(0, len(rewards), 4):
        group = rewards[start : start + 4]
        mean = sum(group) / 4
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / 3)
        for r in group:
            others = (sum(group) - r) / 3
            up = math.exp(r - mean) / sum(math.exp(s - mean) for s in group)
            down = math.exp(mean - r) / sum(math.exp(mean - s) for s in group)
            values = {"z": (r - mean) / (std + 1e-4), "mean": r - mean, "loo": r - others, "softmax": 4 * (up - down)}
            out.append(values[kind] if std > 0 else 0.0)
    return out


def scores(model: Any, batch: Any, masks: Any, row: int) -> list[dict[int, Tensor]]:
    """Return f[k][i] of a completion: each canvas alone, without padding."""
    result = []
    for k in np.flatnonzero(masks.row_P == row):
        prompt = batch.prompt_ids[row, : batch.prompt_length[row]].tolist()
        if masks.prompt_PW is not None:
            prompt = [model.mask_token_id if masks.prompt_PW[k, p] else token for p, token in enumerate(prompt)]
        shown = np.where(masks.mask_PL[k] == 1, model.mask_token_id, batch.token_ids[row]).tolist()
        logits = model.head(model.hidden(torch.tensor([prompt + shown]), None)[0])
        legal = [v for v in range(logits.shape[-1]) if v != model.mask_token_id]
        at = {
            int(i): logits[len(prompt) + i, batch.token_ids[row, i]]
            - torch.logsumexp(logits[len(prompt) + i, legal], 0)
            for i in np.flatnonzero(masks.weight_PL[k])
        }
        result.append(at)
    return result


def state_facts(model: Any, batch: Any, masks: Any, row: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return, by pass of a completion, the mean entropy of what it scores and the reward of its one-step completion."""
    entropies, rewards = [], []
    for k in np.flatnonzero(masks.row_P == row):
        prompt = batch.prompt_ids[row, : batch.prompt_length[row]].tolist()
        shown = np.where(masks.mask_PL[k] == 1, model.mask_token_id, batch.token_ids[row])
        with torch.no_grad():
            logits = model.head(model.hidden(torch.tensor([prompt + shown.tolist()]), None)[0])[len(prompt) :]
        logits[:, model.mask_token_id] = -1e30
        law = torch.distributions.Categorical(logits=logits.double())
        entropies.append(float(law.entropy()[torch.from_numpy(masks.weight_PL[k] > 0)].mean()))
        ids = torch.where(torch.from_numpy(masks.mask_PL[k] == 1), logits.argmax(-1), torch.from_numpy(shown)).tolist()
        end = ids.index(tokenizer().eos_token_id) if tokenizer().eos_token_id in ids else len(ids)
        text = tokenizer().decode(ids[:end], skip_special_tokens=True)
        rewards.append(text.count("1") / LENGTH + (int(k) % 3) / 10)
    return tuple(entropies), tuple(rewards)


@contextmanager
def watched(made: Any) -> Iterator[dict[str, list[Any]]]:
    """Record the masks, batches, losses, parameters and gradients of every update."""
    seen: dict[str, list[Any]] = {"jobs": [], "loss": [], "weights": [], "gradients": []}
    planned, loss = Estimator.planned, module.policy_loss

    def keep_planned(*args: Any, **kwargs: Any) -> Any:
        parts = planned(*args, **kwargs)
        seen["jobs"].extend(parts)
        return parts

    def keep_loss(*args: Any, **kwargs: Any) -> Any:
        seen["loss"].append(loss(*args, **kwargs))
        return seen["loss"][-1]

    def keep_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = list(made.model.parameters())
        seen["weights"].append(copy.deepcopy(made.model.state_dict()))
        seen["gradients"].append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])

    handle = made.optimizer.register_step_pre_hook(keep_step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Estimator, "planned", keep_planned)
        patch.setattr(module, "policy_loss", keep_loss)
        yield seen
    handle.remove()


def graded(completions: list[str], **_: Any) -> list[float]:
    """Reward ones, and tell most completions of a group apart."""
    return [text.count("1") / LENGTH + (i % 3) / 10 for i, text in enumerate(completions)]


# Every pruning of every preset, and once the other way to the same gradient.
CASES = [(preset, pruning, False) for preset in PRESETS for pruning in ("own", *PRUNINGS)]
CASES += [(preset, "scored", False) for preset, chosen in PRESETS.items() if chosen["stp_design"] not in VISITED]
CASES += [(preset, "own", True) for preset in PRESETS]


@pytest.mark.parametrize(("preset", "pruning", "constant"), CASES)
def test_loss_and_gradient_are_the_published_formula(preset: str, pruning: str, constant: bool, tmp_path: Path):
    pruning = PRESETS[preset].get("pruning", "none") if pruning == "own" else pruning
    options = {"num_mc": min(4, PRESETS[preset]["num_mc"]), "stp_constant_memory": constant, **OWN}
    if pruning == "scored":
        pruning, options = "stp", {**options, "stp_score_prior": True}
    hints = [Hint(lambda _row: "1" * LENGTH, tokenizer(), when="all_wrong")] if preset == "igpo" else []
    made = trainer(tmp_path, tiny(seed=3), graded, preset=preset, pruning=pruning, priors=hints, **options)
    model, start = made.policy, copy.deepcopy(made.model.state_dict())
    with watched(made) as seen:
        step = made.train_step()
    rewards, uids = step.rewards, step.rollout.uid.tolist()
    kind, formula = FORMULAS[preset]
    expected = advantages(rewards, kind)
    assert len(seen["jobs"]) == len(seen["loss"]) == 2
    model.module.eval()
    for job, (loss, _), weights, gradients in zip(
        *(seen[k] for k in ("jobs", "loss", "weights", "gradients")), strict=True
    ):
        batch, masks = job.batch, job.masks
        model.module.load_state_dict(start)
        with torch.no_grad():
            before = [scores(model, batch, masks, row) for row in range(len(batch))]
            facts = [state_facts(model, batch, masks, row) for row in range(len(batch))]
        model.module.load_state_dict(weights)
        rows, kept = [], 0
        for place, advantage in enumerate(expected):
            if uids[place] not in batch.uid:  # equal rewards in its group: nothing to compute, but part of the mean
                rows.append(Row(0.0, rewards[place], len(batch.token_ids[0]), [], [], [], []))
                continue
            weight = [
                {int(i): float(masks.weight_PL[k, i]) for i in np.flatnonzero(masks.weight_PL[k])}
                for k in np.flatnonzero(masks.row_P == kept)
            ]
            old: Any = [{i: float(v) for i, v in score.items()} for score in before[kept]]
            new = scores(model, batch, masks, kept)
            n = int(masks.scored_RL[kept].sum())
            steps = len(set(batch.unmask_step[kept][batch.unmask_step[kept] >= 0].tolist()))
            rows.append(Row(advantage, rewards[place], n, weight, new, old, old, steps, *facts[kept]))
            kept += 1
        total = formula(rows)
        got = torch.autograd.grad(total, list(model.module.parameters()), allow_unused=True)
        assert float(loss.detach()) == pytest.approx(float(total.detach()), abs=2e-5)
        for name, left, right in zip(dict(model.module.named_parameters()), gradients, got, strict=True):
            right = torch.zeros_like(left) if right is None else right
            assert torch.allclose(left, right, atol=2e-5, rtol=2e-3), name
    assert any(float(g.abs().max()) > 1e-3 for g in seen["gradients"][0])
    if seen["jobs"][1].old is not None:
        assert abs(seen["loss"][1][1]["diffusion/ratio_max"] - 1) > 1e-3, "the second iteration is off policy"


def test_every_preset_has_its_formula():
    assert set(FORMULAS) == set(PRESETS)
    assert tokenizer().mask_token_id == 1
