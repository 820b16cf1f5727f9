"""Rollout batches kept for the viewer: what was decoded, when, for what reward, and the same rows unpruned beside it.

In `rollouts/` of a run: `step-N.safetensors` is the record of a batch; `step-N.unpruned.safetensors` that of some of
its rows decoded again without priors and temporal pruning, from the same prompts and random numbers; `step-N.json`,
written last, says which rows, which are right, and what the tokens read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from transformers.trainer_callback import TrainerControl, TrainerState

from stp_rs.config import STPConfig
from stp_rs.data.trajectories import Rollout
from stp_rs.distributed import is_main
from stp_rs.errors import CheckpointError
from stp_rs.models.base import DiffusionModel, autocast, device_of
from stp_rs.objective.masks import canvas_lengths
from stp_rs.rollout.generate import generate
from stp_rs.rollout.loop import Batching
from stp_rs.rollout.params import make_unmasking, sampling_law
from stp_rs.rollout.rewards import Rewards, completion_token_ids, decode_completions
from stp_rs.text import inert
from stp_rs.train.callbacks import RolloutCallback
from stp_rs.train.checkpoint import atomic_file, write_json
from stp_rs.types import Mark, StopReason

if TYPE_CHECKING:
    from stp_rs.train.trainer import StepResult

FOLDER = "rollouts"
GROUPS = 3
"""Groups of a kept batch whose best, median and worst completion are shown, and decoded unpruned."""
_STOPS = {
    StopReason.PLAN: "its plan",
    StopReason.TEMPORAL: "committing the rest at once",
    StopReason.MAX_NFE: "the budget of forwards",
    StopReason.PRIOR: "nothing to decode",
    StopReason.EOS: "the end of the text",
}


class Keeper:
    """Keeps rollout batches of a run: the first, the last, and one every `stp_keep_rollouts` steps.

    Without a task nothing says what is right, and the unpruned rows are not scored: rewards of one's own may cost.
    """

    def __init__(
        self, run: Path, model: DiffusionModel, tokenizer: Any, task: Any, config: STPConfig, rewards: Rewards
    ) -> None:
        self.folder, self.model, self.tokenizer, self.task = run / FOLDER, model, tokenizer, task
        self.config, self.rewards, self.seen = config, rewards, 0

    def __call__(self, result: "StepResult", last: int | None = None) -> None:
        """Write the files of a step if it is due; `last` is the run's last step, by default the configured one."""
        last = self.config.max_steps if last is None else last
        every, first = (self.config.stp_keep_rollouts or 0) * self.config.updates_per_rollout, self.seen == 0
        due = first or result.step // max(1, every) > self.seen // max(1, every) or result.step == last
        self.seen = result.step
        if not (every and due):
            return
        shown = shown_rows(result.rollout.group, result.rewards)
        rows = [row for _, row in shown]
        chosen, twin = (
            result.rollout.select(rows),
            self._judged(unpruned(self.model, result.rollout, rows, self.config)),
        )
        if not is_main():  # every process decodes: the weights may be shared out among them
            return
        ids = np.unique(np.concatenate([part.ravel() for r in (chosen, twin) for part in (r.prompt_ids, r.token_ids)]))
        self._save(f"step-{result.step:06d}.safetensors", self._judged(result.rollout))
        self._save(f"step-{result.step:06d}.unpruned.safetensors", twin)
        notes = {
            "step": result.step,
            "shown": shown,
            "solved": [self._solved(rollout) for rollout in (chosen, twin)],
            "texts": {str(token): self.tokenizer.decode([token]) for token in ids.tolist()},
        }
        write_json(self.folder / f"step-{result.step:06d}.json", notes)

    def _save(self, name: str, rollout: Rollout) -> None:
        with atomic_file(self.folder / name) as temporary:
            rollout.save(temporary)

    def _judged(self, rollout: Rollout) -> Rollout:
        if rollout.rewards or self.task is None:
            return rollout
        ids = completion_token_ids(rollout.token_ids, canvas_lengths(rollout.unmask_step), self.tokenizer)
        scores = self.rewards.score(self._texts(rollout), rollout.prompts.rows, ids)
        return replace(rollout, reward=scores.total, rewards=scores.by_name)

    def _solved(self, rollout: Rollout) -> list[bool | None]:
        if self.task is None:
            return [None] * len(rollout)
        rows = [dict(row) for row in rollout.prompts.rows]
        return [score >= 1 for score in self.task.score(self._texts(rollout), rows)["solved"]]

    def _texts(self, rollout: Rollout) -> list[str]:
        lengths = (rollout.unmask_step != Mark.OUTSIDE).sum(1)
        return decode_completions(rollout.token_ids, lengths, self.tokenizer)


class KeptRollouts(RolloutCallback):
    """Keeps rollout batches for the viewer."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper

    def on_rollout_end(self, args: Any, state: TrainerState, control: TrainerControl, result: "StepResult") -> None:
        """Keep the batch where it is due."""
        del args, control
        self.keeper(result, state.max_steps)


def unpruned(model: DiffusionModel, rollout: Rollout, rows: Sequence[int], config: STPConfig) -> Rollout:
    """Return rows of a rollout decoded again from the same prompts and keys, without priors and temporal pruning.

    The policy's own weights make the passes, all of them, whatever the rollouts' precision and cache are.
    """
    with autocast(device_of(model), config.bf16):
        return generate(
            model,
            rollout.prompts.select(rows),
            make_unmasking(config, prune=False),
            completion_length=rollout.token_ids.shape[1],
            sampling=sampling_law(config),
            seed=config.seed,
            slots=config.stp_slots,
            batching=Batching(config.stp_max_tokens or 0),
        )


def shown_rows(group_R: NDArray[np.int64], reward_R: Sequence[float]) -> list[tuple[str, int]]:
    """Return (place, row) of the best, median and worst completion of the first `GROUPS` groups."""
    found = []
    rewards = np.nan_to_num(np.asarray(reward_R, dtype=np.float64), nan=-np.inf)
    for group in dict.fromkeys(group_R.tolist()):
        order = np.flatnonzero(group_R == group)
        order = order[np.argsort(-rewards[order], kind="stable")]
        places = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
        found.append([(place, int(order[i])) for place, i in places.items() if place == "best" or i > 0])
    return [pair for rows in found[:GROUPS] for pair in rows]


def kept_files(run: Path) -> list[Path]:
    """Return the notes of a run's kept batches, by step."""
    return sorted((run / FOLDER).glob("step-*.json"))


def read_scenes(path: Path) -> dict[str, Any]:
    """Return a kept batch as plain values: its step, and a scene for each row that has an unpruned twin.

    Texts are inert: every control character in them is an escape.

    Raises:
        CheckpointError: a file is not there, or is not such a file.
    """
    batch, twin = (Rollout.load(path.with_suffix(suffix)) for suffix in (".safetensors", ".unpruned.safetensors"))
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
        texts = {int(token): inert(text) for token, text in notes["texts"].items()}
        rows = [row for _, row in notes["shown"]]
        pruned, free = (_decodes(r, texts, s) for r, s in zip((batch.select(rows), twin), notes["solved"], strict=True))
        scenes = [
            {
                "place": place,
                "group": int(batch.group[row]),
                "prompt": _prompt(batch, row, texts),
                "pruned": p,
                "unpruned": u,
            }
            for (place, row), p, u in zip(notes["shown"], pruned, free, strict=True)
        ]
        return {"step": int(notes["step"]), "scenes": scenes}
    except (OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as a kept rollout: {error}") from error


def _prompt(batch: Rollout, row: int, texts: Mapping[int, str]) -> str:
    return "".join(texts[i] for i in batch.prompt_ids[row, : batch.prompt_length[row]].tolist())


def _decodes(rollout: Rollout, texts: Mapping[int, str], solved: Sequence[bool | None]) -> list[dict[str, Any]]:
    """Return each completion: tokens with the step and log-prob of each, forwards, rewards, and how it ended."""
    found = []
    for row, step_L in enumerate(rollout.unmask_step):
        inside_L = step_L != Mark.OUTSIDE
        stop = StopReason(int(rollout.stop_reason[row]))
        found.append(
            {
                "tokens": [texts[i] for i in rollout.token_ids[row, inside_L].tolist()],
                "steps": step_L[inside_L].tolist(),
                "logprob": [_number(x) for x in rollout.logprob[row, inside_L]],
                "nfe": int(rollout.nfe[row]),
                "tail": int(step_L.max()) if stop in (StopReason.TEMPORAL, StopReason.MAX_NFE) else None,
                "stop": _STOPS[stop],
                "reward": None if rollout.reward is None else _number(rollout.reward[row]),
                "rewards": {inert(name): _number(values[row]) for name, values in rollout.rewards.items()},
                "solved": solved[row],
            }
        )
    return found


def _number(value: Any) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
