"""`stp-rs grade`: scores stored completions in either mode, and explains where the modes disagree."""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stp_rs.errors import ConfigError
from stp_rs.progress import Bar
from stp_rs.text import inert, one_of, show

if TYPE_CHECKING:  # graders import torch
    from stp_rs.tasks.graders.modes import Grade, Item

TASKS = ("countdown", "gsm8k", "math", "sudoku")
MODES = ("published", "corrected")
_CHUNK = 500
"""Items that are graded at once, between two moves of the bar."""
_LARGE = 2000
"""Items from which there is a bar."""
_COMPLETION = ("generations", "completion", "completions", "generation", "response", "output", "prediction")
_TRUTH = ("ground_truth", "answer", "solution", "Solution", "target", "truth", "label")
_QUESTION = ("question", "problem", "prompt", "input")


@dataclass(frozen=True)
class Report:
    """Scores of a file in one mode, and its disagreements with the other mode if they were asked for."""

    task: str
    mode: str
    n: int
    """Graded items."""
    accuracy: float
    """Share correct; for Sudoku as published the share of blank cells, corrected that of solved puzzles."""
    ungraded: int = 0
    """Items without a ground truth, which are left out."""
    unsure: int = 0
    """MATH items that cannot be judged without math-verify, which are left out as well."""
    cells: float | None = None
    """Sudoku: blank cells right over all blank cells."""
    solved: float | None = None
    """Sudoku: share of puzzles solved."""
    differences: list[dict[str, Any]] = field(default_factory=list)
    explained: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; parts that do not apply are left out."""
        found: dict[str, Any] = {"task": self.task, "mode": self.mode, "n": self.n, "accuracy": self.accuracy}
        if self.ungraded:
            found["ungraded"] = self.ungraded
        if self.unsure:
            found["unsure"] = self.unsure
        if self.cells is not None:
            found.update(cells=self.cells, solved=self.solved)
        if self.explained:
            from stp_rs.tasks.graders.modes import RULES

            counts = Counter(d["rule"] for d in self.differences)
            found["rules"] = {rule: {"items": n, "meaning": RULES[rule]} for rule, n in counts.most_common()}
            found["differences"] = self.differences
        return found


def read_items(path: Path | str) -> "list[Item]":
    """Return the items of a JSON or JSONL file with a completion and a ground truth in each record.

    Raises:
        ConfigError: names the missing column and shows the row.
    """
    from stp_rs.tasks.data import load_rows, shown
    from stp_rs.tasks.graders.modes import Item

    items = []
    for number, record in enumerate(load_rows(Path(path))):
        completion = _first(record, _COMPLETION)
        if completion is None:
            names = ", ".join(_COMPLETION)
            raise ConfigError(f"{path}: row {number} has no completion (a column {names}); the row is {shown(record)}")
        truth, question = _first(record, _TRUTH), str(_first(record, _QUESTION) or "")
        several = completion if isinstance(completion, list) else [completion]
        items += [Item(str(one), truth, question, record) for one in several]
    return items


def _first(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def grade_items(task: str, items: "Sequence[Item]", mode: str = "corrected", explain: bool = False) -> Report:
    """Return the report of stored completions in one mode.

    Args:
        task: countdown, gsm8k, math or sudoku.
        items: what to grade.
        mode: `published` or `corrected`.
        explain: grade in both modes and list every item on which they differ, with the rule that explains it.
    """
    from stp_rs.tasks.graders.modes import CORRECTED, PUBLISHED

    if task not in PUBLISHED:
        raise ConfigError(f"task: got '{task}', {one_of(task, PUBLISHED)}")
    if mode not in MODES:
        raise ConfigError(f"mode: got '{mode}', {one_of(mode, MODES)}")
    graders = {"published": PUBLISHED[task], "corrected": CORRECTED[task]}
    wanted = MODES if explain else (mode,)
    found: dict[str, list[Grade]] = {name: [] for name in wanted}
    bar = Bar(len(items), f"grade {task}", "completions", quiet=len(items) < _LARGE)
    for start in range(0, len(items), _CHUNK):
        chunk = items[start : start + _CHUNK]
        for name in wanted:
            found[name] += graders[name](chunk)
        bar.update(len(chunk))
    bar.close()
    differences = _differences(task, items, found["published"], found["corrected"]) if explain else []
    return _report(task, mode, found[mode], differences, explain)


def _report(
    task: str, mode: str, grades: "Sequence[Grade]", differences: list[dict[str, Any]], explained: bool
) -> Report:
    graded = [g for g in grades if g.correct is not None]
    n = len(graded)
    share = sum(bool(g.correct) for g in graded) / max(1, n)
    cells = None
    if task == "sudoku":
        cells = sum(g.right for g in graded) / max(1, sum(g.blanks for g in graded))
    accuracy = cells if cells is not None and mode == "published" else share
    solved = share if task == "sudoku" else None
    unsure = sum(g.correct is None and g.why == "unsure" for g in grades)
    ungraded = len(grades) - n - unsure
    return Report(task, mode, n, accuracy, ungraded, unsure, cells, solved, differences, explained)


def _differences(
    task: str, items: "Sequence[Item]", published: "Sequence[Grade]", corrected: "Sequence[Grade]"
) -> list[dict[str, Any]]:
    from stp_rs.tasks.graders.modes import EXPLAIN

    found = []
    for index, (item, p, c) in enumerate(zip(items, published, corrected, strict=True)):
        if (p.correct, p.right) == (c.correct, c.right):
            continue
        found.append(
            {
                "index": index,
                "rule": EXPLAIN[task](item, p, c),
                "question": item.question[:80],
                "published": {"correct": p.correct, "answer": p.answer[-120:], "why": p.why},
                "corrected": {"correct": c.correct, "answer": c.answer[-120:], "why": c.why},
            }
        )
    return found


def grade_file(task: str, path: Path | str, mode: str = "corrected", explain: bool = False) -> Report:
    r"""Return the report of a file of stored completions; see `grade_items`.

    Example:
        >>> import json, tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        ...     _ = file.write(json.dumps({"completion": "\\boxed{1,200}", "answer": "1200"}))
        ...     file.flush()
        ...     [grade_file("gsm8k", file.name, mode).accuracy for mode in MODES]
        [0.0, 1.0]
    """
    return grade_items(task, read_items(path), mode, explain)


def _mode(text: str) -> str:
    if text == "paper_compat":
        raise argparse.ArgumentTypeError("paper_compat has the name published since 0.2")
    return text


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `grade`; its function is `run`."""
    parser = subparsers.add_parser(
        "grade",
        help="score stored completions",
        description="Score stored completions, as published or corrected.",
    )
    parser.add_argument("file", metavar="FILE", help="JSON or JSONL with a completion and a ground truth per record")
    parser.add_argument("--task", required=True, choices=TASKS, help="what the completions answer")
    parser.add_argument("--mode", default="corrected", choices=MODES, type=_mode, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--explain", action="store_true", help="list every item on which the two modes differ, and why")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Grade a file as the command line asks, print the result, and return the exit status."""
    items = read_items(args.file)
    if not items:
        raise ConfigError(f"{args.file}: got no records, needs one or more with a completion and a ground truth")
    report = grade_items(args.task, items, args.mode, args.explain)
    show(json.dumps(report.to_dict()) if args.json else _table(report))
    return 0


def _table(report: Report) -> str:
    lines = [f"{report.task}, {report.mode}: {100 * report.accuracy:.2f} % of {report.n} completions"]
    if report.ungraded:
        lines.append(f"  {report.ungraded} without a ground truth are left out")
    if report.unsure:
        lines.append(f"  {report.unsure} are unsure without math-verify, and left out: pip install 'stp-rs[math]'")
    if report.cells is not None and report.solved is not None:
        lines.append(f"  cells {100 * report.cells:.2f} %, puzzles solved {100 * report.solved:.2f} %")
    for d in report.differences:
        lines.append(f"#{d['index']} [{d['rule']}] {d['question']!r}")
        lines += [f"    {mode:<12} {_verdict(d[mode])}" for mode in MODES]
    if report.explained:
        from stp_rs.tasks.graders.modes import RULES

        lines.append(f"{len(report.differences)} items differ between the modes")
        counts = Counter(d["rule"] for d in report.differences)
        lines += [f"  {count:5d}  {rule}: {RULES[rule]}" for rule, count in counts.most_common()]
    return "\n".join(lines)


def _verdict(grade: Mapping[str, Any]) -> str:
    word = {True: "right", False: "wrong", None: "not graded"}[grade["correct"]]
    return f"{word}: read {grade['answer']!r} ({inert(grade['why'])})"
