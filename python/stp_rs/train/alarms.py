"""Alarms: readings of training that have gone wrong for several rollout batches, and a score that has collapsed.

They read numbers that are logged anyway. What follows an alarm is the loop's (`stp_on_alarm`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stp_rs.config.arguments import STPConfig

ROLLBACKS = 8
"""Most rollbacks of a run: each halves the rate, and what still fails at 1/256 of it is no matter of the rate."""
SCORES = ("eval_solved", "eval_reward", "reward")
"""What a run is judged by: the first of these that it logs."""


@dataclass(frozen=True)
class Reading:
    """What an alarm reads: a metric, and on which side of its bound it is wrong."""

    metric: str
    above: bool
    said: str


READINGS: Mapping[str, Reading] = {
    "ratio": Reading("diffusion/ratio_max", True, "the largest ratio to the policy that drew the completions"),
    "kl": Reading("kl", True, "KL to the reference, nats"),
    "entropy": Reading("entropy", False, "entropy of a token, nats"),
    "distinct": Reading("diffusion/distinct", False, "distinct completions of a group"),
    "ended": Reading("completions/ended", False, "share of completions that end"),
    "equal": Reading("frac_reward_zero_std", True, "share of groups whose rewards are all equal"),
}
"""Alarms of rollout batches by the end of their option's name, `stp_alarm_NAME`."""
COLLAPSE = "collapse"
"""The alarm of evaluations: a score below a share of the best one."""


@dataclass(frozen=True)
class Alarm:
    """An alarm that went off."""

    name: str
    step: int
    value: float
    bound: float
    message: str
    fine: int
    """The last step at which its reading was right."""

    def record(self, action: str) -> dict[str, Any]:
        """Return it for a checkpoint and for summary.json, with what was done."""
        numbers = {"value": self.value, "bound": self.bound}
        known = {name: number for name, number in numbers.items() if math.isfinite(number)}
        return {"alarm": self.name, "step": self.step, **known, "action": action, "message": self.message}


@dataclass
class Alarms:
    """The alarms of a run, with what a checkpoint keeps of them.

    Args:
        args: the bounds (`stp_alarm_*`); a bound of None is no alarm.
    """

    args: "STPConfig"
    history: list[dict[str, Any]] = field(default_factory=list)
    """What went off, in order, also of what was rolled back."""
    rollbacks: int = 0
    wrong: dict[str, int] = field(default_factory=dict)
    """Rollout batches in a row whose reading was wrong."""
    fine: dict[str, int] = field(default_factory=dict)
    best: float = -math.inf
    """The best score of an evaluation."""

    def batch(self, metrics: Mapping[str, float], step: int) -> list[Alarm]:
        """Return the alarms that a rollout batch sets off: once each, until the reading is right again."""
        metrics = {**metrics, "completions/ended": 1.0 - metrics.get("completions/clipped_ratio", math.nan)}
        fired = []
        for name, reading in READINGS.items():
            bound, value = getattr(self.args, f"stp_alarm_{name}"), metrics.get(reading.metric, math.nan)
            if bound is None or math.isnan(value):
                continue
            is_wrong = value >= bound if reading.above else value <= bound
            if self._counted(name, is_wrong, step) == self.args.stp_alarm_patience:
                side = "at or above" if reading.above else "at or below"
                message = (
                    f"alarm {name} at step {step}: {reading.said} is {value:.4g}, {side} {bound:g} "
                    f"(stp_alarm_{name}) in {self.args.stp_alarm_patience} rollout batches in a row"
                )
                fired.append(Alarm(name, step, value, bound, message, self.fine.get(name, 0)))
        return fired

    def evaluation(self, metrics: Mapping[str, float], step: int) -> list[Alarm]:
        """Return the alarm that an evaluation sets off; a best score of 0 or less has no share."""
        share = self.args.stp_alarm_collapse
        value = next((metrics[name] for name in SCORES if name in metrics), math.nan)
        if share is None or math.isnan(value):
            return []
        self.best = max(self.best, value)
        if self._counted(COLLAPSE, self.best > 0 and value < share * self.best, step) != 1:
            return []
        message = (
            f"alarm {COLLAPSE} at step {step}: the score of the evaluation is {value:.3f}, below {share:g} "
            f"(stp_alarm_{COLLAPSE}) of its best, {self.best:.3f}"
        )
        return [Alarm(COLLAPSE, step, value, share * self.best, message, self.fine.get(COLLAPSE, 0))]

    def _counted(self, name: str, is_wrong: bool, step: int) -> int:
        """Return how many readings in a row are wrong."""
        self.wrong[name] = self.wrong.get(name, 0) + 1 if is_wrong else 0
        if not is_wrong:
            self.fine[name] = step
        return self.wrong[name]

    def to_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        best = self.best if math.isfinite(self.best) else None
        return {**{name: getattr(self, name) for name in _KEPT}, "best": best}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `to_dict` returned."""
        for name in _KEPT:
            if name in saved:
                setattr(self, name, type(getattr(self, name))(saved[name]))
        best = saved.get("best")
        self.best = -math.inf if best is None else float(best)


_KEPT = ("history", "rollbacks", "wrong", "fine")


def best_and_last(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the best and the last score of a run's log: which metric, values and steps; None without any."""
    for metric in SCORES:
        found = [(float(line[metric]), int(line.get("step", 0))) for line in lines if metric in line]
        if found:
            best, last = max(found, key=lambda pair: pair[0]), found[-1]
            return {"metric": metric, "best": best[0], "best_step": best[1], "last": last[0], "last_step": last[1]}
    return None


def alarm_names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the alarms of a run's log, one for each time that it went off."""
    return [name.removeprefix("alarm/") for line in lines for name in line if name.startswith("alarm/")]


def score_line(score: Mapping[str, Any] | None, alarms: Sequence[str]) -> str:
    """Return best and last score of a run, and its alarms, for the closing lines."""
    counted = ", ".join(f"{name} ({alarms.count(name)})" for name in dict.fromkeys(alarms)) or "none"
    if not score:
        return f"alarms: {counted}"
    return (
        f"{score['metric']}: best {score['best']:.3f} at step {score['best_step']}, last {score['last']:.3f} at step "
        f"{score['last_step']}; alarms: {counted}"
    )
