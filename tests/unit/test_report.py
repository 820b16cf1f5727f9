"""The report of a run: its answers, its curves, and a page that no text can break."""

import json
from pathlib import Path
from typing import Any

import pytest

from stp_rs.config import TaskConfig
from stp_rs.errors import CheckpointError
from stp_rs.text import table
from stp_rs.train.console import Console, result_lines
from stp_rs.train.report import page, write_report
from stp_rs.train.report.facts import POINTS, collect, curves, healthy, learned, ledger, saved, wilson

HOSTILE = "</script><script>document.title='pwned'</script><img src=x onerror=f()> & \u202e\x1b[2J \ud800 🦀 \u2028"
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
    "samples": [{"prompt": HOSTILE, "before": HOSTILE, "after": "<b>", "before_solved": False, "after_solved": True}],
    "environment": {"python": HOSTILE},
}


def shown_data(path: Path) -> dict[str, Any]:
    """Return the values that a page holds."""
    text = path.read_text(encoding="utf-8")
    start = text.index("id=data>") + len("id=data>")
    return dict(json.loads(text[start : text.index("</script>", start)]))


def write_run(run: Path, lines: list[dict[str, float]], summary: dict[str, Any] | None = None) -> Path:
    """Write a run folder by hand."""
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if summary is not None:
        (run / "summary.json").write_text(json.dumps(summary))
    return run


def test_hostile_text_stays_in_the_data_and_is_inert(tmp_path: Path):
    path = write_report(write_run(tmp_path, [{"step": 1, "reward": 0.5}], SUMMARY))
    data = shown_data(path)
    assert data["held_out"][0]["prompt"].startswith("</script><script>")
    assert data["held_out"][0]["prompt"].endswith("& \\u202e\\x1b[2J \\ud800 🦀 \\u2028")
    text = path.read_text(encoding="utf-8")
    assert text.count("</script>") == 5, "the data and four scripts"
    assert "pwned'</script>" not in text
    assert "http-equiv=Content-Security-Policy" in text


@pytest.mark.parametrize("lines", [[], [{"step": 1.0}], [{"step": 1, "reward": 0.5}, {"step": 2}]])
def test_a_run_of_any_length_has_a_report(lines: list[dict[str, float]], tmp_path: Path):
    summary = SUMMARY if not lines else None
    data = shown_data(write_report(write_run(tmp_path, lines, summary)))
    assert [answer["question"] for answer in data["answers"]] == [
        "Did it learn?",
        "What did pruning save?",
        "Is it healthy?",
    ]


def test_a_folder_without_a_run_has_none(tmp_path: Path):
    with pytest.raises(CheckpointError, match="give a run folder"):
        collect(tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "word"), [(0.1, 0.9, "Yes"), (0.9, 0.1, "Worse"), (0.5, 0.52, "Unclear"), (0.0, 1.0, "Yes")]
)
def test_it_learned_where_the_intervals_do_not_meet(before: float, after: float, word: str):
    lines = [{"step": i, "reward": i / 100, "eval_solved": 1 - i / 100} for i in range(1, 101)]
    found = learned(lines, {"solved_before": before, "solved_after": after, "eval_size": 100})
    assert found["word"] == word
    assert found["figure"] == f"{100 * before:.1f} % → {100 * after:.1f} %"
    assert found["figure_note"] == "final; best on validation 99.0 % at step 1"
    assert "0.055 at the start, 0.955 at the end" in found["text"]


def test_the_interval_of_a_share_is_wilsons():
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_saved_forwards_are_those_of_the_unpruned_plan():
    config = TaskConfig(preset="stp", max_completion_length=20)
    last = {"diffusion/forwards_rollout": 132.0, "diffusion/completions": 32.0}
    seconds = {"diffusion/seconds_rollout": 10.0, "diffusion/seconds": 30.0}
    found = saved([{"step": 1, "diffusion/nfe": 5.0, **last, **seconds}], config)
    # 32 completions in groups of 8 share 28 first forwards: 32 * 5 - 28 pruned, 32 * 20 - 28 by the plan
    assert [bar[1] for bar in found["bars"]] == [132, 612]
    assert found["word"] == "4.6 times fewer forwards"
    assert found["figure"] == "5.0 of 20"
    assert f"{10 * (612 / 132 - 1):.1f} s saved of {30 + 10 * (612 / 132 - 1):.1f} s" in found["text"]
    same = {"diffusion/forwards_rollout": 612.0, "diffusion/completions": 32.0}
    assert saved([{"step": 1, "diffusion/nfe": 20.0, **same, **seconds}], config)["word"] == "nothing is pruned"


@pytest.mark.parametrize(
    ("name", "fine", "bad"),
    [
        ("kl", 0.1, 20.0),
        ("clip_ratio/region_mean", 0.01, 0.6),
        ("diffusion/distinct", 6.0, 1.0),
        ("frac_reward_zero_std", 0.2, 1.0),
        ("diffusion/grad_snr", 1.5, 0.0),
    ],
)
def test_a_bad_reading_is_pointed_at(name: str, fine: float, bad: float):
    good = healthy([{"step": i, name: fine} for i in range(50)], {"num_generations": 8})
    assert (good["word"], good["state"]) == ("Nothing stands out", "good")
    assert [row["fine"] for row in good["readings"] if row["fine"] is not None] == [True, True], "alarms, and this one"
    lines = [{"step": i, name: fine if i < 45 else bad} for i in range(50)]
    assert healthy(lines, {"num_generations": 8})["word"] == "Look at 1 reading"


def test_alarms_are_counted_and_pointed_at():
    lines = [{"step": i, **({"alarm/kl": 12.5} if i in (3, 40) else {})} for i in range(50)]
    found = healthy(lines, {})
    assert found["readings"][0] == {"name": "Alarms", "value": "kl (2)", "fine": False}
    assert found["word"] == "Look at 1 reading"
    assert healthy(lines[10:20], {})["readings"][0] == {"name": "Alarms", "value": "none", "fine": True}


@pytest.mark.parametrize(
    ("rewards", "word", "state"),
    [
        ([i / 50 for i in range(50)], "Reward rose", "good"),
        ([1 - i / 50 for i in range(50)], "Reward fell", "bad"),
        ([i % 2 for i in range(50)], "Unclear", "open"),
        ([0.0, 1.0], "Reward so far", "open"),
    ],
)
def test_without_held_out_problems_the_reward_answers(rewards: list[float], word: str, state: str):
    found = learned([{"step": i, "reward": reward} for i, reward in enumerate(rewards, 1)], {})
    assert (found["word"], found["state"]) == (word, state)
    assert "No held-out problems" in found["figure_note"]


def test_evaluations_answer_before_the_rewards_of_training():
    lines = [{"step": i, "reward": 0.5, "eval_reward": score} for i, score in enumerate((0.25, 0.75, 0.5), 1)]
    found = learned(lines, {})
    assert found["figure"] == "0.250 → 0.500"
    assert found["figure_note"] == "reward of the evaluation set, final; best 0.750 at step 2"


def test_a_collapse_after_the_best_score_is_pointed_at():
    lines = [{"step": i, "eval_solved": score} for i, score in enumerate((0.2, 0.9, 0.03))]
    found = healthy(lines, {})
    assert found["readings"][-1] == {"name": "Last validation score, of the best", "value": "3 %", "fine": False}


def test_long_runs_are_means_of_neighbours_and_stay_small(tmp_path: Path):
    names = [f"metric/{i}" for i in range(70)]
    lines = [{"step": s, **{name: s + i / 7 for i, name in enumerate(names)}} for s in range(1, 20_001)]
    found = curves(lines)
    assert found["each"] == 50
    assert len(found["steps"]) == POINTS
    assert found["series"]["metric/0"][:2] == [25.5, 75.5]
    write_run(tmp_path, [line for line in lines if line["step"] % 4 == 0], SUMMARY)
    assert write_report(tmp_path).stat().st_size < 2_000_000


def test_the_ledger_counts_nothing_twice():
    last = {"diffusion/seconds_update": 7.0, "diffusion/seconds_scoring": 2.0, "diffusion/seconds_rollout": 3.0}
    last |= {"diffusion/forwards_likelihood": 30.0, "diffusion/forwards_backward": 20.0}
    found = {part["title"]: dict(part["parts"]) for part in ledger([{"step": 1, **last}])}
    assert sum(found["Seconds"].values()) == 10
    assert found["Forwards"] == {"likelihood, without gradient": 10, "likelihood, with gradient": 20}


def test_options_that_differ_from_the_preset_come_first(tmp_path: Path):
    config = TaskConfig(preset="espo", learning_rate=1e-3)
    write_run(tmp_path, [{"step": 1}])
    (tmp_path / "config.yaml").write_text(json.dumps(config.to_flat()))
    assert collect(tmp_path)["options"]["changed"] == [["learning_rate", "0.001", "0.0003"]]


def test_the_page_runs_its_own_scripts_only():
    text = page("{}")
    assert text.count("'sha256-") == 4
    assert "src=" not in text.split("<script type")[0]
    assert "Copyright (c) 2022 Leon Sorokin" in text


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
    console = Console(quiet=True, closes=False)
    console.on_sft(0, 0.5, 10)
    console.finish(SUMMARY, "runs/quickstart")
    printed = capsys.readouterr()
    assert "report: runs/quickstart/report.html" in printed.out
    assert printed.err == "", "quiet shows no bar"
