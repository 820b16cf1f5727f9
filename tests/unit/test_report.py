"""What a run shows: the HTML report and the tables of the terminal."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stp_rs.cli.console import Console, result_lines
from stp_rs.config.sections import STPConfig
from stp_rs.eval.report import line_chart, running_mean, write_report
from stp_rs.text import table

HOSTILE = "<script>alert('x')</script> & \"quoted\" </td></table> \u202e 🦀"
SUMMARY: dict[str, Any] = {
    "task": HOSTILE,
    "preset": "stp",
    "seed": 0,
    "solved_before": 0.25,
    "solved_after": 0.875,
    "solved_after_prior": 1.0,
    "nfe_per_completion": {"free": 20.0, "prior": 8.0, "training": None},
    "forwards": {"rollout": 12345, "likelihood": 10, "backward": 5},
    "seconds": {"sft": 1.0, "rl": 2.0, "rollout": 1.5, "update": 0.5, "eval": 0.1, "total": 4.0},
    "steps": 3,
    "eval_size": 8,
    "samples": [{"prompt": HOSTILE, "before": HOSTILE, "after": "<b>"}],
}
VOID = {"meta"}


class Page(HTMLParser):
    """Fails on a tag that is never closed or closed out of order, and collects what is shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "tags that were never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_check_sees_a_page_that_is_broken():
    with pytest.raises(AssertionError):
        Page("<p><b>x</p></b>")
    with pytest.raises(AssertionError, match="never closed"):
        Page("<p>")


def report(run: Path, lines: list[dict[str, float]]) -> Page:
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_a_report_is_well_formed_and_shows_hostile_text_as_text(tmp_path: Path):
    page = report(tmp_path, [{"step": s, "reward": s / 2, "diffusion/nfe": 8.0} for s in (1, 2, 3)])
    assert not {"script", "link", "img", "iframe", "b>"} & set(page.tags)
    assert page.tags.count("svg") == 2, "a chart for each metric that was logged"
    assert "".join(page.text).count(HOSTILE) == 4, "in the title, the heading and two cells"
    assert not [name for name, value in page.attributes if name.startswith("on") or "http" in (value or "")]
    assert "25.0% → 87.5%" in page.text


@pytest.mark.parametrize("lines", [[], [{"step": 1, "reward": 0.5}], [{"step": 1}, {"step": 2, "reward": 1e-30}]])
def test_a_report_of_a_short_run_is_well_formed_too(lines: list[dict[str, float]], tmp_path: Path):
    assert report(tmp_path, lines).tags.count("svg") == (1 if any("reward" in line for line in lines) else 0)


def test_a_chart_maps_values_to_its_frame():
    assert line_chart([], []) == ""
    chart = line_chart([0, 10], [1.0, 3.0], width=520, height=220)
    assert "points='54.0,196.0 510.0,8.0'" in chart
    assert "1</text>" in chart
    assert "3</text>" in chart
    assert "nan" not in line_chart([1, 2], [5.0, 5.0])


def test_a_running_mean_is_shorter_at_the_ends():
    assert running_mean([1, 2, 3, 10], 1) == [1.5, 2.0, 5.0, 6.5]
    assert running_mean([4.0], 3) == [4.0]


def test_tables_cut_long_texts_in_the_middle():
    text = table(("prompt", "completion"), [("p\nq", "one"), ("a" * 50 + "z", "two")])
    head, rule, first, second = text.split("\n")
    assert (head.index("completion"), first.index("one")) == (second.index("two"), head.index("completion"))
    assert "p\\nq" in first
    assert "..." in second
    assert len({len(line.rstrip()) for line in (rule, head)}) <= 2


def test_the_closing_lines_state_the_result(capsys: pytest.CaptureFixture[str]):
    text = result_lines(SUMMARY, "runs/x")
    assert "solved 0.250 -> 0.875 (with priors 1.000) on 8 held-out problems" in text
    assert "rollout 12,345" in text
    console = Console(STPConfig.make(), quiet=True)
    console.events().on_phase("sft", 3)
    console.finish(SUMMARY)
    printed = capsys.readouterr()
    assert "report: runs/quickstart/report.html" in printed.out
    assert printed.err == "", "quiet shows no bar"
