"""`stp-rs grade`: published numbers on real completions, corrected ones, every difference explained."""

import argparse
import json
import math
import os
import random
from pathlib import Path

import pytest

from stp_rs.cli import grade as grading
from stp_rs.errors import ConfigError
from stp_rs.tasks.graders import published
from stp_rs.tasks.graders.modes import MODES, RULES, Item, sudoku_puzzle
from tests.oracles import paper as oracle

REAL = Path(os.environ.get("STP_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "llada_generations"
needs_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"no test data at {REAL}")
FILES = {"countdown": "countdown_128.json", "gsm8k": "gsm8k_128.json", "sudoku": "sudoku_256.json"}


@needs_data
@pytest.mark.parametrize(("task", "percent"), [("countdown", 20.7), ("gsm8k", 69.3), ("sudoku", 6.7)])
def test_published_accuracies(task: str, percent: float):
    report = grading.grade_file(task, REAL / FILES[task], "published")
    assert abs(100 * report.accuracy - percent) < 0.1
    if task == "sudoku":
        assert (report.cells, report.solved) == (report.accuracy, 0.0)


@needs_data
@pytest.mark.parametrize(
    ("task", "accuracy", "rules"),
    [
        ("countdown", 54 / 256, {"no-box": 1}),
        ("gsm8k", 791 / 1128, {"unclosed": 5, "no-truth": 2, "thousands": 2, "line-break": 1}),
        ("sudoku", 0.0, {"length": 61}),
    ],
)
def test_corrected_accuracies_and_why_they_differ(task: str, accuracy: float, rules: dict[str, int]):
    report = grading.grade_file(task, REAL / FILES[task], "corrected", explain=True)
    assert report.accuracy == pytest.approx(accuracy)
    found = report.to_dict()
    assert {rule: entry["items"] for rule, entry in found["rules"].items()} == rules
    assert len(found["differences"]) == sum(rules.values())


SPLICES = [
    "\\boxed{",
    "}",
    "<answer>",
    "</answer>",
    "\\boxed ",
    "$",
    "\\frac12",
    "\\dfrac{3}{4}",
    "\\sqrt3",
    "0.5",
    "x=",
]
SPLICES += [
    "\\text{ cm}",
    "\\left(",
    "1,200",
    "-3",
    "\\%",
    "```",
    "1234341221434321",
    "<|eot_id|>",
    "\\fbox{3}",
    "\\times",
]
TRUTHS = ["\\frac{1}{2}", "3/4", "\\sqrt{3}", "12", "x = 5", "10\\%", "90^\\circ", "(2,5]", "\\text{even}"]


@needs_data
@pytest.mark.parametrize("tokens", [128, 256, 512])
def test_completions_of_any_length_are_read_as_published(tokens: int):
    stored = [json.loads((REAL / name).read_text())["generations"] for name in FILES.values()]
    real = [row["generations"] for rows in stored for row in rows]
    draw = random.Random(tokens)
    texts = []
    for _ in range(1500):
        parts = [text[draw.randrange(len(text) + 1) :] for text in draw.choices(real, k=2)]
        parts += draw.choices(SPLICES, k=4) + [f"\\boxed{{{draw.choice(TRUTHS)}}}"] * draw.randint(0, 1)
        draw.shuffle(parts)
        texts.append("".join(parts)[: 4 * tokens])
    for text in texts:
        value, found = oracle.gsm8k(text), published.number_answer(text)
        assert (found is None) == (value is None)
        assert found is None or value is None or found[0] == value or math.isnan(value)
        answer = published.math_answer(text)
        assert answer == oracle.math_answer(text)
        for truth in TRUTHS:
            assert published.math_equal(answer or "", truth) == oracle.math_equal(answer or "", truth)
        assert published.countdown_expression(text) == oracle.countdown_expression(text)
        assert published.sudoku_answer(text) == oracle.sudoku_answer(text)


CASES = [
    ("gsm8k", "\\boxed{1,200}", "1200", "thousands"),
    ("gsm8k", "\\boxed{385\\,000}", "385000", "thousands"),
    ("gsm8k", "\\boxed{3} so \\boxed{18}", "18", "last-box"),
    ("gsm8k", "\\boxed{18} but \\boxed{3}", "18", "last-box"),
    ("gsm8k", "\\boxed{\n18\n}", "18", "line-break"),
    ("gsm8k", "<answer>\\boxed{18>", "18", "unclosed"),
    ("gsm8k", "so\n#### 18", "18", "marker"),
    ("gsm8k", "\\boxed{\\frac{1}{2}}", "0.5", "reading"),
    ("gsm8k", "\\boxed{18}", None, "no-truth"),
    ("math", "\\boxed{.25}", "\\frac{1}{4}", "as-number"),
    ("math", "\\boxed{2, 1}", "1, 2", "as-number"),
    ("gsm8k", "\\boxed{28 or 72}", "28", "not-one"),
    ("gsm8k", "<answer>5 to 72</answer>", "72", "not-one"),
    ("math", "\\boxed{\\text{Even}}", "even", "as-text"),
    ("math", "<answer>7</answer>", "7", "no-box"),
    ("math", "<answer>\\boxed{7</answer>", "7", "unclosed"),
    ("math", "", "", "strict"),
    ("math", "\\boxed 5$ then $\\boxed{7}", "7", "last-box"),
    ("gsm8k", "so $\\boxed 18$", "18", "unclosed"),
    ("countdown", "<answer>2*3+4</answer>", [[2, 3, 4], 10], "no-box"),
    ("countdown", "\\boxed{2 \u00d7 3 + 4}", [[2, 3, 4], 10], "notation"),
    ("countdown", "\\boxed{2*3+4=11}", [[2, 3, 4], 10], "statement"),
    ("countdown", "\\boxed{2**3+4}", [[2, 3, 4], 12], "power"),
    ("countdown", "\\boxed{2.*3+4}", [[2, 3, 4], 10], "decimal"),
    ("countdown", "\\boxed{2*3+4} <answer>7</answer>", [[2, 3, 4], 10], "strict"),
    ("countdown", "<answer>2*3+4</answer> \\boxed{7}", [[2, 3, 4], 10], "last-box"),
    ("sudoku", "<answer>123434122143432</answer>", "1234341221434321", "length"),
    ("sudoku", "<answer>a123434122143432</answer>", "1234341221434321", "prose"),
    ("sudoku", "1234341221434321 <answer>or 1234341221434321</answer>", "1234341221434321", "layout"),
    ("sudoku", "<answer>1234341243212143</answer>", "1234341221434321", "second-solution"),
]


def item(task: str, completion: str, truth: object) -> Item:
    record = {"puzzle": "1234341200000000"} if task == "sudoku" else {}
    return Item(completion, truth, "", record)


@pytest.mark.parametrize(("task", "completion", "truth", "rule"), CASES)
def test_each_difference_has_its_rule(task: str, completion: str, truth: object, rule: str):
    report = grading.grade_items(task, [item(task, completion, truth)], explain=True)
    assert [d["rule"] for d in report.differences] == [rule]


def test_a_hostile_text_is_explained_in_linear_time():
    hostile = "\\boxed{" * 300_000 + "}" * 300_000 + "\n#### 18"  # hours where it is quadratic
    report = grading.grade_items("gsm8k", [item("gsm8k", hostile, "18")], explain=True)
    assert [d["rule"] for d in report.differences] == ["unclosed"]


def test_every_rule_is_documented():
    guide = (Path(__file__).parents[2] / "docs" / "graders.md").read_text(encoding="utf-8")
    assert all(f"`{rule}`" in guide for rule in RULES)


def test_a_missing_truth_is_wrong_as_published_and_left_out_corrected():
    items = [item("gsm8k", "\\boxed{18}", None), item("gsm8k", "\\boxed{18}", 18.0)]
    assert grading.grade_items("gsm8k", items, "published").accuracy == 0.5
    report = grading.grade_items("gsm8k", items, "corrected")
    assert (report.accuracy, report.n, report.ungraded) == (1.0, 1, 1)


def test_math_truths_that_are_floats_are_compared_as_numbers():
    items = [item("math", "\\boxed{0.50}", 0.5), item("math", "\\boxed{x}", 0.5)]
    assert grading.grade_items("math", items, "published").accuracy == 0.5


def test_9x9_puzzles_are_graded_corrected():
    grid = "".join(str((3 * r + r // 3 + c) % 9 + 1) for r in range(9) for c in range(9))
    puzzle = "0" + grid[1:]
    good = Item(f"<answer>{grid}</answer>", grid, puzzle, {})
    bad = Item(f"<answer>{puzzle}</answer>", grid, puzzle, {})
    report = grading.grade_items("sudoku", [good, bad])
    assert (report.solved, report.cells) == (0.5, 0.5)


def run(*args: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    grading.add_parser(parser.add_subparsers())
    return parser.parse_args(["grade", *args])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "completions.jsonl"
    rows = [
        {"completion": "\\boxed{1,200}", "answer": "1200"},
        {"completion": ["7", "\\boxed{7}"], "answer": "7"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    args = run(str(path), "--task", "gsm8k", "--json")
    assert args.run(args) == 0
    assert json.loads(capsys.readouterr().out) == {
        "task": "gsm8k",
        "mode": "corrected",
        "n": 3,
        "accuracy": pytest.approx(2 / 3),
    }
    args = run(str(path), "--task", "gsm8k", "--mode", "published", "--explain")
    assert args.run(args) == 0
    printed = capsys.readouterr().out
    assert "33.33 % of 3" in printed
    assert "[thousands]" in printed
    args = run(str(path), "--task", "gsm8k", "--json", "--explain")
    args.run(args)
    assert json.loads(capsys.readouterr().out)["differences"][0]["published"]["answer"] == "1,200"


def test_errors(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "answer": "1"}')
    with pytest.raises(ConfigError, match=r"row 0 has no completion .*\"text\": \"x\""):
        grading.read_items(path)
    with pytest.raises(ConfigError, match="countdown, gsm8k, math, sudoku"):
        grading.grade_items("code", [])
    with pytest.raises(ConfigError, match="published, corrected"):
        grading.grade_items("math", [], "paper_compat")
    with pytest.raises(ConfigError, match="no numbers and target"):
        grading.grade_items("countdown", [item("countdown", "1", None)])
    with pytest.raises(ConfigError, match="no puzzle"):
        grading.grade_items("sudoku", [Item("1", None, "", {})])
    assert grading.grade_items("math", []).accuracy == 0.0


def test_where_countdown_problems_may_be():
    for truth, question, record in (
        ("[[2, 3], 6]", "", {}),
        (["[2, 3]", "6"], "", {}),
        ("6", "", {"numbers": "[2, 3]"}),
        (6, "", {"numbers": [2, 3]}),
        (None, "", {"numbers": "2, 3", "target": "6"}),
        (None, "", {"numbers": "2 3", "target": "6.0"}),
        ({"numbers": "[2,3]", "target": 6.0}, "", {}),
        ([[2, 3], 6], "", {}),
        ({"numbers": [2, 3], "target": 6}, "", {}),
        (None, "", {"numbers": [2, 3], "target": 6}),
        (None, "", {"nums": [2, 3], "target": 6}),
        (None, "Numbers: [2, 3]\nTarget: 6", {}),
    ):
        found = grading.grade_items("countdown", [Item("\\boxed{2*3}", truth, question, record)], MODES[0])
        assert found.accuracy == 1.0
        found = grading.grade_items("countdown", [Item("\\boxed{2*3}", truth, question, record)])
        assert found.accuracy == 1.0


@pytest.mark.parametrize(
    ("truth", "record"),
    [
        ("24", {}),  # a target alone; it was read as the numbers [2] and the target 4
        ([[3, 8], 24.5], {}),
        ([[3, 8.5], 24], {}),
        ("24.5", {"numbers": [3, 8]}),
        ([["3", "x"], 24], {}),
        ([[], 24], {}),
        ([[3, 8], None], {}),
        (None, {"numbers": [3, 8], "target": "many"}),
        ([[3, 8], float("nan")], {}),
        ([[3, 8], True], {}),
        ("[[3, 8], 24", {}),
    ],
)
def test_countdown_problems_that_are_none_are_shown(truth: object, record: dict[str, object]):
    for mode in MODES:
        with pytest.raises(ConfigError, match="an item has no numbers and target"):
            grading.grade_items("countdown", [Item("\\boxed{3*8}", truth, "", record)], mode)


@pytest.mark.parametrize(
    "puzzle",
    [
        "1234341200000000",
        "12343412........",
        "1234\n3412\n____\n____",
        "1234 3412 0000 0000",
        "12|34\n34|12\n--+--\n..|..\n..|..\n",
    ],
)
def test_blanks_and_layouts_of_a_sudoku_puzzle(puzzle: str):
    solved = "<answer>1234341221434321</answer>"
    for record, question in (({"puzzle": puzzle}, ""), ({}, puzzle)):
        item = Item(solved, "1234341221434321", question, record)
        assert sudoku_puzzle(item) == "1234341200000000"
        for mode in MODES:
            report = grading.grade_items("sudoku", [item], mode)
            assert (report.solved, report.cells) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", ""), ("a.jsonl", "\n"), ("a.csv", "completion,answer\n"), ("a.json", "[]")]
)
def test_a_file_without_records_is_refused(name: str, text: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    args = run(str(tmp_path / name), "--task", "gsm8k")
    with pytest.raises(ConfigError, match=f"{name}: got (an empty file|no records), needs one"):
        args.run(args)
