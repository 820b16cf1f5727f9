"""Options: the same names in YAML, flags and code, and errors that name field, got and need."""

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stp_rs.cli import main as cli
from stp_rs.cli.run import write_config
from stp_rs.config.sections import PRESETS, PRUNINGS, STPConfig, flat_fields
from stp_rs.errors import ConfigError

CHANGES: dict[str, Any] = {
    "learning_rate": 1e-5,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "stp_spatial": "template",
    "stp_temporal": "margin:3:0.5",
    "loss_type": "grpo",
    "importance_sampling_level": "sequence",
    "bf16": True,
    "stp_score_prior": True,
    "seed": 2**64 - 1,
    "output_dir": 'runs/it\'s "quoted" \\ and: # spaced',
    "device": "cpu",
}


def from_flags(*flags: str) -> STPConfig:
    args = cli.build_parser().parse_args(["train", *flags])
    given = {k: v for k, v in vars(args).items() if k not in ("run", "config", "quiet", "report_to") and v is not None}
    return STPConfig.from_yaml(args.config, **given) if args.config else STPConfig.make(**given)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("pruning", PRUNINGS)
def test_code_flags_and_yaml_say_the_same(preset: str, pruning: str, tmp_path: Path):
    made = STPConfig.make(preset, pruning=pruning, **CHANGES)
    flags = [f"--{name}={value}" for name, value in CHANGES.items()]
    assert from_flags(f"--preset={preset}", f"--pruning={pruning}", *flags) == made
    written = tmp_path / "written.yaml"
    written.write_text(yaml.safe_dump({"preset": preset, "pruning": pruning, **CHANGES}))
    assert STPConfig.from_yaml(written) == made
    write_config(made, tmp_path)
    assert STPConfig.from_yaml(tmp_path / "config.yaml") == made, "the file of a run makes the run again"
    assert STPConfig.make(**made.to_flat()) == made
    assert made.learning_rate == 1e-5
    assert made.output_dir == CHANGES["output_dir"]


@settings(deadline=None, max_examples=40)
@example("\x85 \u2028 é 🦀", 1e-5)
@given(st.text(max_size=20), st.floats(0, 1))
def test_any_text_survives_the_run_folders_file(text: str, share: float):
    folder = Path(tempfile.mkdtemp())
    made = STPConfig.make(data=text, stp_keep=share)
    write_config(made, folder)
    assert STPConfig.from_yaml(folder / "config.yaml") == made
    shutil.rmtree(folder)


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("preset: stp\nstp_temporal: steps:0.5\nlearning_rate: 1e-3\n")
    config = from_flags(f"--config={path}", "--learning_rate=0.5")
    assert config.learning_rate == 0.5
    assert config.stp_temporal == "steps:0.5"
    assert config.stp_spatial == PRUNINGS["stp"]["stp_spatial"]


def test_a_pruning_or_preset_flag_wins_over_the_files_details(tmp_path: Path):
    write_config(STPConfig.make("stp", learning_rate=0.125), tmp_path)
    path = f"--config={tmp_path / 'config.yaml'}"
    unpruned = from_flags(path, "--pruning=none")
    assert unpruned == STPConfig.make("stp", pruning="none", learning_rate=0.125)
    elbo = from_flags(path, "--preset=elbo", "--stp_temporal=steps:0.9")
    assert elbo == STPConfig.make("elbo", learning_rate=0.125, stp_temporal="steps:0.9")


def test_every_option_has_one_name_and_a_flag():
    names = [f.name for f in dataclasses.fields(STPConfig) if f.name != "preset"]
    sections = [f.name for part in STPConfig.__bases__ for f in dataclasses.fields(part)]
    assert sorted(sections) == sorted(names), "no two sections share a name"
    assert list(flat_fields()) == names
    assert set(STPConfig.make().to_flat()) == {"preset", *names}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rat": 1.0}, "unknown option 'learning_rat'; did you mean learning_rate?"),
        ({"stp_spacial": "none"}, "unknown option 'stp_spacial'; did you mean stp_spatial?"),
        ({"zzz": 1}, "unknown option 'zzz'; `stp-rs train --help` lists all"),
        ({"preset": "spt"}, "preset: got 'spt', needs one of stp, elbo, grpo, "),
        ({"pruning": "some"}, "pruning: got 'some', needs one of none, stp"),
        ({"num_mc": 0}, "num_mc: got 0 (all states), needs at least 1 for the design spread"),
        ({"num_mc": 2.0}, "num_mc: got 2.0 (float), needs an integer"),
        ({"num_mc": "two"}, "num_mc: got 'two', needs an integer"),
        ({"num_mc": True}, "num_mc: got True (bool), needs an integer"),
        ({"bf16": 1}, "bf16: got 1 (int), needs true or false"),
        ({"bf16": "yes"}, "bf16: got 'yes' (str), needs true or false"),
        ({"task": None}, "task: got None (NoneType), needs text"),
        ({"top_p": 0.0}, "top_p: got 0.0, needs a value from"),
        ({"temperature": float("nan")}, "temperature: got nan, needs a value from 0 to 100"),
        ({"loss_type": "dpo"}, "loss_type: got 'dpo', needs one of grpo"),
        ({"preset": "bgpo", "importance_sampling_level": "token"}, "stp_objective linear: needs importance_sampling"),
        ({"preset": "bgpo", "stp_bound": "eubo"}, "stp_objective linear: needs stp_bound elbo"),
        ({"num_generations": 5}, "got 32 completions, needs a multiple of num_generations (5)"),
        ({"num_attention_heads": 3}, "hidden_size: got 64, needs a multiple of num_attention_heads (3)"),
    ],
)
def test_a_wrong_option_names_field_got_and_need(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        STPConfig.make(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "got list, needs lines of `name: value`"),
        ("", "got NoneType, needs lines"),
        ("a: [\n", "cannot be read"),
        ("on: 3\n", "unknown option 'True'"),
        ("max_stepz: 3\n", "did you mean max_steps?"),
    ],
)
def test_a_broken_file_is_an_error_of_ours(text: str, message: str, tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        STPConfig.from_yaml(path)
    assert message in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        STPConfig.from_yaml(tmp_path / "none.yaml")
