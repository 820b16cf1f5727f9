"""The variance table, its figure and its command."""

import builtins
import json
import math
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch

from stp_rs import Design, errors
from stp_rs.cli.main import main
from stp_rs.config import PRUNINGS, TaskConfig
from stp_rs.data.trajectories import Rollout
from stp_rs.eval import alignment
from stp_rs.eval.pictures import sampled_variance, variance_by_anchors, with_random_anchors
from stp_rs.eval.plot import Pictures, draw, require_matplotlib
from stp_rs.eval.prunings import PRUNED, with_pruning
from stp_rs.eval.variance import (
    AlignmentRow,
    Setting,
    VarianceRow,
    list_measurements,
    measure,
    pruned_batches,
    ratio,
    summarise,
    to_json,
)
from stp_rs.objective.masks import MAX_TOKENS
from stp_rs.testing.exact import exact_levels, plan_elbo, score_table
from stp_rs.testing.tabular import TabularPolicy
from stp_rs.testing.variance import independent_variance
from tests.fixtures import record

ROWS, LENGTH = 4, 5


def setting(draws: int = 40) -> Setting:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn((1 << LENGTH, 2**LENGTH), generator=generator, dtype=torch.float64)
    policy = TabularPolicy(logits, vocab_size=2, length=LENGTH)
    return Setting(policy, temperature=1.0, diffusion_steps=LENGTH, block_length=2, draws=draws, seed=0)


def completions() -> Rollout:
    """Return rows with one anchor whose last two of four free tokens were committed together."""
    generator = np.random.default_rng(1)
    unmask_step = np.full((ROWS, LENGTH), -1, np.int32)
    for row in unmask_step:
        row[generator.permutation(LENGTH)[:4]] = [0, 1, 2, 2]
    return record(
        prompt_ids=np.zeros((ROWS, 1), np.int64),
        prompt_length=np.ones(ROWS, np.int32),
        token_ids=generator.integers(0, 2, (ROWS, LENGTH)),
        unmask_step=unmask_step,
        uid=np.arange(ROWS, dtype=np.uint64),
    )


def test_a_cell_agrees_with_the_exact_numbers():
    given = setting(draws=120)
    batches = {batch.pruning: batch for batch in pruned_batches(given, completions())}
    assert list(batches) == list(PRUNED)
    for pruning, batch in batches.items():
        cell = measure(given, Design("uniform_count", 2), batch)
        exact = [exact_levels(score_table(given.model, batch.rows, row)) for row in range(ROWS)]
        parts = [sum(independent_variance(levels, plan, 2)) for levels, plan in zip(exact, batch.plans, strict=True)]
        assert cell.variance_R == pytest.approx(parts, rel=0.6)
        line = summarise(cell)
        assert line.bias_ci[0] - 0.1 < 0 < line.bias_ci[1] + 0.1
        assert line.variance == pytest.approx(np.mean(parts), rel=0.3)
        assert (line.passes, line.forwards) == (2, 2.0)
        assert line.tokens == {"none": 5, "spatial": 4, "temporal": 5, "both": 4}[pruning]
        assert line.per_token_sd == pytest.approx(math.sqrt(line.variance) / line.tokens, rel=1e-9)
        plan = batch.plans[0]
        spread = sum(c / count for c, count in zip(-np.diff([*plan, 0]), plan, strict=True)) - 1
        assert line.coverage_variance == pytest.approx(spread / 2)
        assert line.gradient_trace_ci[0] <= line.gradient_trace <= line.gradient_trace_ci[1]


def test_the_bias_is_measured_against_what_a_design_estimates():
    given = setting(draws=3)
    batches = {batch.pruning: batch for batch in pruned_batches(given, completions())}
    both = batches["both"]
    all_at_once = measure(given, Design("mean_field", 1), both)
    for row, plan in enumerate(both.plans):
        want = plan[0] * both.levels[row].a[plan[0]] - plan_elbo(both.levels[row], plan)
        assert all_at_once.bias_R[row] == pytest.approx(want, abs=1e-5)
    every_state = measure(given, Design("trajectory", 8), both)
    assert every_state.bias_R == pytest.approx(np.zeros(ROWS), abs=1e-6)
    assert every_state.forwards_R.tolist() == [3.0] * ROWS
    left_to_right = summarise(measure(given, Design("autoregressive", 1), both))
    assert (left_to_right.passes, left_to_right.bias, left_to_right.variance) == (4, 0.0, 0.0)
    assert left_to_right.gradient_snr is None
    full, merged = both.target(0, "full_elbo"), both.target(0, "plan_elbo")
    assert full == pytest.approx(batches["spatial"].target(0, "plan_elbo"))
    assert full != pytest.approx(merged, abs=1e-3)


def test_a_mean_per_token_is_scaled_to_the_whole_completion():
    given = setting(draws=30)
    batch = pruned_batches(given, completions())[0]
    pair = [summarise(measure(given, Design(name, 1), batch)) for name in ("stp_paper", "uniform_count")]
    paper = [sum(c * levels.a[c] for c in range(1, 6)) / 5 for levels in batch.levels]
    target = [batch.target(row, "plan_elbo") for row in range(ROWS)]
    assert pair[0].bias == pytest.approx(np.mean(np.array(paper) - target), abs=0.5)
    assert pair[0].gradient_trace < pair[1].gradient_trace
    assert pair[0].coverage_variance == pytest.approx(6 * 4 / (4 * 25))


def test_cells_are_listed_once_and_refusals_say_why():
    given = setting()
    batches = pruned_batches(given, completions())
    pairs, refused = list_measurements(given, batches, ["mean_field", "coupled", "balanced", "ordered", "cover"])
    keys = [(design.name, design.num_mc, batch.pruning) for design, batch in pairs]
    assert len(set(keys)) == len(keys)
    assert [key for key in keys if key[0] == "mean_field"] == [("mean_field", 1, pruning) for pruning in PRUNED]
    assert [key[1] for key in keys if key[0] == "coupled" and key[2] == "none"] == [2, 4, 8]
    assert {key[2] for key in keys if key[0] == "balanced" and key[1] == 2} == {"temporal", "both"}
    assert any(line.startswith("coupled, K = 1, none") for line in refused)
    assert any(line.startswith("balanced, K = 2, none") and "merge the tail" in line for line in refused)


def test_a_ratio_is_paired_by_row():
    base = np.exp(np.random.default_rng(0).normal(size=50) * 3)
    middle, low, high = ratio(base * 0.5, base)
    assert (middle, low, high) == pytest.approx((0.5, 0.5, 0.5))
    middle, low, high = ratio(base[::-1] * 0.5, base)
    assert middle == pytest.approx(0.5)
    assert low < middle < high


def test_a_run_without_pruning_is_studied_with_the_presets():
    assert with_pruning(TaskConfig(preset="elbo")).stp_temporal == PRUNINGS["stp"]["stp_temporal"]
    pruned = TaskConfig(preset="stp", stp_temporal="steps:0.4")
    assert with_pruning(pruned) is pruned


def test_anchors_are_nested_and_shorten_the_estimate():
    given, rows = setting(), completions()
    everything = pruned_batches(given, rows)[0].rows
    few, many = (with_random_anchors(everything, share, 0).unmask_step for share in (0.4, 0.8))
    assert (few == -1).sum(1).tolist() == [2] * ROWS
    assert (many == -1).sum(1).tolist() == [4] * ROWS
    assert (many[few == -1] == -1).all()
    from stp_rs.objective.noise import Estimator

    estimator = Estimator(Design("uniform_count", 2))
    curve = variance_by_anchors(given.model, everything, estimator, 60, shares=(0.0, 0.4, 1.0))
    assert curve[0] == (1.0, 1.0, 1.0, 1.0)
    assert curve[1][0] == pytest.approx(0.6)
    assert 0 < curve[1][2] <= curve[1][1] <= curve[1][3]
    assert curve[2] == (0.0, 0.0, 0.0, 0.0)
    exact = [sum(independent_variance(levels, range(5, 0, -1), 2)) for levels in pruned_batches(given, rows)[0].levels]
    assert sampled_variance(given.model, everything, estimator, 300) == pytest.approx(exact, rel=0.5)


# --- the command ---

TRAIN = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "sft_steps": 5, "sft_batch_size": 8,
    "stp_rollouts": 1, "num_generations": 4, "per_device_train_batch_size": 8, "train_size": 16, "eval_size": 4,
    "stp_variance_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("variance") / "run"
    assert main(["train", f"--output_dir={folder}", "--quiet", *(f"--{k}={v}" for k, v in TRAIN.items())]) == 0
    return folder


def test_the_command_writes_the_table(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out.json"
    arguments = ["--rows=3", "--resamples=2", "--designs=coupled,unigrpo,pairs,mean_field"]
    assert main(["variance", f"--model={run}", f"--json={out}", *arguments]) == 0
    table = json.loads(out.read_text())
    assert all(set(row) == {field.name for field in fields(VarianceRow)} for row in table)
    assert {row["design"] for row in table} == {"coupled", "cover", "mean_field", "pairs", "unigrpo", "uniform_count"}
    assert {(row["passes"], row["pruning"]) for row in table if row["design"] == "cover"} == {
        (passes, pruning) for passes in (1, 2, 4, 8) for pruning in PRUNED
    }
    for row in table:
        assert row["published"] == (row["design"] not in ("cover", "pairs"))
        assert row["bias_ci"][0] <= row["bias"] <= row["bias_ci"][1]
        assert row["tokens"] == (8 if row["pruning"] in ("spatial", "both") else 20)
        assert row["forwards"] == row["passes"]
        assert (row["gradient_snr"] is None) == (row["design"] == "mean_field")
    shown = capsys.readouterr().out
    assert "cover K=2 both / unigrpo K=2 none" in shown
    assert "3 rows of at most 8 free tokens" in shown
    assert f"2 to {MAX_TOKENS} free tokens" in shown
    assert "= 0.40 x" in shown, "what is length and what is not"
    assert "spread K=4 both / pairs K=4 both" in shown
    again = tmp_path / "again.json"
    assert main(["variance", f"--model={run}", f"--json={again}", *arguments]) == 0
    assert again.read_bytes() == out.read_bytes(), "keyed: the same command gives the same table"


LEARNT = {**TRAIN, "hidden_size": 32, "sft_steps": 120, "sft_batch_size": 16, "bf16": True, "use_cpu": True}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("variance") / "learnt"
    assert main(["train", f"--output_dir={folder}", "--quiet", *(f"--{k}={v}" for k, v in LEARNT.items())]) == 0
    return folder


def test_without_rows_the_command_measures_the_alignment_only(
    learnt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    rounded, call = set(), alignment.value_and_gradient
    monkeypatch.setattr(
        alignment,
        "value_and_gradient",
        lambda *given, **named: (rounded.add(torch.is_autocast_enabled("cpu")), call(*given, **named))[1],
    )
    out = tmp_path / "out.json"
    given = ["--rows=0", "--batches=3", "--passes=1", "--designs=canvas,state,trajectory", f"--json={out}"]
    capsys.readouterr()
    assert main(["variance", f"--model={learnt / 'warmup'}", *given]) == 0
    table = json.loads(out.read_text())
    assert [(row["design"], row["passes"], row["pruning"]) for row in table] == [
        ("trajectory", 0, "both"),  # every state
        ("trajectory", 1, "both"),
        ("state", 1, "both"),
        ("canvas", 1, "both"),
    ]
    assert all(set(row) == {field.name for field in fields(AlignmentRow)} for row in table)
    every, one, state, canvas = (row["batch_forwards"] for row in table)
    assert canvas == 0.25 < state <= 1.0
    assert one == 1.0 < every == 5.0, "all states, and one of them"
    assert table[0]["mask_noise"] == 0.0 < table[1]["mask_noise"]
    assert rounded == {True}, "the run is in bf16, so are its estimates"
    shown = capsys.readouterr().out
    assert "alignment (95 %)" in shown
    assert "variance" not in shown


def test_no_differing_rewards_and_nothing_to_measure_are_said(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["variance", f"--model={run}", "--rows=0", "--batches=2"]) == 2
    assert "in which no group of completions has rewards that differ" in capsys.readouterr().err
    assert main(["variance", f"--model={run}", "--rows=0", "--batches=0"]) == 2
    assert "needs rows or batches above 0" in capsys.readouterr().err
    assert main(["variance", f"--model={run}", "--rows=0", "--plot=x.png"]) == 2
    assert "the figure needs rows" in capsys.readouterr().err


def test_training_logs_the_noise(run: Path):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line["diffusion/logp_var"] >= 0 for line in lines if "diffusion/grad_snr" in line)


def test_bad_arguments_are_one_line(run: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["variance", f"--model={run}", "--resamples=1"])
    assert main(["variance", f"--model={run}", "--designs=covr"]) == 2
    assert main(["variance", f"--model={run}", "--passes=two"]) == 2
    assert main(["variance", f"--model={run / 'nowhere'}"]) == 2
    errors_shown = capsys.readouterr().err
    assert "--resamples: got '1', needs a whole number of at least 2" in errors_shown
    assert "--designs: got covr, needs some of mean_field" in errors_shown
    assert "--passes: got 'two'" in errors_shown
    assert "nowhere" in errors_shown


def test_without_matplotlib_the_figure_names_its_extra(monkeypatch: pytest.MonkeyPatch):
    plain = builtins.__import__

    def missing(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(errors.ConfigError, match=r"stp-rs\[plot\]"):
        require_matplotlib()


def test_the_figure_is_small(tmp_path: Path):
    pytest.importorskip("matplotlib")
    given = setting(draws=4)
    batches = pruned_batches(given, completions())
    pairs, _ = list_measurements(given, batches, ["uniform_count", "cover", "mean_field"], passes=(2,))
    cells = [measure(given, design, batch) for design, batch in pairs]
    variance = np.linspace(0.1, 9, 4)
    pictures = Pictures(
        training=[(0, variance, variance / 4), (50, variance / 2, variance / 8)],
        rows=(variance, variance / 4),
        anchors=[(1 - s / 7, 1 - s / 8, 0.9 - s / 8, 1.1 - s / 8) for s in range(7)],
    )
    draw(cells, pictures, tmp_path / "deep" / "figure.png")
    written = (tmp_path / "deep" / "figure.png").read_bytes()
    assert written.startswith(b"\x89PNG")
    assert len(written) < 150_000
    assert to_json([summarise(cells[0])])[0] == asdict(summarise(cells[0]))
