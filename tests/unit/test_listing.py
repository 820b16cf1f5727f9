"""What --help says without torch is what a configuration is; a misspelt name is answered with the nearest one."""

from pathlib import Path

import pytest

from stp_rs.cli.main import main
from stp_rs.config import PRESETS, TaskConfig
from stp_rs.config.arguments import options
from stp_rs.config.elsewhere import ELSEWHERE
from stp_rs.config.explained import EXPLAINED
from stp_rs.config.known import INHERITED, REFUSED
from stp_rs.config.listing import OLD, WORDS, listed, unknown_option
from stp_rs.text import nearest, one_of

NAMES = list(listed())


@pytest.mark.parametrize("preset", PRESETS)
def test_listed_defaults_are_those_of_a_configuration(preset: str):
    flat, shown = TaskConfig(preset=preset).to_flat(), listed(preset)
    assert set(flat) <= set(shown)
    for name in flat.keys() - WORDS.keys() - {"report_to"}:
        assert shown[name].default == flat[name], f"{name}: say its default in stp_rs/config/explained.py"


def test_listed_texts_sections_and_choices_are_those_of_the_options():
    known, shown = options(TaskConfig), listed()
    assert known.keys() - shown.keys() == set()
    assert shown.keys() - known.keys() <= OLD
    for name, option in known.items():
        assert (shown[name].text, shown[name].section) == (option.text, option.section)
        if name not in ("preset", "pruning"):
            assert shown[name].choices == option.choices, name


def test_every_inherited_option_is_explained_in_our_words():
    assert EXPLAINED.keys() == INHERITED.keys() - {"gradient_checkpointing"}, "stp_rs/config/explained.py"


def test_names_of_elsewhere_are_no_names_here_and_lead_to_some():
    assert not ELSEWHERE.keys() & set(NAMES)
    assert not ELSEWHERE.keys() & REFUSED.keys()
    for here in ELSEWHERE.values():
        assert here.split(",")[0].split("=")[0].split(" ")[0] in NAMES, here


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("lr", "here it is learning_rate"),
        ("LR", "here it is learning_rate"),
        ("group_size", "here it is num_generations"),
        ("kl_coef", "here it is beta"),
        ("gen_length", "here it is max_completion_length"),
        ("remasking", "here it is stp_confidence"),
        ("p_mask_prompt", "here it is stp_prompt_mask"),
        ("batch-size", "here it is per_device_train_batch_size"),
        ("bacth_size", "did you mean per_device_train_batch_size?"),
        ("clip_range", "here it is epsilon"),
        ("epochs", "here it is num_train_epochs"),
        ("model", "here it is model_name_or_path"),
        ("steps", "here it is diffusion_steps (of a completion) or max_steps (of training)"),
        ("learning_rat", "did you mean learning_rate?"),
        ("lerning_rate", "did you mean learning_rate?"),
        ("steps_max", "did you mean max_steps?"),
        ("max_step", "did you mean max_steps?"),
        ("spatial", "did you mean stp_spatial?"),
        ("spacial", "did you mean stp_spatial?"),
        ("tsp_temporal", "did you mean stp_temporal?"),
        ("heads", "did you mean num_attention_heads?"),
        ("num_heads", "did you mean num_attention_heads?"),
        ("layers", "did you mean num_hidden_layers?"),
        ("seeds", "did you mean seed?"),
        ("slots", "did you mean stp_slots?"),
        ("generations", "did you mean num_generations?"),
        ("output-folder", "did you mean output_dir?"),
        ("zzz", "`stp-rs train --help` lists all"),
        ("cfg_scale", "is not supported: there is no classifier-free guidance"),
    ],
)
def test_a_name_that_is_no_option_is_answered_with_the_nearest(given: str, said: str):
    assert said in str(unknown_option(given, NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_a_slip_of_the_fingers_is_recognised(name: str):
    middle = len(name) // 2
    swapped = name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :]
    for typed in (name[:middle] + name[middle + 1 :], swapped, name.replace("_", "-").upper(), name.replace("_", "")):
        assert typed in NAMES or nearest(typed, NAMES, ELSEWHERE) == name, typed


@pytest.mark.parametrize(
    ("word", "known", "said"),
    [
        ("spt", ["elbo", "stp", "spg"], "needs one of elbo, stp, spg; did you mean stp?"),
        ("sodoku", ["sums", "sudoku"], "needs one of sums, sudoku; did you mean sudoku?"),
        ("chess", ["sums", "sudoku"], "needs one of sums, sudoku"),
        (3, ["sums"], "needs one of sums"),
    ],
)
def test_a_value_that_is_none_of_a_few_is_answered_with_the_nearest(word: object, known: list[str], said: str):
    assert one_of(word, known) == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "did you mean train?"),
        (["eval", "run", "--sampels=3"], "unknown flag '--sampels' of stp-rs eval; did you mean --samples?"),
        (["sample", "run", "--temp=1"], "did you mean --temperature?"),
        (["watch", "run", "--onse"], "did you mean --once?"),
        (["grade", "f", "--task=gsm8"], "did you mean gsm8k?"),
        (["variance", "--model=m", "--row=3"], "did you mean --rows?"),
        (["probe", "m", "--trust-remote-cod=true"], "did you mean --trust_remote_code?"),
        (["report", "a", "b"], "got the argument 'b', needs flags"),
        (["train", "run"], "got the argument 'run', needs flags"),
        (["train", "--learning-rat=1"], "did you mean learning_rate?"),
        (["train", "--preset"], "argument --preset: expected one argument"),
        (["train", "--config=LATIN"], "cannot be read: 'utf-8' codec"),
        (["train", "--stp_device=banana"], "stp_device: got 'banana', needs a device of torch"),
        (["sample", "run", "-n", "0"], "got '0', needs a whole number of at least 1"),
        (["sample", "run", "--seed=-1"], "got '-1', needs a whole number of at least 0"),
        (["sample", "run", "--temperature=nan"], "got 'nan', needs a number of at least 0"),
        (["eval", "run", "--few_shot=1.5"], "got '1.5', needs a whole number of at least 0"),
        (["variance", "--model=m", "--rows=99999999999999999999"], "needs a whole number of at least 0"),
        (["watch", "run", "--seconds=-1"], "got '-1', needs a number of at least 0"),
    ],
)
def test_every_command_answers_a_mistake_with_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "latin.yaml").write_bytes(b"task: sudok\xe9\n")
    arguments = [argument.replace("LATIN", str(tmp_path / "latin.yaml")) for argument in arguments]
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    printed = capsys.readouterr()
    assert (code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert said in printed.err


def test_a_flag_may_be_spelt_with_hyphens(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--learning-rate=-1"]) == 2
    assert "learning_rate: got -1" in capsys.readouterr().err
