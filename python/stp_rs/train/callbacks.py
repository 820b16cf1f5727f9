"""Callbacks of ours: the metrics file, a log at the last step, printed and stored completions.

Each is transformers' TrainerCallback; trackers (tensorboard, wandb, trackio, mlflow) are transformers' own.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy

from stp_rs.text import LONE_SURROGATE, shown, table
from stp_rs.train.checkpoint import atomic_file
from stp_rs.train.metrics import lines_until

if TYPE_CHECKING:
    from stp_rs.train.trainer import StepResult


class RolloutCallback(TrainerCallback):
    """A callback that hears of each rollout batch too."""

    def on_rollout_end(self, args: Any, state: TrainerState, control: TrainerControl, result: "StepResult") -> None:
        """Hear of a batch after its updates."""

    def on_stop(self, args: Any, state: TrainerState, control: TrainerControl) -> None:
        """Hear that training ends before its end: an error, or Ctrl-C."""

    def on_alarm(self, args: Any, state: TrainerState, control: TrainerControl, message: str) -> None:
        """Hear of an alarm, and what follows it."""


class LastLog(TrainerCallback):
    """Logs at the last update, so that no update is in no line."""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a log."""
        if state.global_step >= state.max_steps and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True


class MetricsFile(TrainerCallback):
    """`metrics.jsonl` of a run: one flushed line per log; a resume drops the lines after its checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the lines up to the step that training goes on from."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = lines_until(self.path, state.global_step) if state.global_step else []
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        """Append a line; the summary of the whole training is none of a step."""
        numbers = {k: v for k, v in (logs or {}).items() if not isinstance(v, float) or math.isfinite(v)}
        if not self.path.parent.is_dir() or "train_runtime" in numbers:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **numbers}) + "\n")


class Completions(RolloutCallback):
    """Prints and stores the completions of the rollout batches that are logged (`log_completions`).

    A file has TRL's columns: step, prompt, completion, one per reward function, advantage; and those that reward
    functions gave with `log_extra`.
    """

    def __init__(self) -> None:
        self._logged = 0

    def on_rollout_end(self, args: Any, state: TrainerState, control: TrainerControl, result: "StepResult") -> None:
        """Print and store, where a log fell into the updates of this batch."""
        every = max(1, int(state.logging_steps))
        if state.global_step // every == self._logged // every and state.global_step < state.max_steps:
            return
        self._logged = state.global_step
        columns = result.table()
        store_columns(Path(args.output_dir) / "completions" / f"completions_{state.global_step:05d}", columns)
        kept = list(range(len(columns["prompt"])))
        if args.log_unique_prompts:
            kept = list({str(prompt): i for i, prompt in reversed(list(enumerate(columns["prompt"])))}.values())[::-1]
        kept = kept[: args.num_completions_to_print]
        if state.is_world_process_zero:
            shown = {name: [values[i] for i in kept] for name, values in columns.items() if name != "step"}
            tqdm.write(f"\nstep {state.global_step}\n{table_of(shown)}")


def store_columns(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    """Write columns to `path`.parquet where pyarrow is installed, else as JSON lines; return the file.

    Whatever stands in them has a place: half characters are U+FFFD, NaN is null, and what neither format knows is text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = {str(_cell(name)): [_cell(value) for value in values] for name, values in columns.items()}
    try:
        import pyarrow
        import pyarrow.parquet as files
    except ImportError:
        rows = [dict(zip(cells, values, strict=True)) for values in zip(*cells.values(), strict=True)]
        with atomic_file(path.with_suffix(".jsonl")) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path.with_suffix(".jsonl")

    def column(values: list[Any]) -> Any:
        try:
            return pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError):  # of several kinds
            return pyarrow.array([v if v is None or isinstance(v, str) else json.dumps(v) for v in values])

    with atomic_file(path.with_suffix(".parquet")) as temporary:
        files.write_table(pyarrow.table({name: column(values) for name, values in cells.items()}), temporary)
    return path.with_suffix(".parquet")


def _cell(value: Any) -> Any:
    """Return a value as JSON and parquet have it."""
    if isinstance(value, Mapping):
        return {str(_cell(key)): _cell(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_cell(inner) for inner in value]
    if isinstance(value, np.generic | torch.Tensor | np.ndarray):
        return _cell(value.tolist())
    if isinstance(value, str):
        return LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int) else _cell(shown(value))


def table_of(columns: Mapping[str, Sequence[Any]], *, total: int | None = None) -> str:
    """Return columns as a plain table, at most `total` wide."""
    cells = [[f"{v:.3f}" if isinstance(v, float) else _said(v) for v in values] for values in columns.values()]
    return table(list(columns), list(zip(*cells, strict=True)), total=total)


def _said(value: Any) -> str:
    """Return a text, or the last message of a conversation."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        return str(value[-1].get("content"))
    return str(value)
