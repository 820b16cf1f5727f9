"""`python -m studies.compare` from end to end: runs, resumes, warm-ups, the test split once, stored results."""

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stp_rs.cli.run import TEST_SEED, complete, make_task, prepare_policy
from stp_rs.errors import StpError
from stp_rs.eval.evaluate import evaluate
from stp_rs.models import load_policy
from stp_rs.train.checkpoint import newest_checkpoint
from stp_rs.train.folder import write_config
from studies.compare import worker
from studies.compare.__main__ import main
from studies.compare.plan import Comparison, Job
from studies.compare.runner import Processes
from studies.compare.variants import parse_variants
from tests.fixtures import Watch

OPTIONS: dict[str, Any] = {
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "train_size": 32, "eval_size": 8},
    **{"sft_steps": 60, "sft_learning_rate": 1e-2, "sft_batch_size": 8, "stp_rollouts": 2},
    **{"num_generations": 4, "per_device_train_batch_size": 8},
}
MEASURED = ("cpu_seconds", "cpu_seconds_rollout", "gpu_seconds")


def command(folder: Path, presets: str, *more: str, **options: Any) -> list[str]:
    flags = [f"--{name}={value}" for name, value in {**OPTIONS, **options}.items()]
    paths = [f"--output_dir={folder}", f"--json={folder / 'out.json'}"]
    return [f"--presets={presets}", "--seeds=0,1", *flags, *paths, *more]


def numbers(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a seed decides: neither seconds nor folders."""
    kept = [{k: v for k, v in run.items() if k not in ("compute", "folder")} for run in runs]
    for run in kept:
        run["curve"] = [{k: v for k, v in point.items() if k not in MEASURED} for point in run["curve"]]
    return kept


def one_job(folder: Path, evaluations: int = 10, **options: Any) -> Job:
    """Return the first run of a comparison of `stp`, its folder ready for a worker."""
    given = {**OPTIONS, **options}
    job = Comparison(parse_variants("stp"), (0,), given, output_dir=str(folder), evaluations=evaluations).jobs()[0]
    write_config(job.config, job.folder)
    return job


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    assert main(command(folder, "stp,k4=elbo/stp;num_mc=4", f"--markdown={folder / 'out.md'}", "--jobs=2")) == 0
    return folder


@pytest.mark.slow
def test_a_comparison_holds_curves_scores_and_what_made_them(compared: Path):
    report = json.loads((compared / "out.json").read_text())
    assert report["command"].startswith("python -m studies.compare '--presets=stp,k4=elbo/stp;num_mc=4' --seeds=0,1 ")
    assert [(run["variant"], run["preset"], run["seed"]) for run in report["runs"]] == [
        *(("stp", "stp", 0), ("k4", "elbo", 0)),
        *(("stp", "stp", 1), ("k4", "elbo", 1)),
    ]
    for run in report["runs"]:
        assert [point["update"] for point in run["curve"]] == [0, 2, 4], "optimiser updates: two per rollout batch"
        assert [point["rollouts"] for point in run["curve"]] == [0, 8, 16]
        for before, after in zip(run["curve"], run["curve"][1:], strict=False):
            assert after["forward_equivalents"] > before["forward_equivalents"]
            assert after["cpu_seconds"] > before["cpu_seconds"]
            assert after["forwards"]["rollout"] > before["forwards"]["rollout"]
            assert 1 <= after["distinct"] <= 4
            assert 0 <= after["zero_std_share"] <= 1
        assert run["test"].keys() >= {"solved_free", "solved_prior", "nfe_free", "nfe_prior", "cells"}
        assert run["test"]["nfe_prior"] == 8 < run["test"]["nfe_free"] == 20, "whatever the training pruned"
        assert {"stp_rs", "torch", "device"} <= run["versions"].keys()
    assert report["failures"] == []
    assert report["aggregates"]["sudoku"]["axes"].keys() == {"rollouts", "forward_equivalents", "cpu_seconds"}
    assert [row["variant"] for row in report["table"]["sudoku"]] == ["stp", "k4"]
    assert "| k4 " in (compared / "out.md").read_text()


@pytest.mark.slow
def test_runs_of_a_seed_start_from_one_warm_up(compared: Path, tmp_path: Path):
    assert len(list((compared / "warmup").iterdir())) == 2, "one per seed"
    for seed in (0, 1):
        folders = [compared / "runs" / name / f"seed-{seed}" / "warmup" / "checkpoint-0" for name in ("stp", "k4")]
        shared = [load_policy(folder)[0].state_dict() for folder in folders]
        config = one_job(tmp_path).config
        config = replace(config, seed=seed)
        task = make_task(config)
        own, _ = prepare_policy(complete(config, task), task, tmp_path / f"own-{seed}")
        for name, value in own.module.state_dict().items():
            assert torch.equal(value, shared[0][name]), name
            assert torch.equal(value, shared[1][name]), name


@pytest.mark.slow
def test_what_is_done_is_not_done_again(compared: Path, capsys: pytest.CaptureFixture[str]):
    before = (compared / "out.json").read_text()
    folders = {path: path.stat().st_mtime_ns for path in compared.glob("runs/*/*/result.json")}
    assert len(folders) == 4
    assert main(command(compared, "stp,k4=elbo/stp;num_mc=4", f"--markdown={compared / 'out.md'}", "--jobs=2")) == 0
    shown = capsys.readouterr().err
    assert shown.count("(read)") == 4
    assert "compare: 4 of 4 runs" in shown
    assert (compared / "out.json").read_text() == before
    assert {path: path.stat().st_mtime_ns for path in folders} == folders


@pytest.mark.slow
def test_another_run_in_the_folder_is_named_and_left_alone(compared: Path, capsys: pytest.CaptureFixture[str]):
    result = compared / "runs" / "stp" / "seed-0" / "result.json"
    before = result.read_text()
    report = compared / "other.json"
    assert main([*command(compared, "stp,k4=elbo/stp;num_mc=4", num_mc=8), f"--json={report}"]) == 1
    printed = capsys.readouterr().err
    assert "[1/4] sudoku, stp seed 0: FAILED:" in printed
    assert "holds a run of other settings (num_mc)" in printed
    assert "FAILED: stp seed 1" in printed
    assert result.read_text() == before
    stored = json.loads(report.read_text())
    assert [run["variant"] for run in stored["runs"]] == ["k4", "k4"], "its own num_mc: the same run"
    assert [failure["seed"] for failure in stored["failures"]] == [0, 1]


@pytest.mark.slow
def test_a_failed_run_is_named_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = command(tmp_path, "bad=stp;stp_spatial=copie,elbo", "--seeds=0", stp_rollouts=1, sft_steps=0)
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "FAILED: bad seed 0: stp_spatial: got 'copie', needs template, copy" in printed.err
    assert "| elbo " in printed.out
    assert "| bad " not in printed.out


@pytest.mark.slow
def test_stored_comparisons_are_merged_and_shown(compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    whole = json.loads((compared / "out.json").read_text())
    for name, picked in (("a", whole["runs"][:2]), ("b", whole["runs"])):
        (tmp_path / f"{name}.json").write_text(json.dumps({**whole, "runs": picked}))
    both = [f"--from={tmp_path / 'a.json'}", f"--from={tmp_path / 'b.json'}"]
    assert main([*both, f"--json={tmp_path / 'c.json'}"]) == 0
    assert capsys.readouterr().out == (compared / "out.md").read_text()
    merged = json.loads((tmp_path / "c.json").read_text())
    assert merged["aggregates"] == whole["aggregates"]
    assert main([*both, "--baseline=k4"]) == 0
    assert "| minus k4 " in capsys.readouterr().out
    assert main([*both, "--presets=k4"]) == 0
    assert "| stp " not in capsys.readouterr().out
    assert main([*both, "--presets=k4,k6"]) == 2
    assert "--presets: got k6, needs some of stp, k4" in capsys.readouterr().err
    assert main([*both, "--baseline=k5"]) == 2
    assert "--baseline: got 'k5', needs one of k4, stp" in capsys.readouterr().err
    whole["runs"][0]["identity"]["num_mc"] = 9
    (tmp_path / "b.json").write_text(json.dumps(whole))
    assert main([*both]) == 2
    assert "stp seed 0 is another run than in an earlier file" in capsys.readouterr().err
    (tmp_path / "a.json").write_text("[]")
    assert main([*both]) == 2
    assert "needs the JSON of a comparison" in capsys.readouterr().err


class Crash(Exception):
    """Stands for anything that ends a run."""


def test_an_interrupted_run_gives_the_numbers_of_a_whole_one(tmp_path: Path):
    options = {"stp_rollouts": 5, "evaluations": 2}
    whole, cut = one_job(tmp_path / "whole", **options), one_job(tmp_path / "cut", **options)
    expected = worker.train_and_test(whole.folder)

    def crash(result: Any) -> None:
        if result.step == 6:  # a step after the last checkpoint
            raise Crash

    with pytest.raises(Crash):
        worker.train_and_test(cut.folder, [Watch(crash)])
    assert not (cut.folder / worker.RESULT).exists()
    found = worker.train_and_test(cut.folder)
    assert [point["update"] for point in found["curve"]] == [0, 4, 8, 10], "the end is evaluated too"
    assert numbers([found]) == numbers([expected])
    assert found["compute"]["tokens"] == expected["compute"]["tokens"]


KILLED = """
import os, signal, sys
from stp_rs.train import checkpoint
from studies.compare import worker
original, saves = checkpoint.write_state_dict, 0
def save(*args):
    global saves
    saves += 1
    if saves == 4:  # in the middle of the second checkpoint
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)
checkpoint.write_state_dict = save
worker.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_comparison_goes_on_as_if_it_had_not_been(compared: Path, tmp_path: Path):
    job = one_job(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(job.folder)], check=False, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    newest = newest_checkpoint(job.folder)
    assert newest is not None
    assert newest.step == 2
    arguments = command(tmp_path, "stp", "--seeds=0")
    assert main(arguments) == 0
    found = json.loads((tmp_path / "out.json").read_text())["runs"]
    expected = json.loads((compared / "out.json").read_text())["runs"][:1]
    assert numbers(found) == numbers(expected)


def test_the_test_split_is_read_once_and_the_picked_checkpoint_is_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reads: Counter[str] = Counter()

    def spied(config: Any) -> Any:
        task = make_task(config)
        rows = task.rows

        def counting(split: Any, n: int, seed: int) -> Any:
            reads[split] += 1
            return rows(split, n, seed)

        monkeypatch.setattr(task, "rows", counting, raising=False)
        return task

    monkeypatch.setattr(worker, "make_task", spied)
    monkeypatch.setattr(worker, "pick", lambda curve: 2)
    job = one_job(tmp_path, stp_rollouts=3, learning_rate=0.01)
    result = worker.train_and_test(job.folder)
    assert reads["test"] == 1
    assert reads["validation"] == 2, "before training, and once for all evaluations"
    assert result["selected"]["update"] == 2
    assert {path.name for path in job.folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-6"}
    assert result["selected"]["cells"] != result["test"]["cells"]
    for name, update in (("test", 6), ("selected", 2)):
        config, task = complete(job.config, make_task(job.config)), make_task(job.config)
        model, tokenizer = worker.policy_at(update, config, job.folder), load_policy(job.folder / "checkpoint-2")[1]
        scores = evaluate(model, tokenizer, task, task.rows("test", 8, TEST_SEED), config)
        assert scores["cells"] == result[name]["cells"]
    assert worker.train_and_test(job.folder) == result
    assert reads["test"] == 1


def test_a_curve_begins_at_what_its_priors_cost(tmp_path: Path):
    job = one_job(tmp_path, stp_spatial="offline_generation+template", stp_keep=0.5)
    first, second, _ = worker.train_and_test(job.folder)["curve"]
    assert first["forwards"] == {"prior": 4 * (16 + 1), "rollout": 0, "likelihood": 0, "backward": 0}
    assert first["forward_equivalents"] == 4 * 17
    assert 0 < first["cpu_seconds"] < second["cpu_seconds"]
    assert second["forwards"]["prior"] == 4 * 17
    assert second["forward_equivalents"] == sum(second["forwards"].values()) + second["forwards"]["backward"]


def test_validation_picks_the_best_and_of_equals_the_latest():
    def pick(*scores: float) -> int:
        return worker.pick([{"update": 10 * i, "solved_free": score} for i, score in enumerate(scores)])

    assert pick(0.1, 0.9, 0.5) == 10
    assert pick(0.1, 0.9, 0.9, 0.2) == 20
    assert pick(0.9, 0.1) == 0


def test_no_worker_starts_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    processes = Processes()
    processes.stop()
    with pytest.raises(StpError, match="not started: the comparison was stopped"):
        processes.run(one_job(tmp_path))


def test_a_worker_stops_when_the_comparison_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = one_job(tmp_path)
    parents = iter([10, 10, 10, 1])
    monkeypatch.setattr(worker.os, "getppid", lambda: next(parents, 1))
    assert worker.main([str(job.folder)]) == 130
    assert not (job.folder / worker.RESULT).exists()
    shutil.rmtree(job.folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--presets=stp,quick"], "preset 'quick' is unknown"),
        ([], "variants: got none, needs at least one preset"),
        (["--presets=stp", "--jobs=0"], "--jobs: got 0, needs at least 1"),
        (["--presets=stp", "--plot=out.gif"], "--plot: got 'out.gif', needs a file named .svg, .png or .pdf"),
        (["--plan=a.yaml", "--from=a.json"], "--from: shows stored results; leave out --plan"),
        (["--from=nowhere.json"], "--from nowhere.json: needs the JSON of a comparison"),
        (["--plan=nowhere.yaml"], "plan nowhere.yaml: cannot be read"),
        (["--presets=stp", "--baseline=elbo"], "baseline: got 'elbo', needs one of the variants: stp"),
    ],
)
def test_a_wrong_comparison_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    if any("--plot" in argument for argument in arguments):
        pytest.importorskip("matplotlib")
    assert main([*arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert message in printed.err
