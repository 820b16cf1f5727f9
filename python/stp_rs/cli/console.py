"""What a run shows in the terminal: a bar with reward, forwards and time left, and tables of completions."""

import math
import sys
from typing import Any

from tqdm import tqdm

from stp_rs.cli.run import Events
from stp_rs.cli.terminal import show
from stp_rs.config.sections import STPConfig
from stp_rs.text import table
from stp_rs.train.trainer import StepResult

_SILENT_STEPS = 20


class Console:
    """Progress of one run on stderr; tables go above the bar."""

    def __init__(self, config: STPConfig, *, quiet: bool) -> None:
        self.config = config
        self.quiet = quiet
        self.bar: Any = None
        self.smooth = math.nan
        self.silent = 0

    def events(self) -> Events:
        """Return the callbacks for `run_training`."""
        return Events() if self.quiet else Events(self._phase, self._sft, self._step)

    def finish(self, summary: dict[str, Any]) -> None:
        """Close the bar and print the result."""
        if self.bar is not None:
            self.bar.close()
        show(result_lines(summary, self.config.output_dir))

    def _phase(self, name: str, steps: int) -> None:
        if self.bar is not None:
            self.bar.close()
        label = {"sft": "warm-up (SFT)", "rl": f"RL ({self.config.preset})"}[name]
        self.bar = tqdm(total=steps, desc=label, unit="step", file=sys.stderr, dynamic_ncols=True, mininterval=0.3)

    def _sft(self, _step: int, loss: float) -> None:
        self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self.bar.update()

    def _step(self, result: StepResult) -> None:
        reward = result.metrics.get("reward", float("nan"))  # a batch that no function judged has none
        if not math.isnan(reward):
            self.smooth = reward if math.isnan(self.smooth) else 0.9 * self.smooth + 0.1 * reward
        self.bar.set_postfix_str(f"reward {self.smooth:.3f}, nfe {result.metrics['diffusion/nfe']:.1f}", refresh=False)
        self.bar.update()
        self.silent = self.silent + 1 if result.metrics.get("frac_reward_zero_std", 1.0) == 1.0 else 0
        if self.silent == _SILENT_STEPS:
            tqdm.write(
                f"step {result.step}: every group of the last {_SILENT_STEPS} steps had equal rewards (reward "
                f"{reward:.3f}), so nothing is learned; if the reward is low the policy has collapsed: lower "
                "learning_rate or stp_negative_advantage_weight, or raise num_generations or temperature",
                file=sys.stderr,
            )
        shown = self.config.num_completions_to_print
        every = max(1, self.config.max_steps // 4)
        if shown and (result.step == 1 or result.step % every == 0):
            prompts = [str(row["prompt"]) for row in result.rollout.prompts.rows]
            cells = zip(prompts[:shown], result.completions, (f"{r:.3f}" for r in result.rewards), strict=False)
            samples = table(("prompt", "completion", "reward"), list(cells))
            tqdm.write(f"\nstep {result.step}: mean reward {reward:.3f}\n{samples}", file=sys.stderr)


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
