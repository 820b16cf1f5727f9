"""Time policies of a given shape with random weights on one card, against published loops.

    python -m benches.gpu --json benches/gpu/results.json     # llada-8b, bert-base and tiny
    python -m benches.gpu --shape llada-8b --parts forward,update
    python -m benches.gpu --unmeasured --tests --json FILE    # tests that need a card, then what no card has measured
    python -m benches.gpu --small                             # the same code on shapes that a CPU runs in seconds

A part takes at most --budget seconds; the file is written after every line, so that a run that is cut short keeps what
it measured. Times on a CPU say nothing about a GPU: the file names the card.
"""

import argparse
import logging
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benches.gpu import large, small
from benches.gpu.network import Shape
from benches.gpu.report import Report, environment
from stp_rs.eval.prices import NETWORKS, SETTINGS

SHAPES = {name: Shape(name, network, SETTINGS[name]) for name, network in NETWORKS.items()}
PARTS: dict[str, Mapping[str, Callable[[Any], None]]] = {
    "llada-8b": large.PARTS, "1b": large.PARTS,
    "bert-base": {"ragged": small.ragged}, "tiny": {"launches": small.launches},
}  # fmt: skip
ROOT, TESTS = Path(__file__).parents[2], ("tests/unit",)
DEFAULT = "llada-8b,bert-base,tiny"
UNMEASURED = {
    "--shape": "tiny,llada-8b",
    "--parts": "launches,caches,precision,published,exits,plain_step",
}
"""What docs/benchmarks.md lists as measured on no card: what takes seconds, then the most important first."""
UNMEASURED_SECONDS, TESTS_SECONDS = 130.0, 110.0
"""What they may take together, and the tests before them: all in under four minutes, a machine's start not counted."""


def known_parts() -> list[str]:
    """Return the names of all parts."""
    return list(dict.fromkeys(name for parts in PARTS.values() for name in parts))


def in_small(shape: Shape) -> Shape:
    """Return a shape that a CPU runs in seconds through the same code."""
    network = replace(shape.network, hidden=32, layers=2, heads=4, ffn=64, vocab=min(shape.network.vocab, 96))
    batch = replace(
        shape.batch, rows=4, group=2, prompt=min(shape.batch.prompt, 12), completion=16, steps=8,
        block=shape.batch.block and 8, rank=4,
    )  # fmt: skip
    return replace(shape, network=network, batch=batch)


def run(shape: Shape, names: list[str], report: Report, **options: Any) -> None:
    """Make a policy of a shape and run some of its parts."""
    parts = PARTS[shape.name]
    chosen = [name for name in names or parts if name in parts]
    if not chosen:
        return
    spent = "no time: --seconds are used up"
    if report.remaining() <= 0:
        for name in chosen:
            report.leave_out(f"{shape.name}: {name}", spent)
        return
    print(f"== {shape}", flush=True)
    world: Any = None
    with report.part(f"{shape.name}: make the policy"):
        if parts is large.PARTS:
            world = large.World(shape, report, **options)
        else:
            world = {"bert-base": small.bert, "tiny": small.tiny}[shape.name](shape, report)
    for name in chosen if world is not None else []:
        if report.remaining() <= 0:
            report.leave_out(f"{shape.name}: {name}", spent)
            continue
        with report.part(f"{shape.name}: {name}", times=3 if name == "step" else 1):  # it compiles a backward pass
            parts[name](world)


def run_tests(report: Report, seconds: float) -> None:
    """Run the tests that need a card in a process of their own; keep how it ended and what it said last."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider", *TESTS]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        try:
            code: int | None = subprocess.run(
                command, check=False, cwd=ROOT, stdout=said, stderr=said, timeout=seconds
            ).returncode
        except subprocess.TimeoutExpired:
            code = None  # cut off
        said.seek(0)
        last = said.read().splitlines()[-40:]
    took = round(time.perf_counter() - start, 1)
    report.tests = {"command": " ".join(command[1:]), "code": code, "seconds": took, "last": last}
    report.write()
    print("\n".join([f"== tests that need a card: {took} s, code {code}", *last[-12:]]), flush=True)


def main(arguments: list[str] | None = None) -> Report:
    """Run what the command line asks for; return the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default=DEFAULT, help=f"shapes of {', '.join(SHAPES)}, with commas between")
    parser.add_argument("--parts", default="", help=f"only these: {', '.join(known_parts())}")
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--budget", type=float, default=90.0, help="seconds of a part; `step` has three times as many")
    parser.add_argument("--d1-seconds", type=float, default=10.0, help="seconds of d1's loop; a step is reported")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="shapes that a CPU runs in seconds")
    parser.add_argument("--unmeasured", action="store_true", help="the parts that no card has measured, the most "
                        "important first")  # fmt: skip
    parser.add_argument("--seconds", type=float, help="of all parts together; what is left then is left out "
                        f"(--unmeasured: {UNMEASURED_SECONDS:.0f})")  # fmt: skip
    parser.add_argument("--tests", action="store_true", help="first the tests that need a card, for "
                        f"{TESTS_SECONDS:.0f} s at most")  # fmt: skip
    args = parser.parse_args(arguments)
    if args.unmeasured:
        args.shape, args.parts = UNMEASURED["--shape"], UNMEASURED["--parts"]
        args.seconds = UNMEASURED_SECONDS if args.seconds is None else args.seconds
    logging.basicConfig(level=logging.WARNING)
    names = [name for name in args.parts.split(",") if name]
    shapes = args.shape.split(",")
    for given, needed in ((names, set(known_parts())), (shapes, set(SHAPES))):
        if unknown := sorted(set(given) - needed):
            parser.error(f"got {', '.join(unknown)}, needs some of {', '.join(sorted(needed))}")
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    report = Report(args.json, device, args.budget)
    print(environment(report.device), flush=True)
    if args.tests:
        run_tests(report, TESTS_SECONDS)
    report.bound(math.inf if args.seconds is None else args.seconds)
    for name in shapes:
        shape = in_small(SHAPES[name]) if args.small else SHAPES[name]
        run(shape, names, report, **options_of(args))
    report.write()
    print(f"{len(report.lines)} lines, {len(report.errors)} errors, seconds by part: {report.parts}", flush=True)
    return report


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what `large.World` takes of the command line."""
    return {"backend": args.backend, "d1_seconds": args.d1_seconds}


if __name__ == "__main__":
    raise SystemExit(1 if main().errors else 0)
