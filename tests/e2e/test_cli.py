"""The command line from end to end on a tiny configuration: train, sample, eval, env, and errors."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from stp_rs.cli.main import main
from stp_rs.models import load_policy
from stp_rs.train.checkpoint import read_stored
from stp_rs.train.kept import Keeper
from stp_rs.train.metrics import read_metrics
from stp_rs.train.trainer import StepResult

OPTIONS = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "sft_steps": 60,
    "sft_learning_rate": 1e-2,
    "sft_batch_size": 8,
    "stp_rollouts": 3,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "train_size": 32,
    "eval_size": 8,
    "save_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 4,
}
TRL_NAMES = {
    *("reward", "reward_std", "frac_reward_zero_std", "loss", "grad_norm", "learning_rate", "epoch"),
    *("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "completions/mean_length"),
    *("rewards/sudoku_reward/mean",),
}
OURS = {"diffusion/nfe", "diffusion/anchor_share", "diffusion/temporal_stop_share", "diffusion/distinct"}


def flags(run: Path, **options: Any) -> list[str]:
    return ["train", f"--output_dir={run}", "--quiet", *(f"--{k}={v}" for k, v in {**OPTIONS, **options}.items())]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(flags(folder)) == 0
    return folder


def summary_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


def test_a_run_folder_holds_everything_of_the_run(run: Path):
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "summary.json", "report.html", "warmup", "checkpoint-6"} <= names
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["stp_rollouts"] == 3
    assert config["max_completion_length"] == 20
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        assert line.keys() >= TRL_NAMES | OURS
    assert "eval_solved" in lines[1]
    summary = summary_of(run)
    required = "task preset seed solved_before solved_after solved_after_prior nfe_per_completion forwards seconds"
    assert summary.keys() >= set(required.split())
    assert summary["forwards"].keys() == {"prior", "rollout", "likelihood", "backward"}
    assert summary["seconds"].keys() >= {"sft", "rl", "eval", "total", "cpu_rollout", "cpu_update", "cpu_eval"}
    assert summary["peak_bytes"] > 1 << 20
    assert summary["nfe_per_completion"]["free"] == 20


def test_a_checkpoint_is_a_model_that_from_pretrained_opens(run: Path):
    module, tokenizer = load_policy(run / "checkpoint-6")
    ids = tokenizer("0123", add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert torch.isfinite(module(ids).logits).all()


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(run: Path, tmp_path: Path):
    assert main(flags(tmp_path / "again")) == 0
    assert read_metrics(tmp_path / "again" / "metrics.jsonl") == read_metrics(run / "metrics.jsonl")
    first, second = summary_of(run), summary_of(tmp_path / "again")
    for summary in (first, second):
        del summary["seconds"], summary["peak_bytes"]
    assert first == second
    assert main(flags(tmp_path / "other", seed=1)) == 0
    assert read_metrics(tmp_path / "other" / "metrics.jsonl") != read_metrics(run / "metrics.jsonl")


def test_pruning_spends_fewer_than_half_of_the_rollout_forwards(run: Path, tmp_path: Path):
    assert main(flags(tmp_path / "unpruned", pruning="none")) == 0
    pruned, unpruned = summary_of(run), summary_of(tmp_path / "unpruned")
    assert pruned["forwards"]["rollout"] < unpruned["forwards"]["rollout"] / 2
    assert pruned["nfe_per_completion"]["training"] == 5  # 8 free cells at one a step, 0.6 of the steps
    assert unpruned["nfe_per_completion"]["training"] == 20


def test_anchors_of_the_initial_policy_are_made_once_and_stored(tmp_path: Path):
    options = {"stp_spatial": "offline_generation+template", "stp_keep": 0.2, "stp_rollouts": 2, "eval_strategy": "no"}
    assert main(flags(tmp_path / "run", **options)) == 0
    stored = tmp_path / "run" / "offline_generation.safetensors"
    made = stored.read_bytes()
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    # 4 of 20 tokens are the template's; the anchors are a fifth of what lies outside the answer
    assert all(0.2 <= line["diffusion/anchor_share"] < 0.5 for line in lines)
    # two steps of two groups read four prompts: a greedy completion of 16 free tokens each, and one forward to keep by
    assert len(read_stored(stored)["offline_generation"].arrays["keys"]) == 4
    spent = summary_of(tmp_path / "run")
    assert spent["forwards"]["prior"] == 4 * (16 + 1)
    assert spent["forward_equivalents"] == sum(spent["forwards"].values()) + spent["forwards"]["backward"]
    assert spent["seconds"]["cpu_prior"] > 0
    assert main(flags(tmp_path / "run", **options)) == 0
    assert stored.read_bytes() == made
    assert summary_of(tmp_path / "run")["forwards"] == spent["forwards"], "a resume has made nothing"
    stored.write_bytes(b"cut short")
    (tmp_path / "run" / "summary.json").unlink()  # a finished run reads nothing
    assert main(flags(tmp_path / "run", **options)) == 2, "a resume reads them"


def test_a_finished_run_is_continued_not_repeated(run: Path, capsys: pytest.CaptureFixture[str]):
    before = (run / "metrics.jsonl").read_text()
    folder = (run / "checkpoint-6").stat().st_mtime_ns
    summary, report = summary_of(run), (run / "report.html").read_text()
    assert main(flags(run)) == 0
    assert summary_of(run) == summary
    assert (run / "report.html").read_text() == report, "with the figures that it had"
    assert (run / "metrics.jsonl").read_text() == before
    assert (run / "checkpoint-6").stat().st_mtime_ns == folder
    assert main(flags(run, learning_rate=0.5)) == 2
    assert "was made with other settings (learning_rate): learning_rate is" in capsys.readouterr().err
    assert main(flags(run, hidden_size=32)) == 2
    assert "(hidden_size)" in capsys.readouterr().err
    assert main(["train", "--quiet", f"--config={run / 'config.yaml'}"]) == 0, "a refused run has touched nothing"


def test_a_report_and_a_viewer_are_written_of_any_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    written = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert (run / "report.html").read_bytes() == written
    assert main(["inspect", str(run)]) == 0
    assert (run / "rollouts.html").is_file()
    for command in ("report", "inspect", "watch"):
        assert main([command, str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_watch_shows_the_newest_rollout_forward_by_forward(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["watch", str(run), "--once"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].startswith("step 6, prompt: ")
    assert [line for line in lines if line.startswith("unpruned: ")][-1].startswith("unpruned: 20 of 20 forwards, ")
    pruned = [below for line, below in itertools.pairwise(lines) if line.startswith("pruned: ")]
    assert [shown.count(" . ") for shown in pruned[:6]] == [8, 7, 6, 5, 4, 0], "one at a time, then the merged tail"
    assert pruned[0].count("|") == 2 * 12
    assert pruned[-1].count("~") == 2 * 4


def test_a_stopped_run_has_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(_self: Keeper, result: StepResult, _last: int) -> None:
        if result.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Keeper, "__call__", stop)
    assert main(flags(tmp_path / "run")) == 130
    assert "step 4 of 6 (not finished)" in (tmp_path / "run" / "report.html").read_text()


def test_sample_shows_completions_with_rewards(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["sample", str(run), "-n", "3", "--temperature", "0.5", "--prior"]) == 0
    lines = capsys.readouterr().out.rstrip().split("\n")
    assert len(lines) == 5
    assert [part.strip() for part in lines[0].split("|")] == ["prompt", "completion", "reward"]
    assert all("[" in line for line in lines[2:]), "the template is fixed"


def test_eval_prints_both_decodes_and_writes_json(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = tmp_path / "puzzles.csv"
    data.write_text("Puzzle,Solution\n1234340021434321,1234341221434321\n1234341221430021,1234341221434321\n")
    out = tmp_path / "out.json"
    assert main(["eval", str(run / "checkpoint-6"), "--data", str(data), "-n", "1", f"--json={out}"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("1 problems of")
    result = json.loads(out.read_text())
    free, prior = result["cells"]
    assert (free["decode"], prior["decode"], free["n"]) == ("free", "prior", 1)
    assert (free["nfe"], prior["nfe"]) == (20, 2)
    assert {"solved", "solved_ci", "cells"} <= free.keys()
    assert prior["clues_kept"] == 1.0


def test_env_names_the_versions(capsys: pytest.CaptureFixture[str]):
    assert main(["env"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["torch"] == torch.__version__
    assert {"stp_rs", "python", "transformers", "cuda", "cores"} <= printed.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--task=chess"], "task: got 'chess', needs one of"),
        (["train", "--learning_rate=-1"], "learning_rate: got -1, needs a value"),
        (["train", "--config=none.yaml"], "config file none.yaml: cannot be read"),
        (["train", "--config=BROKEN"], "cannot be read"),
        (["train", "--model_name_or_path=nowhere"], "nowhere: no model and no checkpoint-N in it"),
        (["train", "--stp_spatial=copie"], "stp_spatial: got 'copie', needs template, copy"),
        (["train", "--stp_temporal=steps:2"], "temporal: got steps:2, needs none, fill_ratio:SHARE"),
        (["sample", "nowhere"], "nowhere: no model and no checkpoint-N in it"),
        (["eval", "nowhere"], "nowhere: no model and no checkpoint-N in it"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "broken.yaml").write_text("a: [1,\nb: {\n")
    arguments = [a.replace("BROKEN", str(tmp_path / "broken.yaml")) for a in arguments]
    if arguments[0] == "train":
        small = [f"--{k}={v}" for k, v in OPTIONS.items()]
        arguments = [
            arguments[0],
            *small,
            f"--output_dir={tmp_path / 'run'}",
            "--quiet",
            "--sft_steps=0",
            *arguments[1:],
        ]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("stp-rs: ")
    assert printed.err.count("\n") == 1, printed.err
    assert message in printed.err


def test_a_wrong_flag_is_refused_by_name(capsys: pytest.CaptureFixture[str]):
    for flag, message in (
        ("--learning_rat=1", "unknown option 'learning_rat'; did you mean learning_rate?"),
        ("--bf16=perhaps", "bf16: got 'perhaps' (str), needs true or false"),
        ("--use_vllm=true", "use_vllm: is not supported: completions come from the denoising rollout"),
        ("--resume=false", "resume: has another name since 0.2: resume_from_checkpoint"),
    ):
        assert main(["train", flag]) == 2
        assert message in capsys.readouterr().err
