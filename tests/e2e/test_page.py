"""The report in a real browser: the viewer moves, its counts are the trajectory's, and hostile text has no effect."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stp_rs.train.report import page
from stp_rs.train.report.facts import collect
from tests.browser import MISSING, Browser, available, browser
from tests.unit.test_report import HOSTILE, SUMMARY, write_run

pytestmark = pytest.mark.skipif(not available(), reason=MISSING)


def decode(steps: list[int], tail: int | None = None, text: str = "a") -> dict[str, Any]:
    """Return a completion that was revealed at these steps."""
    return {
        "tokens": [f"{text}{i}" for i in range(len(steps))],
        "steps": steps,
        "logprob": [-0.5] * len(steps),
        "nfe": max(steps) + 1,
        "tail": tail,
        "stop": "its plan",
        "reward": 1.5,
        "rewards": {"right": 1.0, HOSTILE: 0.5},
        "solved": True,
    }


PRUNED, UNPRUNED = [-1, -1, 0, 1, 2, 2, 2, -3], [0, 1, 2, 3, 4, 5, 6, 7]
SCENES = [
    {"place": "best", "group": 0, "prompt": "2 + 2", "pruned": decode(PRUNED, 2), "unpruned": decode(UNPRUNED)},
    {"place": "worst", "group": 0, "prompt": HOSTILE, "pruned": decode([0], text=HOSTILE), "unpruned": decode([0])},
]
LINES = [{"step": s, "reward": s / 50, "diffusion/group_reward_std": 0.1, "diffusion/nfe": 3.0} for s in range(1, 51)]


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture
def report(tmp_path: Path) -> Path:
    data = collect(write_run(tmp_path / "run", LINES, SUMMARY))
    data |= {"kept": [{"step": 1, "scenes": SCENES[::-1]}, {"step": 50, "scenes": SCENES}], "title": HOSTILE}
    path = tmp_path / "report.html"
    path.write_text(page(json.dumps(data)), encoding="utf-8")
    return path


def counts(window: Browser) -> list[list[int]]:
    """Return (forwards, tokens, tokens that look revealed) of both decodes."""
    script = "return [...document.querySelectorAll('.decode')].map(d => [+d.dataset.forwards, +d.dataset.tokens,"
    return list(window.run(script + "d.querySelectorAll('.t.on').length])"))


def expected(forwards: int) -> list[list[int]]:
    found = []
    for steps in (PRUNED, UNPRUNED):
        nfe = max(steps) + 1
        done = min(forwards, nfe)
        on = sum(step == -1 or 0 <= step < done or (step == -3 and done == nfe) for step in steps)
        found.append([done, on, on])
    return found


def test_the_slider_shows_the_trajectory_forward_by_forward(window: Browser, report: Path):
    window.open(report)
    slide = "const s = document.querySelector('input[type=range]'); s.value = arguments[0];"
    slide += "s.dispatchEvent(new Event('input'))"
    for forwards in (0, 1, 2, 3, 5, 8):
        window.run(slide, forwards)
        assert counts(window) == expected(forwards)
    window.run(slide, 0)
    window.press("right", "right")
    assert counts(window) == expected(2)
    window.press("left")
    assert counts(window) == expected(1)
    assert window.console() == []


def test_play_runs_to_the_end(window: Browser, report: Path):
    window.open(report)
    window.run("document.querySelector('button[aria-label=play]').click()")
    assert counts(window) == expected(0), "from the start"
    window.run(
        "return new Promise(done => setInterval(() => {"
        "if (document.querySelector('button[aria-label=play]').textContent.includes('play')) done() }, 50))"
    )
    assert counts(window) == expected(8)


def test_kinds_of_tokens_differ_in_shape(window: Browser, report: Path):
    window.open(report)
    script = "return [...document.querySelectorAll('.decode .t')].slice(0, 8).map(t => {const s = getComputedStyle(t);"
    looks = window.run(script + "return [s.borderStyle, s.borderRadius, s.boxShadow, s.fontStyle].join()})")
    prior, drawn, tail, filler = looks[0], looks[2], looks[4], looks[7]
    assert len({prior, drawn, tail, filler}) == 4
    assert looks == [prior, prior, drawn, drawn, tail, tail, tail, filler]


def test_a_token_is_read_by_pointing_at_it(window: Browser, report: Path):
    window.open(report)
    window.hover(".decode .t:nth-child(5)")
    read = window.run("return document.querySelector('.readout').textContent")
    assert (
        read == "place 5: “a4”, revealed by forward 3 of 3, with all that was left; log-prob -0.500 (probability 0.607)"
    )


def test_curves_are_read_by_pointing_at_them(window: Browser, report: Path):
    window.open(report)
    window.hover(".charts .u-over")
    read = window.run(
        "return [...document.querySelectorAll('.charts .u-legend')[0].querySelectorAll('.u-value')]"
        ".map(value => value.textContent)"
    )
    step = int(read[0])
    assert read == [str(step), *(f"{step / 50 + shift:.3g}" for shift in (0, 0.1, -0.1))]
    assert window.console() == []


def test_hostile_text_is_text(window: Browser, report: Path):
    window.open(report)
    window.run("document.querySelectorAll('.rows button')[1].click(); document.querySelector('details').open = true")
    assert window.run("return document.title.startsWith('stp_rs: </script>')")
    assert window.run("return document.querySelectorAll('main img, main script, main iframe').length") == 0
    assert window.run("return document.querySelector('.prompt').textContent.startsWith('</script><script>')")
    assert window.console() == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_answers_fit_the_first_screen_and_nothing_is_cut_off(
    width: int, height: int, theme: str, window: Browser, report: Path
):
    window.open(report, width=width, height=height, theme=theme)
    bottom = window.run("return document.querySelector('.answers').getBoundingClientRect().bottom")
    assert bottom <= height
    assert window.run("return document.documentElement.scrollWidth") <= width
    dark = window.run("return getComputedStyle(document.body).backgroundColor").split("(")[1].split(",")[0]
    assert (int(dark) < 128) == (theme == "dark")
    assert window.console() == []
