"""Options: the same names in YAML, flags and code, and errors that name field, got and need."""

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stp_rs.cli import main as cli
from stp_rs.cli.flags import given_options
from stp_rs.config import PRESETS, PRUNINGS, STPConfig, TaskConfig
from stp_rs.config.arguments import options as options_of
from stp_rs.config.known import INHERITED
from stp_rs.config.yaml import read_yaml
from stp_rs.errors import ConfigError
from stp_rs.train.folder import write_config

CHANGES: dict[str, Any] = {
    "learning_rate": 1e-5,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "stp_spatial": "template",
    "stp_temporal": "margin:3:0.5",
    "loss_type": "grpo",
    "importance_sampling_level": "sequence",
    "bf16": True,
    "stp_blame_prior": True,
    "seed": 2**64 - 1,
    "output_dir": 'runs/it\'s "quoted" \\ and: # spaced',
    "stp_device": "cpu",
}


def from_flags(*flags: str) -> TaskConfig:
    args = cli.build_parser(["train", *flags]).parse_args(["train", *flags])
    given = given_options(args)
    return TaskConfig.from_yaml(args.config, **given) if args.config else TaskConfig(**given)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("pruning", PRUNINGS)
def test_code_flags_and_yaml_say_the_same(preset: str, pruning: str, tmp_path: Path):
    made = TaskConfig(preset=preset, pruning=pruning, **CHANGES)
    flags = [f"--{name}={value}" for name, value in CHANGES.items()]
    assert from_flags(f"--preset={preset}", f"--pruning={pruning}", *flags) == made
    written = tmp_path / "written.yaml"
    written.write_text(yaml.safe_dump({"preset": preset, "pruning": pruning, **CHANGES}))
    assert TaskConfig.from_yaml(written) == made
    write_config(made, tmp_path)
    assert TaskConfig.from_yaml(tmp_path / "config.yaml") == made, "the file of a run makes the run again"
    assert TaskConfig(**made.to_flat()) == made
    assert made.learning_rate == 1e-5
    assert made.output_dir == CHANGES["output_dir"]


@settings(deadline=None, max_examples=40)
@example("\x85 \u2028 é 🦀", 1e-5)
@given(st.text(max_size=20), st.floats(0, 1))
def test_any_text_survives_the_run_folders_file(text: str, share: float):
    folder = Path(tempfile.mkdtemp())
    made = TaskConfig(data=text, stp_keep=share)
    write_config(made, folder)
    assert TaskConfig.from_yaml(folder / "config.yaml") == made
    shutil.rmtree(folder)


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("preset: stp\nstp_temporal: steps:0.5\nlearning_rate: 1e-3\n")
    config = from_flags(f"--config={path}", "--learning_rate=0.5")
    assert config.learning_rate == 0.5
    assert config.stp_temporal == "steps:0.5"
    assert config.stp_spatial == PRUNINGS["stp"]["stp_spatial"]


def test_a_pruning_or_preset_flag_wins_over_the_files_details(tmp_path: Path):
    write_config(TaskConfig(preset="stp", learning_rate=0.125), tmp_path)
    path = f"--config={tmp_path / 'config.yaml'}"
    unpruned = from_flags(path, "--pruning=none")
    assert unpruned == TaskConfig(preset="stp", pruning="none", learning_rate=0.125)
    elbo = from_flags(path, "--preset=elbo", "--stp_temporal=steps:0.9")
    folder = "runs/sudoku-stp-seed0"  # that of the file, in which the other run is refused
    assert elbo == TaskConfig(preset="elbo", learning_rate=0.125, stp_temporal="steps:0.9", output_dir=folder)


def test_every_option_has_one_name_a_flag_and_all_that_is_known_of_it():
    known = options_of(TaskConfig)
    assert set(TaskConfig().to_flat()) <= set(known)
    assert not set(options_of(STPConfig)) - set(known)
    for option in known.values():
        assert option.text, f"{option.name} has no help"
        assert option.section, option.name
        assert option.identity in ("numbers", "speed", "output"), option.name
    flags = {action.dest for action in subparser()._actions}
    assert set(known) <= flags


def subparser() -> Any:
    parser = cli.build_parser(["train"])
    commands = next(action for action in parser._actions if hasattr(action, "choices") and action.choices)
    return dict(commands.choices)["train"]  # type: ignore[arg-type]


def test_options_of_transformers_stand_in_the_sections_of_ours():
    ours = {option.section for name, option in options_of(TaskConfig).items() if name not in INHERITED}
    assert {place[0] for place in INHERITED.values()} - {"Hub"} <= ours


def test_help_says_the_default_of_the_preset_that_is_asked_for(capsys: pytest.CaptureFixture[str]):
    shown = {}
    for preset in ("stp", "espo"):
        with pytest.raises(SystemExit):
            cli.main(["train", "--preset", preset, "--help"])
        shown[preset] = " ".join(capsys.readouterr().out.split())
    assert "The policy loss" in shown["stp"], "options stand in their sections"
    beta = "KL coefficient; 0 loads no reference and makes no reference pass. (default: {})"
    assert beta.format("0.0") in shown["stp"]
    assert beta.format("0.01") in shown["espo"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rat": 1.0}, "unknown option 'learning_rat'; did you mean learning_rate?"),
        ({"stp_spacial": "none"}, "unknown option 'stp_spacial'; did you mean stp_spatial?"),
        ({"epochs": 1}, "unknown option 'epochs'; here it is num_train_epochs"),
        ({"zzz": 1}, "unknown option 'zzz'; `stp-rs train --help` lists all"),
        ({"preset": "spt"}, "preset: got 'spt', needs one of stp, stp_spread, elbo, grpo, "),
        ({"pruning": "some"}, "pruning: got 'some', needs one of none, stp"),
        ({"preset": "elbo", "num_mc": 0}, "num_mc: got 0 (all states), needs at least 1 for the design uniform_count"),
        ({"stp_score_prior": True}, "stp_score_prior: got true with the design state"),
        ({"preset": "grpo", "stp_score_prior": True}, "stp_score_prior: got true with the design trajectory"),
        ({"num_mc": 2.0}, "num_mc: got 2.0 (float), needs an integer"),
        ({"num_mc": "two"}, "num_mc: got 'two' (str), needs an integer"),
        ({"num_mc": True}, "num_mc: got True (bool), needs an integer"),
        ({"bf16": 1}, "bf16: got 1 (int), needs true or false"),
        ({"bf16": "yes"}, "bf16: got 'yes' (str), needs true or false"),
        ({"task": None}, "task: got None, needs text"),
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
        TaskConfig(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-6", 1e-6), ("1E-6", 1e-6), ("1.5e+3", 1500.0), ("3", 3), (".5", 0.5), ("1.", 1.0), ("-0.0", 0.0)],
)
def test_numbers_of_a_file_are_those_of_yaml_1_2(text: str, value: float, tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text(f"epsilon: {text}\n")
    assert STPConfig.from_yaml(path).epsilon == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: 1\nbeta: 0.1\nseed: 2\n", "got 'seed' in line 1 and in line 3, needs it once"),
        ("seed: 1\n'seed': 1\n", "got 'seed' in line 1 and in line 2"),
        ("fsdp_config:\n  version: 2\n  version: 2\n", "got 'version' in line 2 and in line 3"),
        ("{seed: 1, seed: 2}\n", "got 'seed' in line 1 and in line 1"),
    ],
)
def test_a_name_that_stands_twice_in_a_file_is_refused(text: str, told: str, tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        STPConfig.from_yaml(path)
    assert str(caught.value).startswith(f"config file {path}: {told}")


def test_a_merged_name_may_be_given_again(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("lr_scheduler_kwargs: &a {x: 1, y: 2}\nfsdp_config:\n  <<: *a\n  y: 3\n")
    assert read_yaml(path)["fsdp_config"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("text", ["017", "0x1F", "0o17", "1_000", "1:30", "'3'", "yes", "true", "3.0"])
def test_what_is_no_whole_number_there_is_refused_by_name(text: str, tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text(f"num_mc: {text}\n")
    with pytest.raises(ConfigError, match=r"num_mc: got .*, needs an integer"):
        STPConfig.from_yaml(path)


LAUGHS = "[&a [" + ", ".join("x" * 9) + "]"
LAUGHS += "".join(f", &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise("abcdefghijkl")) + "]"
MERGES = "m0: &m0 {x: 1}\n" + "".join(f"m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}]}}\n" for i in range(1, 60))


def test_merges_of_merges_end_soon(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text(MERGES)
    with pytest.raises(ConfigError, match=r"its aliases stand for|unknown option 'm0'"):  # PyYAML 6.0.4 merges once
        TaskConfig.from_yaml(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "got list, needs lines of `name: value`"),
        ("", "got NoneType, needs lines"),
        ("a: [\n", "cannot be read"),
        ("on: 3\n", "unknown option 'on'"),
        ("max_stepz: 3\n", "did you mean max_steps?"),
        ("learning_rate: " + LAUGHS + "\n", "its aliases stand for more than 65,536 values"),
        ("learning_rate: &a [*a]\n", "its aliases stand for more than 65,536 values"),
        ("a: " + "[" * 100_000, "cannot be read"),
        ("seed: " + "9" * 5000 + "\n", "cannot be read"),
        ("learning_rate: 1e999\n", "learning_rate: got inf, needs a value from 0 to 1"),
        ("seed: &x 1\nseed: *x\n", "got 'seed' in line 1 and in line 2, needs it once"),
        ("seed: !!python/object:os.system x\n", "cannot be read"),
        ("seed: 2001-01-01\n", "seed: got '2001-01-01' (str), needs an integer"),
        ("seed: !!set {a}\n", "seed: got {'a'} (set), needs an integer"),
        ("? [a]\n: 1\n", "cannot be read"),
        ("seed: 1\n---\nseed: 2\n", "cannot be read"),
        ('output_dir: "a\\0b"\n', "output_dir: got 'a\\x00b', needs a name in UTF-8, without NUL"),
        ('output_dir: "\\ud800"\n', "output_dir: got '\\ud800', needs a name in UTF-8, without NUL"),
        (f"output_dir: {'x' * 300}\n", "needs a shorter name"),
    ],
)
def test_a_broken_file_is_an_error_of_ours(text: str, message: str, tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        TaskConfig.from_yaml(path)
    assert message in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        TaskConfig.from_yaml(tmp_path / "none.yaml")
