"""`python -m studies.compare`: train variants over seeds and compare them, or show stored results again."""

import argparse
import contextlib
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stp_rs import _core
from stp_rs.cli.flags import add_option_flags, given_options
from stp_rs.cli.terminal import Parser
from stp_rs.errors import ConfigError
from stp_rs.eval.plot import require_matplotlib
from stp_rs.progress import Bar
from stp_rs.text import show as say
from stp_rs.train.checkpoint import atomic_file, write_json
from studies.compare.curves import AXES, Record, aggregate, by_variant
from studies.compare.plan import EVALUATIONS, Comparison, Study, read_study
from studies.compare.plot import draw
from studies.compare.table import make_rows, markdown
from studies.compare.variants import OWN, parse_variants

TUNING_SHARE = 0.4
"""Most of a budget of seconds that tuning takes."""
_SKIPPED = OWN - {"task", "eval_size"} | {"preset"}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = Parser(
        prog="python -m studies.compare",
        allow_abbrev=False,
        description="Trains variants with several seeds and compares them at equal rollouts and equal compute. Runs "
        "are resumable: the same command again does what is not done. Options of `stp-rs train` hold "
        "for all variants.",
    )
    parser.add_argument(
        "--presets",
        default="",
        help="variants joined by commas: NAME=preset/pruning;option=value;... (all but the preset may be left out), "
        "or all; e.g. 'stp,unigrpo/stp,k4=stp;num_mc=4'",
    )
    parser.add_argument("--seeds", type=_seeds, default=None, help="e.g. 0,1,2 (the default)")
    parser.add_argument("--plan", default="", help="YAML file that says all of this; flags win (examples/compare/)")
    parser.add_argument(
        "--from",
        dest="stored",
        action="append",
        default=[],
        help="show stored JSON, of the variants named by --presets; may be repeated",
    )
    parser.add_argument("--config", default="", help="YAML file of options of all variants")
    parser.add_argument("--output_dir", default="", help="runs and warm-ups; default runs/compare-TASK")
    parser.add_argument("--evaluations", type=int, default=None, help=f"points of a curve; default {EVALUATIONS}")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument(
        "--budget_seconds",
        type=float,
        default=0.0,
        help="start no run that cannot finish in this time by the plan's estimate, and stop at its end; 0: no bound",
    )
    parser.add_argument("--baseline", default="", help="variant that differences are taken from; default the first")
    parser.add_argument("--reference", default="", help="variant whose final score the others are timed to")
    parser.add_argument("--json", default="", help="write runs and aggregates here")
    parser.add_argument("--markdown", default="", help="write the tables here")
    parser.add_argument("--plot", default="", help="write the figure here, .svg or .png (needs the plot extra)")
    parser.add_argument("--x", choices=AXES, default="", help="x of the plot's compute panel; default seconds")
    add_option_flags(parser, skip=_SKIPPED)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run or read, print the tables, write what was asked for; return the exit code (1 where a run failed)."""
    if args.jobs < 1:
        raise ConfigError(f"--jobs: got {args.jobs}, needs at least 1")
    if args.stored and args.plan:
        raise ConfigError("--from: shows stored results; leave out --plan")
    if args.stored:
        report = merge(args.stored)
        if args.presets:
            report["runs"] = select(report["runs"], args.presets.split(","))
        outputs: Mapping[str, str] = _outputs(args)
        _check_outputs(outputs)
    else:
        study = make_study(args)
        outputs = study.parts[0].outputs
        _check_outputs(outputs)
        report = run_study(study, args.jobs, args.budget_seconds)
    names = {record["variant"] for record in report["runs"]}
    for what in ("baseline", "reference"):
        chosen = getattr(args, what) or report.get(what, "")
        if args.stored and getattr(args, what) and chosen not in names:
            raise ConfigError(f"--{what}: got {chosen!r}, needs one of {', '.join(sorted(names))}")
        report[what] = chosen
    report = {
        "command": shlex.join(["python", "-m", "studies.compare", *args.argv]),
        "stp_rs": _core.__version__,
        **report,
    }
    show(report, outputs, args.x)
    return 1 if report["failures"] else 0


def make_study(args: argparse.Namespace) -> Study:
    """Return what the flags, and the plan where there is one, say."""
    options = given_options(args, skip=_SKIPPED)
    if args.plan:
        given = {name: getattr(args, name) for name in ("config", "output_dir", "baseline", "reference")}
        given |= {"seeds": args.seeds, "evaluations": args.evaluations, "variants": args.presets, **_outputs(args)}
        return read_study(args.plan, {**{k: v for k, v in given.items() if v}, "options": options})
    comparison = Comparison(
        variants=parse_variants(args.presets),
        seeds=tuple(args.seeds or (0, 1, 2)),
        options=options,
        config=args.config,
        output_dir=args.output_dir,
        baseline=args.baseline,
        reference=args.reference,
        evaluations=args.evaluations or EVALUATIONS,
        outputs=_outputs(args),
    )
    return Study([comparison])


def run_study(study: Study, at_once: int, budget_seconds: float = 0.0) -> dict[str, Any]:
    """Do what is not done of a study; return {baseline, reference, hypotheses, runs, failures, left_out}.

    The JSON is written after every run, so that what was done is there whatever ends the study.
    """
    from studies.compare.runner import run_jobs

    comparison = study.parts[0]
    baseline = comparison.baseline or comparison.variants[0].name
    report: dict[str, Any] = {
        "baseline": baseline,
        "reference": comparison.reference or baseline,
        "hypotheses": [dataclasses.asdict(hypothesis) for hypothesis in study.hypotheses],
    }

    def tell(line: str) -> None:
        say(line, file=sys.stderr)

    def keep(runs: list[dict[str, Any]]) -> None:
        if path := comparison.outputs.get("json"):
            write_json(Path(path), {**report, "runs": runs, "failures": [], "left_out": []})

    started = time.monotonic()
    failed: list[dict[str, Any]] = []
    if tuning := study.tuning():
        # at most so much of the budget: what a value costs that no run tried is less than a seed
        share = TUNING_SHARE * budget_seconds
        tried, failed, _ = run_jobs(tuning.jobs(), at_once, tell, budget_seconds=share, warm_ups=study.warm_ups())
        study, report["tuned"] = study.tuned(tried)
        report["tuning"] = tried
    left = max(1.0, budget_seconds - (time.monotonic() - started)) if budget_seconds else 0.0
    jobs = study.jobs()
    with contextlib.closing(Bar(len(jobs), "compare", "runs")) as bar:

        def ended(runs: list[dict[str, Any]]) -> None:
            keep(runs)
            bar.update(len(runs) - bar.done)

        runs, failures, left_out = run_jobs(jobs, at_once, bar.note, budget_seconds=left, keep=ended)
    return {**report, "runs": runs, "failures": [*failed, *failures], "left_out": left_out}


def show(report: dict[str, Any], outputs: Mapping[str, str], x: str = "") -> None:
    """Print the tables of a report's runs and write its files: json, markdown, plot."""
    runs, baseline, reference = report["runs"], report["baseline"], report["reference"]
    if "json" in outputs:  # first: what follows only draws it
        tasks = dict.fromkeys(record["task"] for record in runs)
        sums = {task: aggregate([r for r in runs if r["task"] == task], baseline, reference) for task in tasks}
        rows = {task: make_rows([r for r in runs if r["task"] == task], sums[task]) for task in tasks}
        write_json(Path(outputs["json"]), {**report, "aggregates": sums, "table": rows})
    if runs:
        text = markdown(runs, baseline, reference, report["hypotheses"])
        say(text)
        if "markdown" in outputs:
            with atomic_file(Path(outputs["markdown"])) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
        if "plot" in outputs:
            draw(runs, Path(outputs["plot"]), x)
    for name in report["left_out"]:
        say(f"no time for {name}", file=sys.stderr)
    for failure in report["failures"]:
        say(f"FAILED: {failure['variant']} seed {failure['seed']}: {failure['error']}", file=sys.stderr)


def merge(paths: Sequence[str]) -> dict[str, Any]:
    """Return the runs of stored reports as one; baseline and reference are the first's.

    Raises:
        ConfigError: a file cannot be read, or two hold different runs of one variant, task and seed.
    """
    merged: dict[str, Any] = {}
    runs: dict[tuple[str, str, int], dict[str, Any]] = {}
    for path in paths:
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            found = [((run["task"], run["variant"], run["seed"]), run) for run in stored["runs"]]
            kept = {"baseline": stored["baseline"], "reference": stored["reference"]}
            merged = merged or {**kept, "hypotheses": stored.get("hypotheses", []), "failures": [], "left_out": []}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"--from {path}: needs the JSON of a comparison: {error!r}") from None
        for key, run in found:
            if key in runs and runs[key]["identity"] != run["identity"]:
                raise ConfigError(f"--from {path}: {key[1]} seed {key[2]} is another run than in an earlier file")
            runs.setdefault(key, run)
    if not runs:
        raise ConfigError(f"--from {', '.join(paths)}: no run in it")
    return {**merged, "runs": list(runs.values())}


def select(runs: Sequence[Record], names: Sequence[str]) -> list[Record]:
    """Return the runs of the named variants, in the order of the names.

    Raises:
        ConfigError: a variant that has no run.
    """
    variants = by_variant(runs)
    if unknown := [name for name in names if name not in variants]:
        raise ConfigError(f"--presets: got {', '.join(unknown)}, needs some of {', '.join(variants)}")
    return [run for name in names for run in variants[name]]


def _outputs(args: argparse.Namespace) -> dict[str, str]:
    return {kind: getattr(args, kind) for kind in ("json", "markdown", "plot") if getattr(args, kind)}


def _check_outputs(outputs: Mapping[str, str]) -> None:
    """Refuse before hours of runs what could not be written after them."""
    if "plot" in outputs:
        require_matplotlib()
        if Path(outputs["plot"]).suffix not in (".svg", ".png", ".pdf"):
            raise ConfigError(f"--plot: got {outputs['plot']!r}, needs a file named .svg, .png or .pdf")


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, needs numbers joined by commas, e.g. 0,1,2") from None
