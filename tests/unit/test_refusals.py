"""What cannot be is one sentence before anything is written: devices that are not there, rows that are none."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stp_rs import STPConfig, STPTrainer
from stp_rs.cli.main import main
from stp_rs.errors import StpError
from tests.fixtures import ROWS, SMALL, ones, tiny, tokenizer

HERE = pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without CUDA")


@pytest.mark.parametrize(
    ("device", "told"),
    [
        pytest.param("cuda", "which this machine does not have", marks=HERE),
        ("cuda:99", "which this machine does not have"),
        ("meta", "which this machine does not have"),
        ("tpu", "needs a device of torch"),
        ("cpu:x", "needs a device of torch"),
    ],
)
def test_a_device_that_is_not_there(device: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code = main(["train", f"--output_dir={tmp_path / 'run'}", f"--stp_device={device}", "--quiet"])
    error = capsys.readouterr().err.strip()
    assert code == 2
    assert error.count("\n") == 0
    assert error.startswith(f"stp-rs: stp_device: got '{device}', ")
    assert told in error
    assert not (tmp_path / "run").exists()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "texts": ({"rows": ["a", "b"]}, "train_dataset row 0: got 'a', needs a mapping"),
    "a text": ({"rows": "abc"}, "train_dataset: got the text 'abc'"),
    "numbers": ({"rows": [1, 2]}, "train_dataset row 0: got 1, needs a mapping"),
    "nothing": ({"rows": [None]}, "train_dataset row 0: got None"),
    "lists": ({"rows": [["a"]]}, "train_dataset row 0: got ['a']"),
    "the second row": ({"rows": [*ROWS[:1], "b"]}, "train_dataset row 1: got 'b'"),
    "no prompt": ({"rows": [{"x": 1}]}, "train_dataset row 0: needs a non-empty `prompt`"),
    "a prompt of None": ({"rows": [{"prompt": None}]}, "and prompt None"),
    "a number": ({"rows": [{"prompt": 3}]}, "and prompt 3"),
    "an empty prompt": ({"rows": [{"prompt": ""}]}, "and prompt ''"),
    "texts to evaluate": ({"held_out": ["a"]}, "eval_dataset row 0: got 'a'"),
    "texts of a set": ({"held_out": {"easy": ROWS, "hard": ["a"]}}, "eval_dataset hard row 0: got 'a'"),
    "reward None": ({"reward": None}, "reward_funcs: got none"),
    "reward 3": ({"reward": 3}, "reward_funcs: got 3"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_arguments_of_a_trainer_that_are_none(wrong: str, tmp_path: Path):
    given, told = WRONG[wrong]
    chosen = {"rows": ROWS, "held_out": None, "reward": ones, **given}
    config = STPConfig(**{**SMALL, "output_dir": str(tmp_path / "run")})
    with pytest.raises(StpError) as error:
        STPTrainer(tiny(), chosen["reward"], config, chosen["rows"], chosen["held_out"], processing_class=tokenizer())
    assert told in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("eval_strategy", "steps"), ("eval_strategy", "epoch"), ("eval_on_start", True)]
)
def test_an_evaluation_without_rows_is_refused_before_training(option: str, value: Any, tmp_path: Path):
    config = STPConfig(str(tmp_path / "run"), **{**SMALL, "eval_steps": 1, option: value})
    made = STPTrainer(tiny(), ones, config, ROWS, processing_class=tokenizer())
    with pytest.raises(StpError, match=f"{option}: got {value!r} and no eval_dataset"):
        made.train()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_peft", "true"), ("lora_r", "8"), ("lora_target_modules", "query"), ("dtype", "bfloat16"),
        ("load_in_4bit", "true"), ("attn_implementation", "eager"), ("trust_remote_code", "true"),
        ("model_revision", "main"), ("logit_shift", "1"), ("block_size", "4"),
    ],
)  # fmt: skip
def test_options_about_opening_a_model_need_one(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    adapters = ["--use_peft", "true"] if option.startswith("lora") else []  # without, nothing reads them anyway
    assert main(["train", f"--{option}", value, *adapters, "--output_dir", str(tmp_path / "run"), "--quiet"]) == 2
    told = capsys.readouterr().err
    assert f"{'use_peft' if adapters else option}: got " in told
    assert "needs model_name_or_path" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("hidden_size", "32"), ("num_hidden_layers", "2"), ("num_attention_heads", "2"), ("sft_steps", "5"),
        ("sft_batch_size", "4"), ("sft_learning_rate", "0.1"),
    ],
)  # fmt: skip
def test_options_of_the_tiny_policy_are_refused_beside_a_model(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiny().module.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    given = ["train", "--task", "sums", "--model_name_or_path", str(tmp_path / "model"), "--quiet"]
    for more in ([], ["--dry_run"]):
        assert main([*given, f"--{option}", value, "--output_dir", str(tmp_path / "run"), *more]) == 2
        told = capsys.readouterr().err
        assert f"{option}: got {value}, which is about the tiny policy" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments", [["gsm8k"], ["math"], ["gsm8k", "--dry_run"], ["math", "--max_completion_length=64"]]
)
def test_a_task_of_data_asks_for_it(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--task", *arguments, "--output_dir", str(tmp_path / "run"), "--quiet"]) == 2
    told = capsys.readouterr().err
    assert "data: got none for the task" in told
    assert "needs a value" not in told
    assert not (tmp_path / "run").exists()
