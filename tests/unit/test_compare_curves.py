"""Runs added up: against numbers worked out by hand, and intervals that cover what they say."""

import math
from typing import Any

import numpy as np
import pytest

from stp_rs.errors import ConfigError
from studies.compare import curves
from studies.compare.factors import effects
from studies.compare.table import crossed, difference, make_rows, markdown, task_tables


def record(
    variant: str, seed: int, scores: list[float], seconds: list[float], *, test: float = 0.5, **columns: Any
) -> dict[str, Any]:
    """Return a run evaluated every 10 updates of 32 completions; 100 canvases an update, 20 of them with a gradient."""
    points = [
        {
            "update": 10 * i,
            "rollouts": 320 * i,
            "forwards": {"rollout": 800 * i, "likelihood": 200 * i, "backward": 200 * i},
            "forward_equivalents": 1400 * i,
            "cpu_seconds": second,
            "cpu_seconds_rollout": second / 2,
            "gpu_seconds": 0.0,
            "solved_free": score,
            "solved_prior": score,
            "distinct": None if i == 0 else 4.0,
            "zero_std_share": None if i == 0 else 0.25,
            **{name: None if i == 0 else value for name, value in columns.items()},
        }
        for i, (score, second) in enumerate(zip(scores, seconds, strict=True))
    ]
    scored = {"solved_free": test, "solved_prior": test}
    selected = {"update": points[-1]["update"], **scored}
    return {
        **{"variant": variant, "preset": variant, "task": "sudoku", "seed": seed, "identity": {}},
        **{"curve": points, "test": scored, "selected": selected},
    }


CHEAP = [record("cheap", 0, [0.0, 0.4, 0.8], [0, 1, 2]), record("cheap", 1, [0.2, 0.4, 0.6], [0, 1, 3])]
DEAR = [record("dear", 0, [0.0, 0.5, 0.9], [0, 4, 8]), record("dear", 1, [0.2, 0.5, 0.7], [0, 4, 8])]


def test_equal_compute_is_read_between_evaluations():
    sums = curves.aggregate([*CHEAP, *DEAR])
    seconds = sums["axes"]["cpu_seconds"]
    assert seconds["grid"][-1] == 2.0, "the shortest run's seconds"
    # at 2 s: cheap 0.8 and 0.4 + (2 - 1) / (3 - 1) * 0.2 = 0.5; dear 0.0 + 2/4 * 0.5 = 0.25 and 0.2 + 2/4 * 0.3 = 0.35
    assert seconds["end"]["cheap"]["mean"] == pytest.approx(0.65)
    assert seconds["end"]["dear"]["mean"] == pytest.approx(0.30)
    versus = seconds["end"]["dear"]["versus"]
    assert versus["difference"] == pytest.approx((-0.55 - 0.15) / 2)
    assert versus["seeds"] == 2
    assert "gpu_seconds" not in sums["axes"]
    assert sums["clock"] == "cpu_seconds"


def test_equal_rollouts_compare_the_ends():
    sums = curves.aggregate([*CHEAP, *DEAR])
    for axis, end in (("rollouts", 640.0), ("forward_equivalents", 2800.0)):
        entry = sums["axes"][axis]
        assert entry["grid"][-1] == end
        assert entry["end"]["cheap"]["mean"] == pytest.approx(0.7)
        assert entry["curves"]["cheap"]["solved_free"]["mean"][curves.GRID // 2] == pytest.approx(0.4)
        assert entry["curves"]["dear"]["solved_free"]["mean"][-1] == pytest.approx(0.8)


def test_the_compute_to_a_score_is_where_the_mean_curve_first_gets_there():
    sums = curves.aggregate([*CHEAP, *DEAR], baseline="dear", reference="cheap")
    assert sums["target"] == pytest.approx(0.7)
    reach = sums["axes"]["cpu_seconds"]["to_reach"]
    assert reach["dear"] == pytest.approx(4 + 4 * (0.7 - 0.5) / (0.8 - 0.5), abs=0.01)
    # seed 0 ended at 2 s with 0.8; seed 1 goes on to 0.6 at 3 s
    assert reach["cheap"] == pytest.approx(3, abs=0.01)
    assert sums["axes"]["rollouts"]["to_reach"]["cheap"] == pytest.approx(640)
    line = np.linspace(0, 4, 5)
    assert curves.first_reach(line, np.array([0.5, 0.1, 0.2, 0.6, 0.6]), 0.4) == 0.0
    assert curves.first_reach(line, np.array([0.0, 0.2, 0.6, 0.1, 0.9]), 0.4) == pytest.approx(1.5)
    assert curves.first_reach(line, np.zeros(5), 0.1) is None


def test_an_interval_needs_two_seeds_and_is_students():
    assert curves.t_interval([0.5]) is None
    low, high = curves.t_interval([1.0, 3.0]) or (0, 0)
    assert (low, high) == (pytest.approx(2 - 12.706), pytest.approx(2 + 12.706))
    low, high = curves.t_interval(np.arange(5.0)) or (0, 0)
    assert high - 2 == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5), abs=1e-3)
    low, high = curves.t_interval(np.arange(41.0)) or (0, 0)  # 40 degrees of freedom: 2.0211
    assert (high - 20) / (np.arange(41.0).std(ddof=1) / math.sqrt(41)) == pytest.approx(2.0211, abs=2e-3)
    assert curves.summary([0.9, 1.0])["high"] == 1.0, "a share has no more"
    assert curves.summary([9.0, 10.0], share=False)["high"] > 10


def test_differences_are_between_runs_of_one_seed():
    runs = [record("a", seed, [0.0], [0], test=0.3 + 0.1 * seed) for seed in (1, 2, 3)]
    base = [record("b", seed, [0.0], [0], test=0.1 * seed) for seed in (3, 2, 0)]
    found = curves.paired(runs, base, lambda run: run["test"]["solved_free"])
    assert found is not None
    assert found["seeds"] == 2
    assert found["difference"] == pytest.approx(0.3)
    assert found["bootstrap"] == pytest.approx([0.3, 0.3])
    assert curves.paired(runs, [], lambda run: 0.0) is None
    alone = curves.paired(runs[:1], runs[:1], lambda run: 1.0)
    assert alone == {"seeds": 1, "difference": 0.0, "bootstrap": None, "t": None}


@pytest.mark.parametrize(
    ("seeds", "bootstrap", "student"), [(20, (0.90, 0.96), (0.93, 0.97)), (5, (0.78, 0.88), (0.93, 0.97))]
)
def test_paired_intervals_cover_what_they_say(seeds: int, bootstrap: tuple[float, float], student: tuple[float, float]):
    """A seed moves both variants by 1, the difference by 0.1: only pairs see it. Five seeds are too few to resample."""
    generator = np.random.default_rng(5)
    truth, hits, trials = 0.05, {"bootstrap": 0, "t": 0}, 1000
    for _ in range(trials):
        common = generator.normal(size=seeds)
        own = truth + 0.1 * generator.normal(size=seeds)
        runs = [{"seed": seed, "x": common[seed] + own[seed]} for seed in range(seeds)]
        base = [{"seed": seed, "x": common[seed]} for seed in range(seeds)]
        found = curves.paired(runs, base, lambda run: run["x"])
        assert found is not None
        for name in hits:
            low, high = found[name]
            hits[name] += low <= truth <= high
    assert bootstrap[0] <= hits["bootstrap"] / trials <= bootstrap[1]
    assert student[0] <= hits["t"] / trials <= student[1]


def test_the_table_has_a_row_per_variant():
    runs = [*CHEAP, *DEAR]
    rows = make_rows(runs, curves.aggregate(runs))
    assert [row["variant"] for row in rows] == ["cheap", "dear"]
    assert rows[0]["cpu_seconds"] == 2.5
    assert rows[0]["rollout_cpu_seconds"] == 1.25
    assert rows[1]["rollout_forwards"] == 1600
    assert rows[1]["distinct"] == 4.0
    assert rows[0]["logp_var"] is None
    text = markdown([*runs, {**CHEAP[0], "task": "countdown"}])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert text.count("### ") == 2
    assert len({len(line) for line in lines[:4]}) == 1, "columns are aligned"
    assert "likelihood variance" not in text
    measured = [record("noisy", seed, [0.1, 0.2], [0, 1], logp_var=4.0, grad_snr=1.5) for seed in (0, 1)]
    assert "| 4.00 " in task_tables("sudoku", measured)


def test_algorithms_and_prunings_make_a_table_of_their_own():
    names = ("elbo", "elbo/stp", "grpo", "stp/none")
    runs = [record(name, 0, [0, 0], [0, 1], test=0.2 + i / 10, grad_snr=1.5) for i, name in enumerate(names)]
    lines = crossed(make_rows(runs, curves.aggregate(runs)))
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in [lines[0], *lines[2:]]] == [
        ["algorithm", "as preset", "none", "stp"],
        ["elbo", "0.200; 1.0 s; SNR 1.50", "-", "0.300; 1.0 s; SNR 1.50"],
        ["grpo", "0.400; 1.0 s; SNR 1.50", "-", "-"],
        ["stp", "-", "0.500; 1.0 s; SNR 1.50", "-"],
    ]
    assert crossed(make_rows(runs[:1], curves.aggregate(runs[:1]))) == []


def test_a_difference_is_bold_where_both_intervals_leave_out_zero():
    entry = {"difference": 0.2, "seeds": 5, "bootstrap": [0.1, 0.3], "t": [0.05, 0.35]}
    assert difference(entry, False) == "**+0.200** [+0.050, +0.350; +0.100, +0.300]"
    assert difference({**entry, "t": [-0.05, 0.45]}, False).startswith("+0.200 [")
    assert difference({**entry, "t": None}, False) == "+0.200"
    assert difference(entry, True) == difference(None, False) == "-"


def test_the_figure_is_drawn(tmp_path: Any):
    pytest.importorskip("matplotlib")
    from studies.compare.plot import draw

    def drawn(runs: list[dict[str, Any]]) -> str:
        draw(runs, tmp_path / "out.svg")
        return (tmp_path / "out.svg").read_text()

    draw([*CHEAP, *DEAR], tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 4000
    few, many = drawn([*CHEAP, *DEAR]), drawn([*CHEAP, *({**run, "seed": run["seed"] + 2} for run in CHEAP)])
    assert few.count("stroke-opacity: 0.4") == 8, "a line per run and panel"
    assert many.count("opacity: 0.16") == 2, "a band per panel"


def test_students_p_is_that_of_the_tables():
    # t = 2.776 is the two-sided 5 % point at 4 degrees of freedom, 4.303 at 2, 12.706 at 1
    for t, n in ((2.7764, 5), (4.3027, 3), (12.7062, 2), (2.2622, 10)):
        values = np.linspace(-1, 1, n)
        values *= 1 / values.std(ddof=1)
        assert curves.t_test(values + t / math.sqrt(n)) == pytest.approx(0.05, abs=2e-5)
    assert curves.t_test([0.1]) is None
    assert curves.t_test([0.2, 0.2]) is None
    assert curves.t_test([-0.1, 0.1]) == pytest.approx(1.0)


def test_holm_steps_down_and_counts_hypotheses_without_a_p():
    assert curves.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert curves.holm([0.5, None, 0.01]) == [1.0, None, pytest.approx(0.03)]
    assert curves.holm([]) == []


def test_a_collapse_shows_beside_the_checkpoint_that_hides_it():
    runs = [
        record("stp", 0, [0.3, 0.8, 0.1], [0, 1, 2], test=0.1),
        record("stp", 1, [0.3, 0.5, 0.6], [0, 1, 2], test=0.6),
        record("elbo", 0, [0.3, 0.4, 0.39], [0, 1, 2], test=0.4),
        record("elbo", 1, [0.3, 0.3, 0.2], [0, 1, 2], test=0.2),
    ]
    runs[0]["selected"]["solved_free"] = 0.8
    assert [curves.collapsed(run) for run in runs] == [True, False, False, True]
    row = make_rows(runs, curves.aggregate(runs, "elbo"))[0]
    assert row["collapsed"] == 1
    assert (row["final_free"]["mean"], row["selected_free"]["mean"]) == (pytest.approx(0.35), pytest.approx(0.7))
    assert row["final_seeds"] == [0.1, 0.6]
    stated = [{"name": "h", "task": "sudoku", "variant": "stp", "than": "elbo"}]
    text = markdown(runs, "elbo", hypotheses=stated)
    assert "-0.300 +0.400" in text, "every seed's difference, of the last policies"
    assert "collapsed" in text
    assert "0.10 0.60" in text


def factorial(noise: float = 0.0) -> list[dict[str, Any]]:
    """Return 2 x 3 runs whose scores are sums of what their levels are worth."""
    worth = {"m": {2: 0.1, 4: -0.1}, "states": {"canvas": 0.2, "spread": -0.3, "state": 0.1}}
    return [
        {
            "task": "t",
            "identity": {"m": m, "states": states},
            "test": {"solved_free": 0.5 + worth["m"][m] + worth["states"][states] + noise * (-1) ** (i + j) * (1 - j)},
        }
        for i, m in enumerate((2, 4))
        for j, states in enumerate(("canvas", "spread", "state"))
    ]


def test_effects_of_levels_are_what_they_are_worth():
    found = {(e.factor, e.level): e for e in effects(factorial(), ["m", "states"])}
    assert found["m", 2].effect == pytest.approx(0.1)
    assert found["m", 4].effect == pytest.approx(-0.1)
    assert [found["states", name].effect for name in ("canvas", "spread", "state")] == pytest.approx([0.2, -0.3, 0.1])
    assert (found["m", 2].runs, found["states", "state"].runs) == (3, 2)
    assert found["m", 2].half == pytest.approx(0.0, abs=1e-9)
    noisy = {(e.factor, e.level): e for e in effects(factorial(0.05), ["m", "states"])}
    assert noisy["m", 2].half > 0.02
    assert abs(noisy["m", 2].effect - 0.1) < noisy["m", 2].half


def test_factors_that_the_runs_cannot_tell_apart_are_refused():
    runs = factorial()
    for run in runs:
        run["identity"]["same"] = run["identity"]["m"]
    with pytest.raises(ConfigError, match="cannot tell"):
        effects(runs, ["m", "same"])
    with pytest.raises(ConfigError, match="two levels"):
        effects([run for run in runs if run["identity"]["m"] == 2], ["m"])
