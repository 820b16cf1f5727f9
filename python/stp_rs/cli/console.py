"""What a run shows in the terminal: a bar with reward, forwards and time left, and tables of completions."""

import math
import sys
from typing import Any

from tqdm import tqdm
from transformers.trainer_callback import TrainerControl, TrainerState

from stp_rs.cli.terminal import show
from stp_rs.config import TaskConfig
from stp_rs.train.callbacks import RolloutCallback, table_of
from stp_rs.train.trainer import StepResult

_SILENT = 20


class Console(RolloutCallback):
    """Progress of one run on stderr; tables go above the bar."""

    def __init__(self, config: TaskConfig, *, quiet: bool) -> None:
        self.config = config
        self.quiet = quiet
        self.bar: Any = None
        self.smooth = math.nan
        self.silent = 0

    def finish(self, summary: dict[str, Any]) -> None:
        """Close the bar and print the result."""
        if self.bar is not None:
            self.bar.close()
        show(result_lines(summary, str(self.config.output_dir)))

    def on_sft(self, _step: int, loss: float) -> None:
        """Show an update of the warm-up."""
        if self.bar is None:
            self._open("warm-up (SFT)", self.config.sft_steps)
        self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self.bar.update()

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the bar of the updates."""
        self._open(f"RL ({self.config.preset})", state.max_steps - state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        self.bar.update()

    def on_rollout_end(self, args: Any, state: TrainerState, control: TrainerControl, result: StepResult) -> None:
        """Show reward and forwards, and now and then completions."""
        reward = result.metrics.get("reward", float("nan"))  # a batch that no function judged has none
        if not math.isnan(reward):
            self.smooth = reward if math.isnan(self.smooth) else 0.9 * self.smooth + 0.1 * reward
        self.bar.set_postfix_str(f"reward {self.smooth:.3f}, nfe {result.metrics['diffusion/nfe']:.1f}", refresh=False)
        self.silent = self.silent + 1 if result.metrics.get("frac_reward_zero_std", 1.0) == 1.0 else 0
        if self.silent == _SILENT:
            self._say(
                f"step {result.step}: every group of the last {_SILENT} rollouts had equal rewards (reward "
                f"{reward:.3f}), so nothing is learned; if the reward is low the policy has collapsed: lower "
                "learning_rate or stp_negative_advantage_weight, or raise num_generations or temperature"
            )
        shown, each = self.config.num_completions_to_print, self.config.updates_per_rollout
        every = max(1, state.max_steps // each // 4)
        number = result.step // each
        if shown and not self.config.log_completions and (number <= 1 or number % every == 0):
            columns = {name: values[:shown] for name, values in result.table().items() if name != "step"}
            self._say(f"\nstep {result.step}: mean reward {reward:.3f}\n{table_of(columns)}")

    def _open(self, label: str, steps: int) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = tqdm(
            total=steps,
            desc=label,
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.3,
            disable=self.quiet,
        )

    def _say(self, text: str) -> None:
        if not self.quiet:
            tqdm.write(text, file=sys.stderr)


def result_lines(summary: dict[str, Any], run: str) -> str:
    """Return the closing lines of a run."""
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
            f"report: {run}/report.html",
        ]
    )
