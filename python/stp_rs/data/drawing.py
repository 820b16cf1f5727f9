"""A rollout in text: for each completion the forward that revealed each of its tokens."""

from typing import TYPE_CHECKING

import numpy as np

from stp_rs.text import clip, inert
from stp_rs.types import Mark, StopReason

if TYPE_CHECKING:
    from stp_rs.data.trajectories import Rollout

_ROWS, _COLUMNS, _TEXT = 6, 64, 32
"""Most completions, tokens of each, and columns of its text."""
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_MARKS = {Mark.PRIOR: "|", Mark.UNDRAWN: "/", Mark.OUTSIDE: " "}


def drawn(rollout: "Rollout") -> str:
    """Return a head line, a line for each of the first completions, and what the signs mean."""
    rows, length = rollout.token_ids.shape
    groups = len(np.unique(rollout.group))
    head = f"Rollout({rows} completions of {groups} prompts, {length} tokens"
    if rows:
        head += f", {rollout.nfe.mean():.1f} forwards each"
    if rollout.reward is not None and np.isfinite(rollout.reward).any():
        head += f", mean reward {np.nanmean(rollout.reward):.3f}"
    lines = [f"{head})", *(_line(rollout, row) for row in range(min(rows, _ROWS)))]
    if rows > _ROWS:
        lines.append(f"     and {rows - _ROWS} more")
    if rows:
        lines.append("     0-9a-z forward that revealed the token, + a later one, ~ merged tail, | prior, / not drawn")
    return "\n".join(lines)


def _line(rollout: "Rollout", row: int) -> str:
    steps = rollout.unmask_step[row, :_COLUMNS]
    merged = rollout.stop_reason[row] in (StopReason.TEMPORAL, StopReason.MAX_NFE)
    tail = int(rollout.unmask_step[row].max()) if merged else None
    cells = "".join(_cell(int(step), tail) for step in steps)
    more = " ..." if rollout.unmask_step.shape[1] > _COLUMNS else ""
    said = [f"{rollout.nfe[row]} forwards"]
    if rollout.reward is not None:
        said.append(f"reward {rollout.reward[row]:.3f}")
    if rollout.advantage is not None:
        said.append(f"advantage {rollout.advantage[row]:+.2f}")
    text = f"  {clip(inert(rollout.completions[row]), _TEXT)}" if len(rollout.completions) else ""
    return f"  {row:>2} {cells.rstrip()}{more}  {', '.join(said)}{text}"


def _cell(step: int, tail: int | None) -> str:
    if step < 0:
        return _MARKS[Mark(step)]
    if step == tail:
        return "~"
    return _DIGITS[step] if step < len(_DIGITS) else "+"
