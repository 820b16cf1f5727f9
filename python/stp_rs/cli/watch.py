"""`stp-rs watch`: plays the newest kept rollout of a run in the terminal, and goes on to the next one when it comes.

Kinds of tokens differ in what stands around them: |prior|, ~merged tail~, /filler/, and a dot for a masked one.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from stp_rs.cli.terminal import not_negative
from stp_rs.errors import CheckpointError
from stp_rs.text import show, width
from stp_rs.types import Mark

_COLUMNS = 100


def add_parser(commands: Any) -> None:
    """Add the command to the parser of `stp-rs`."""
    parser = commands.add_parser("watch", help="show kept rollouts in the terminal as they come", allow_abbrev=False)
    parser.add_argument("run_folder", metavar="RUN", help="run folder")
    parser.add_argument("--once", action="store_true", help="show the newest one and stop")
    parser.add_argument("--seconds", type=not_negative, default=0.4, help="between forwards; default %(default)s")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show rollouts until Ctrl-C; return the exit code."""
    from stp_rs.train.kept import kept_files, read_scenes

    folder, seen = Path(args.run_folder), None
    while True:
        newest = next(reversed(kept_files(folder)), None)
        if newest is None and (args.once or not folder.is_dir()):
            raise CheckpointError(f"{folder}: no kept rollout in it; give the folder of a run with stp_keep_rollouts")
        if newest is not None and newest != seen:
            seen, kept = newest, read_scenes(newest)
            play(kept["step"], kept["scenes"][0], args.seconds)
        if args.once:
            return 0
        time.sleep(1)


def play(step: int, scene: dict[str, Any], seconds: float) -> None:
    """Show a scene forward by forward; a pipe gets its lines one after the other, a terminal in one place."""
    pruned, unpruned = scene["pruned"], scene["unpruned"]
    show(f"step {step}, prompt: {scene['prompt']}\n|prior|  ~merged tail~  /filler, not drawn/  . masked")
    height = 0
    for forwards in range(max(pruned["nfe"], unpruned["nfe"]) + 1):
        lines = [*frame("pruned", pruned, forwards), *frame("unpruned", unpruned, forwards)]
        if height and sys.stdout.isatty():
            sys.stdout.write(f"\x1b[{height}A\x1b[J")  # up, and clear what is below
        show("\n".join(lines))
        height = len(lines)
        time.sleep(seconds if sys.stdout.isatty() else 0)


def frame(name: str, decode: dict[str, Any], forwards: int) -> list[str]:
    """Return the lines of a completion after some forwards."""
    done = min(forwards, decode["nfe"])
    cells = [
        _cell(*pair, decode["tail"], done, decode["nfe"])
        for pair in zip(decode["tokens"], decode["steps"], strict=True)
    ]
    lines = [""]
    for cell in cells:
        if width(lines[-1]) + width(cell) > _COLUMNS:
            lines.append("")
        lines[-1] += cell
    said = [] if decode["solved"] is None else ["right" if decode["solved"] else "wrong"]
    said += [] if decode["reward"] is None else [f"reward {decode['reward']}"]
    ended = "".join(f", {part}" for part in said) if done == decode["nfe"] else ""
    return [f"{name}: {done} of {decode['nfe']} forwards{ended}", *(f"  {line}" for line in lines)]


def _cell(token: str, step: int, tail: int | None, done: int, nfe: int) -> str:
    if step == Mark.PRIOR:
        return f"|{token}|"
    if step == Mark.UNDRAWN:
        return f"/{token}/" if done == nfe else " . "
    if step >= done:
        return " . "
    return f"~{token}~" if step == tail else f" {token} "
