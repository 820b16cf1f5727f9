"""What a run shows: a bar with reward, solved, forwards, KL and time left, tables of completions, the closing lines."""

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from transformers.trainer_callback import ProgressCallback, TrainerControl, TrainerState

from stp_rs.progress import Bar, duration
from stp_rs.text import show
from stp_rs.train.alarms import alarm_names, best_and_last, score_line
from stp_rs.train.callbacks import RolloutCallback, table_of

if TYPE_CHECKING:
    from stp_rs.train.trainer import StepResult

_SILENT = 20
_SHOWN = 6
"""Completions of a table where num_completions_to_print says nothing."""


class Console(RolloutCallback, ProgressCallback):
    """Progress of one run on stderr; tables go above the bar, closing lines to stdout.

    Args:
        quiet: no bar and no tables.
        closes: whether the closing lines are its own at the end of training, not those of `finish`.
    """

    def __init__(self, *, quiet: bool = False, closes: bool = True) -> None:
        super().__init__()
        self.quiet, self.closes = quiet, closes
        self.bar: Bar | None = None
        self.begun = 0
        self.first = self.smooth = self.solved = self.nfe = self.kl = math.nan
        self.started = time.perf_counter()
        self.silent = 0

    def finish(self, summary: dict[str, Any], run: str) -> None:
        """Print the result of a task's run."""
        self._close()
        show(result_lines(summary, run))

    def on_sft(self, step: int, loss: float, total: int) -> None:
        """Show an update of the warm-up."""
        if step == 0 or self.bar is None:
            self._open("warm-up (SFT)", total)
        self._bar().update(1, {"loss": f"{loss:.3f}"})

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the bar of the updates."""
        self.first, self.started, self.begun = math.nan, time.perf_counter(), state.global_step
        self._open(f"RL ({args.preset})", state.max_steps - state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar to the step of the run; after a rollback that is a step back."""
        bar = self._bar()
        bar.update(state.global_step - self.begun - bar.done, self._readings())

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        """Keep the score of an evaluation for the bar."""
        self.solved = (metrics or {}).get("eval_solved", self.solved)

    def on_prediction_step(self, *_arguments: Any, **_: Any) -> None:
        """Show nothing: an evaluation is a batch of rollouts or two."""

    def on_predict(self, *_arguments: Any, **_: Any) -> None:
        """Show nothing."""

    def on_log(self, *_arguments: Any, **_: Any) -> None:
        """Show nothing: what is logged is in the bar and in metrics.jsonl."""

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End the bar, and say what came out."""
        self._close()
        if self.closes and state.is_world_process_zero:
            show(closing_lines(state, args, self.first, self.smooth, time.perf_counter() - self.started))

    def on_stop(self, args: Any, state: TrainerState, control: TrainerControl) -> None:
        """End the bar."""
        self._close()

    def on_alarm(self, args: Any, state: TrainerState, control: TrainerControl, message: str) -> None:
        """Show an alarm above the bar."""
        self._bar().note(message)

    def on_rollout_end(self, args: Any, state: TrainerState, control: TrainerControl, result: "StepResult") -> None:
        """Show reward and forwards, and now and then completions."""
        self.nfe = result.metrics["diffusion/nfe"]
        reward = result.metrics.get("reward", float("nan"))  # a batch that no function judged has none
        if not math.isnan(reward):
            self.first = reward if math.isnan(self.first) else self.first
            self.smooth = reward if math.isnan(self.smooth) else 0.9 * self.smooth + 0.1 * reward
        self.kl = result.metrics.get("kl", math.nan)
        self._bar().update(0, self._readings())
        self.silent = self.silent + 1 if result.metrics.get("frac_reward_zero_std", 1.0) == 1.0 else 0
        if self.silent == _SILENT:
            self._bar().note(
                f"step {result.step}: every group of the last {_SILENT} rollouts had equal rewards (reward "
                f"{reward:.3f}), so nothing is learned; if the reward is low the policy has collapsed: lower "
                "learning_rate or stp_negative_advantage_weight, or raise num_generations or temperature"
            )
        each = args.updates_per_rollout
        every = max(1, state.max_steps // each // 4)
        number = result.step // each
        if not args.log_completions and (number <= 1 or number % every == 0):
            shown = samples_table(result, args.num_completions_to_print or _SHOWN)
            self._bar().note(f"\nstep {result.step}: mean reward {reward:.3f}\n{shown}")

    def _readings(self) -> dict[str, str]:
        """Return the readings that there are; the reward is a running mean, solved that of the last evaluation."""
        values = {"reward": (self.smooth, ".3f"), "solved": (self.solved, ".3f")}
        values |= {"nfe": (self.nfe, ".1f"), "kl": (self.kl, ".2g")}
        found = {name: format(value, form) for name, (value, form) in values.items() if not math.isnan(value)}
        return found if "kl" in found or "nfe" not in found else {**found, "kl": "off"}

    def _open(self, label: str, steps: int) -> None:
        self._close()
        self.bar = Bar(steps, label, quiet=self.quiet)

    def _bar(self) -> Bar:
        return self.bar or Bar(0, "", quiet=True)  # outside `train` nothing is shown

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None


def best_and_worst(group_R: NDArray[np.int64], reward_R: Sequence[float], count: int) -> list[tuple[str, int]]:
    """Return (best or worst, row) of the first groups, at most `count` rows; one that no function judged is worst."""
    rewards = np.nan_to_num(np.asarray(reward_R, dtype=np.float64), nan=-np.inf)
    found = []
    for group in dict.fromkeys(group_R.tolist()):
        rows = np.flatnonzero(group_R == group)
        order = rows[np.argsort(-rewards[rows], kind="stable")]
        found += [("best", int(order[0]))] + ([("worst", int(order[-1]))] if len(order) > 1 else [])
    return found[:count]


def samples_table(result: "StepResult", count: int) -> str:
    """Return a table of the best and worst completion of several prompts, as wide as the terminal."""
    columns = result.table()
    rows = best_and_worst(result.rollout.group, result.rewards, count)
    prompts = [columns["prompt"][row] for _, row in rows]
    again = [i > 0 and prompt == prompts[i - 1] for i, prompt in enumerate(prompts)]
    shown: dict[str, list[Any]] = {
        "prompt": ["" if same else prompt for prompt, same in zip(prompts, again, strict=True)],
        "": [place for place, _ in rows],
    }
    others = {name: values for name, values in columns.items() if name not in ("step", "prompt")}
    for name, values in others.items():
        alone = name in result.rollout.rewards and len(result.rollout.rewards) == 1
        shown["reward" if alone else name] = [values[row] for _, row in rows]
    return table_of(shown, total=shutil.get_terminal_size((100, 24)).columns)


def closing_lines(state: TrainerState, args: Any, first: float, last: float, seconds: float) -> str:
    """Return the closing lines of a trainer's run: reward, forwards, time, and where the report is."""
    logged: Mapping[str, Any] = next((line for line in state.log_history[::-1] if "diffusion/nfe" in line), {})
    counts = [f"{name} {logged.get(f'diffusion/forwards_{name}', 0):,.0f}" for name in _FORWARDS]
    reward = "no reward" if math.isnan(first) else f"mean reward {first:.3f} -> {last:.3f}"
    return "\n".join(
        [
            "",
            f"{args.preset}: {reward} in {state.global_step} updates, {duration(seconds)}",
            f"forwards: {', '.join(counts)}; per completion {logged.get('diffusion/nfe', 0):.1f}",
            score_line(best_and_last(state.log_history), alarm_names(state.log_history)),
            f"report: {Path(str(args.output_dir)) / 'report.html'}",
        ]
    )


_FORWARDS = ("rollout", "likelihood", "backward")


def result_lines(summary: dict[str, Any], run: str) -> str:
    """Return the closing lines of a task's run."""
    forwards, seconds = summary["forwards"], summary["seconds"]
    nfe = summary["nfe_per_completion"]
    return "\n".join(
        [
            "",
            f"{summary['task']} / {summary['preset']}: solved {summary['solved_before']:.3f} -> "
            f"{summary['solved_after']:.3f} (with priors {summary['solved_after_prior']:.3f}) "
            f"on {summary['eval_size']} held-out problems, greedy",
            f"forwards: rollout {forwards['rollout']:,}, likelihood {forwards['likelihood']:,}, "
            f"backward {forwards['backward']:,}; per completion {nfe['training'] or 0:.1f} in training, "
            f"{nfe['free']:.1f} in free decode",
            f"seconds: warm-up {seconds['sft']:.0f}, RL {seconds['rl']:.0f} (rollout {seconds['rollout']:.0f}, update "
            f"{seconds['update']:.0f}), total {seconds['total']:.0f}",
            score_line(summary.get("score"), [alarm["alarm"] for alarm in summary.get("alarms", [])]),
            f"report: {run}/report.html",
        ]
    )
