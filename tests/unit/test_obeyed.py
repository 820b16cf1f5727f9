"""Options hold wherever numbers are computed with them, and are refused where nothing reads them."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from stp_rs import STPConfig, STPTrainer, Unmasking
from stp_rs.cli import run as running
from stp_rs.cli.main import main
from stp_rs.config import PolicyConfig, TaskConfig
from stp_rs.data.prompts import encode_prompts
from stp_rs.data.trajectories import Rollout
from stp_rs.errors import ConfigError, ModelError
from stp_rs.eval import evaluate as evaluation
from stp_rs.eval import prices
from stp_rs.eval.evaluate import Decode, evaluate, evaluate_cells
from stp_rs.eval.forecast import forecast
from stp_rs.eval.variance import Setting
from stp_rs.models import character_tokenizer, load, loading, tiny_policy
from stp_rs.models.masked_lm import as_diffusion_model
from stp_rs.objective.advantages import configured_advantages
from stp_rs.priors import Length
from stp_rs.priors.base import knows_answer
from stp_rs.rollout.generate import generate
from stp_rs.rollout.rewards import Rewards
from stp_rs.tasks import get_task
from stp_rs.train import anchors
from stp_rs.train.anchors import OfflineGeneration
from stp_rs.train.kept import Keeper, unpruned
from tests.fixtures import LENGTH, ROWS, SMALL, ones, tiny, tokenizer, trainer

# peft reads a name that transformers has since given another one
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SHORT = {**SIZE, "sft_steps": 0, "stp_rollouts": 1, "num_generations": 2, "per_device_train_batch_size": 4}
SHORT |= {"train_size": 8, "eval_size": 4, "use_cpu": True}


@pytest.fixture
def sudoku() -> Any:
    task = get_task("sudoku")
    characters = character_tokenizer(task.alphabet)
    module = tiny_policy(PolicyConfig(**SIZE), vocab_size=len(characters), max_length=40, seed=0)
    return as_diffusion_model(module, characters), characters, task, task.rows("test", 3, 0)


# --- seeds ---


def adapters(seed: int, folder: Path) -> list[torch.Tensor]:
    policy, _ = load(folder, use_peft=True, lora_target_modules=["query"], seed=seed)
    return [p.detach().clone() for name, p in policy.module.named_parameters() if "lora_A" in name]


def test_new_adapters_are_those_of_the_seed(tmp_path: Path):
    peft = pytest.importorskip("peft", reason="the peft extra is not installed")
    tiny().module.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    before = torch.get_rng_state()
    first = adapters(3, tmp_path)
    assert torch.equal(torch.get_rng_state(), before), "the caller's generator is left as it was"
    torch.rand(7)
    assert all(map(torch.equal, first, adapters(3, tmp_path)))
    assert not any(map(torch.equal, first, adapters(4, tmp_path)))

    def of_trainer(seed: int) -> torch.Tensor:
        torch.rand(3)
        config = STPConfig(**{**SMALL, "output_dir": str(tmp_path / "run"), "seed": seed})
        made = STPTrainer(
            tiny().module,
            ones,
            config,
            ROWS,
            processing_class=tokenizer(),
            peft_config=peft.LoraConfig(target_modules=["query"]),
        )
        return next(p for name, p in made.model.named_parameters() if "lora_A" in name)

    assert torch.equal(of_trainer(3), of_trainer(3))
    assert not torch.equal(of_trainer(3), of_trainer(4))


# --- adapters ---


@pytest.mark.parametrize("option", [{"lora_r": 64}, {"lora_alpha": 8}, {"lora_target_modules": "query"}])
def test_options_of_adapters_are_refused_without_any(option: dict[str, Any]):
    with pytest.raises(ConfigError, match=f"{next(iter(option))}: got .* without use_peft"):
        STPConfig(**SMALL, **option)
    STPConfig(**SMALL, **option, use_peft=True)


def test_another_rank_than_saved_adapters_have_is_refused(tmp_path: Path):
    pytest.importorskip("peft", reason="the peft extra is not installed")
    tiny().module.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    policy, _ = load(tmp_path / "base", use_peft=True, lora_r=4, lora_target_modules=["query"])
    policy.module.save_pretrained(tmp_path / "adapters")
    tokenizer().save_pretrained(tmp_path / "adapters")
    with pytest.raises(ModelError, match=r"lora_r: got 8 for .*, whose adapters have 4"):
        load(tmp_path / "adapters", use_peft=True, lora_r=8)
    load(tmp_path / "adapters", use_peft=True, lora_r=4)
    load(tmp_path / "adapters")


def test_quantised_weights_without_adapters_are_refused(tmp_path: Path):
    model = tiny()
    model.module.is_quantized = True
    with pytest.raises(ConfigError, match="load_in_4bit: got a quantised model without adapters"):
        trainer(tmp_path, model)


def test_four_bits_go_to_the_device(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transformers, "BitsAndBytesConfig", dict)
    monkeypatch.setitem(sys.modules, "bitsandbytes", torch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading._four_bits("auto", torch.device("cuda:1"))["device_map"] == {"": torch.device("cuda:1")}
    assert loading._four_bits("auto", None)["device_map"] == {"": 0}


def test_the_tokenizer_of_a_task_is_that_of_the_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny().module.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    seen, real = [], transformers.AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        transformers.AutoTokenizer,
        "from_pretrained",
        lambda name, **given: (seen.append(given.get("revision")), real(name, **given))[1],
    )
    config = TaskConfig(model_name_or_path=str(tmp_path), model_revision="abc", task="sums")
    running.make_task(config)
    running.complete(config, get_task("sums", count=2, max_term=1))
    assert seen == ["abc", "abc"]


# --- losses ---


@pytest.mark.parametrize("loss", ["cispo", "vespo"])
def test_advantages_of_states_need_a_loss_that_reads_them(loss: str):
    with pytest.raises(ConfigError, match=f"stp_stepwise: got .* with loss_type {loss}"):
        STPConfig(preset="egspo_sa", loss_type=loss)
    STPConfig(preset="egspo_sa", loss_type="dapo")


def test_quantiles_of_entropy_need_values_of_tokens():
    with pytest.raises(ConfigError, match=r"top_entropy_quantile: .*stp_objective distil"):
        STPConfig(preset="gdsd", top_entropy_quantile=0.2)


# --- evaluation ---


def test_evaluation_before_training_stands_under_the_priors(tmp_path: Path):
    config = STPConfig(**{**SMALL, "output_dir": str(tmp_path), "stp_spatial": "length", "stp_length": "2"})
    made = STPTrainer(tiny(), ones, config, ROWS, eval_dataset=ROWS, processing_class=tokenizer())
    before = made.evaluate()
    assert before["eval_completions/max_length"] <= 3, "two tokens and the end"


def test_nothing_is_evaluated_under_a_length_that_knows_the_answer(tmp_path: Path):
    known = Length(tokenizer(), budget=lambda row: 1)
    assert [knows_answer(p) for p in (known, Length(tokenizer(), quantile=0.5), Length(tokenizer(), budget=3))] == [
        True,
        True,
        False,
    ]
    lengths = []
    for priors in ([], [known]):
        config = STPConfig(**{**SMALL, "output_dir": str(tmp_path)})
        made = STPTrainer(tiny(), ones, config, ROWS, eval_dataset=ROWS, processing_class=tokenizer(), priors=priors)
        lengths.append(made.predict(ROWS).predictions.tolist())
    assert lengths[0] == lengths[1]


def test_unused_columns_are_hidden_from_rewards_at_evaluation_too(tmp_path: Path):
    seen = []

    def watched(completions: list[str], **columns: Any) -> list[float]:
        seen.append("answer" in columns)
        return [0.0] * len(completions)

    rows = [{**row, "answer": "1"} for row in ROWS]
    for hidden in (False, True):
        config = STPConfig(**{**SMALL, "output_dir": str(tmp_path), "remove_unused_columns": hidden})
        made = STPTrainer(tiny(), watched, config, rows, eval_dataset=rows, processing_class=tokenizer())
        made.evaluate()
        made.train_step()
        assert set(seen) == {not hidden}
        seen.clear()


def test_samples_are_drawn_by_the_law_of_the_run(sudoku: Any):
    model, characters, task, rows = sudoku
    decode = Decode(20, 10, temperature=1.0, samples=4)
    free, held = (
        evaluate(model, characters, task, rows, STPConfig(max_completion_length=20, **options), decode=decode)
        for options in ({}, {"top_k": 1})
    )
    greedy = evaluate(model, characters, task, rows, STPConfig(max_completion_length=20), decode=Decode(20, 10))
    assert held["completions"] == greedy["completions"]
    assert free["completions"] != greedy["completions"]


def test_no_more_rows_are_in_flight_than_asked_for(sudoku: Any, monkeypatch: pytest.MonkeyPatch):
    model, characters, task, rows = sudoku
    widest, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, lengths: (widest.append(len(ids)), hidden(ids, lengths))[1])
    evaluate(model, characters, task, rows, STPConfig(max_completion_length=20, stp_slots=2))
    assert max(widest) == 2
    widest.clear()
    evaluate(model, characters, task, rows, STPConfig(max_completion_length=20, stp_max_tokens=36))
    assert max(widest) == 1


def test_a_report_is_not_continued_under_another_law(sudoku: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, characters, task, rows = sudoku
    calls, real = [], evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    cells = [("free", [], Decode(20, 2))]
    for options in ({}, {}, {"top_k": 1}, {"stp_confidence": "margin"}, {"bf16": True, "use_cpu": True}):
        config = STPConfig(max_completion_length=20, **options)
        list(evaluate_cells(model, characters, task, rows, config, cells, tmp_path / "report.json"))
    assert len(calls) == 4


def test_priors_of_an_unpruned_run_are_those_of_the_task(tmp_path: Path):
    folder = tmp_path / "run"
    options = {**SHORT, "pruning": "none", "output_dir": str(folder)}
    assert main(["train", "--quiet", *(f"--{name}={value}" for name, value in options.items())]) == 0
    report = tmp_path / "report.json"
    assert main(["eval", str(folder), "-n=2", f"--json={report}"]) == 0
    free, given = json.loads(report.read_text())["cells"]
    assert given["nfe"] < free["nfe"]


def test_a_task_has_one_greedy_completion_at_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = {**SHORT, "output_dir": str(tmp_path / "run"), "num_generations_eval": 4}
    assert main(["train", "--quiet", *(f"--{name}={value}" for name, value in options.items())]) == 2
    assert "num_generations_eval: got 4 for a task" in capsys.readouterr().err


def test_kernels_are_deterministic_from_the_warm_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []
    monkeypatch.setattr(running, "enable_full_determinism", lambda seed: order.append(f"deterministic {seed}"))
    monkeypatch.setattr("transformers.trainer_utils.enable_full_determinism", lambda seed: None)
    config = TaskConfig(**{**SHORT, "sft_steps": 1}, full_determinism=True, seed=3, output_dir=str(tmp_path / "run"))
    running.run_training(config, on_sft=lambda *_: order.append("warm-up"))
    assert order == ["deterministic 3", "warm-up"]


# --- rewards ---


def test_each_function_counts_its_weight_in_sums_of_normalised_rewards():
    groups = np.zeros(4, dtype=np.int64)
    rewards = {"a": np.array([1.0, 0.0, 0.0, 1.0], np.float32), "b": np.array([0.0, 9.0, 0.0, 9.0], np.float32)}
    config = STPConfig(multi_objective_aggregation="normalize_then_sum")
    total = np.zeros(4, np.float32)  # the plain sum is not read
    for weights, order in (([1.0, 0.1], [3, 0, 1, 2]), ([0.1, 1.0], [3, 1, 0, 2])):
        found, _ = configured_advantages(config, total, rewards, np.array(weights, np.float32), groups)
        assert np.argsort(-found).tolist() == order
    plain, _ = configured_advantages(STPConfig(), total, rewards, np.ones(2, np.float32), groups)
    assert not plain.any()


# --- bf16 ---


@pytest.mark.parametrize("bf16", [False, True])
def test_forwards_are_timed_as_the_run_makes_them(tmp_path: Path, bf16: bool, monkeypatch: pytest.MonkeyPatch):
    made = trainer(tmp_path, bf16=bf16, use_cpu=True)
    found = forecast(made.args, ROWS, tokenizer(), policy=made.policy)
    seen, hidden = set(), made.policy.hidden

    def watched(*given: Any) -> Any:
        seen.add((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return hidden(*given)

    monkeypatch.setattr(made.policy, "hidden", watched)
    prices.calibrate(made.policy, found, made.args)
    assert seen == {(False, bf16), (True, bf16)}


def test_first_anchors_are_made_as_later_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(
        anchors, "generate", lambda *a, **k: (seen.append(torch.is_autocast_enabled("cpu")), generate(*a, **k))[1]
    )
    config = STPConfig(**{**SMALL, "output_dir": str(tmp_path), "preset": "stp_paper", "pruning": "stp_paper"},
                       stp_anchor_cache=str(tmp_path / "cache"), bf16=True, use_cpu=True)  # fmt: skip
    STPTrainer(tiny(), ones, config, ROWS, processing_class=tokenizer()).prepare()
    assert seen == [True]
    prompts = encode_prompts(ROWS, tokenizer(), uids=range(len(ROWS)))
    for on in (False, True):
        prior = OfflineGeneration()
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            prior.build(
                tiny(), prompts, tokenizer(), Unmasking(LENGTH), completion_length=LENGTH, cache=tmp_path / "other"
            )
    assert len(list((tmp_path / "other").iterdir())) == 2, "what one type made is not read in the other"


def test_the_twin_is_decoded_as_the_rollout_was(sudoku: Any, monkeypatch: pytest.MonkeyPatch):
    model, characters, _, rows = sudoku
    config = STPConfig(max_completion_length=20, bf16=True, use_cpu=True, stp_max_tokens=36)
    prompts = encode_prompts(rows, characters, uids=range(3))
    rollout = Rollout.of(prompts, np.full((3, 20), 5), np.tile(np.arange(20, dtype=np.int32), (3, 1)))
    seen, hidden = set(), model.hidden
    monkeypatch.setattr(
        model,
        "hidden",
        lambda ids, lengths: (seen.add((torch.is_autocast_enabled("cpu"), len(ids))), hidden(ids, lengths))[1],
    )
    unpruned(model, rollout, [0, 1, 2], config)
    assert seen == {(True, 1)}


def test_twins_earn_what_the_run_pays(sudoku: Any, tmp_path: Path):
    model, characters, task, rows = sudoku
    weights = [2.0] * len(task.reward_funcs)
    made = [STPConfig(max_completion_length=20, reward_weights=w) for w in (None, weights)]
    prompts = encode_prompts(rows, characters, uids=range(3))
    digits = characters(task.reference(rows[0]), add_special_tokens=False)["input_ids"]
    ids = np.tile(np.array(digits + [2] * (20 - len(digits))), (3, 1))
    rollout = Rollout.of(prompts, ids, np.tile(np.arange(20, dtype=np.int32), (3, 1)))
    earned = []
    for config in made:
        rewards = Rewards.of(list(task.reward_funcs), config)
        keeper = Keeper(tmp_path, model, characters, task, config, rewards)
        earned.append(keeper._judged(rollout).earned())
    assert earned[0].max() > 0
    assert earned[1] == pytest.approx(2 * earned[0])


def test_the_last_batch_of_a_run_by_epochs_is_kept(sudoku: Any, tmp_path: Path):
    made = trainer(tmp_path, stp_keep_rollouts=100, stp_rollouts=None, num_train_epochs=1.0)
    made.train()
    names = sorted(path.name for path in (tmp_path / "rollouts").glob("*.json"))
    assert names[-1] == f"step-{made.state.global_step:06d}.json"


def test_an_evaluation_before_training_makes_nothing(tmp_path: Path):
    stream = (row for row in ROWS)
    options = {**SMALL, "output_dir": str(tmp_path / "run"), "preset": "stp_paper", "pruning": "stp_paper"}
    made = STPTrainer(tiny(), ones, STPConfig(**options), ROWS, eval_dataset=ROWS, processing_class=tokenizer())
    made.evaluate()
    assert not list(tmp_path.rglob("*.safetensors"))
    streamed = trainer.__globals__["STPTrainer"](
        tiny(), ones, STPConfig(**SMALL, output_dir=str(tmp_path)), stream, processing_class=tokenizer()
    )
    streamed.predict(ROWS)


def test_a_layout_that_the_tokenizer_cannot_place_has_no_priors(sudoku: Any, monkeypatch: pytest.MonkeyPatch):
    model, characters, task, _ = sudoku
    config = TaskConfig(pruning="none", max_completion_length=20)
    assert len(running.evaluation_priors(config, task, characters, model)) == 2

    def refused(_: Any) -> None:
        raise ConfigError("no token places")

    monkeypatch.setattr(task, "check_places", refused)
    assert running.evaluation_priors(config, task, characters, model) == []


def test_a_run_whose_options_are_refused_is_named(tmp_path: Path):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "config.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("task: sudoku\nlora_r: 64\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: lora_r: got 64 without use_peft"):
        running.load_run(tmp_path / "checkpoint-1")


# --- the noise of a run's own design ---


def test_the_runs_own_design_is_measured_with_its_own_options(sudoku: Any):
    model = sudoku[0]
    prompts = encode_prompts(ROWS[:3], tokenizer(), uids=range(3))
    rollout = Rollout.of(prompts, np.full((3, 8), 5), np.tile(np.arange(8, dtype=np.int32), (3, 1)))

    def masked(config: STPConfig) -> set[int]:
        setting = Setting(model, 1.0, 8, 2, 4, 0, own=config)
        design = setting.design("state", 1)
        return {int(n) for draw in range(60) for n in setting.estimator(design).masks(rollout, draw).mask_PL.sum(1)}

    assert masked(STPConfig(preset="stp", max_completion_length=8)) == set(range(4, 9)), "at least half masked"
    assert masked(STPConfig(preset="stp_spread", max_completion_length=8)) == set(range(1, 9))
    setting = Setting(model, 1.0, 8, 2, 4, 0, own=STPConfig(preset="diffu_grpo", max_completion_length=8))
    hidden = setting.estimator(setting.design("mean_field", 1)).masks(rollout, 0).prompt_PW
    assert hidden is not None
    assert setting.estimator(setting.design("canvas", 1)).masks(rollout, 0).prompt_PW is None


# --- the command line, as a newcomer's walk found it ---


def test_what_no_run_wrote_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flags = [f"--{name}={value}" for name, value in SHORT.items()]
    for name, text in (("README.md", "# mine"), ("config.yaml", "mine: 1"), ("summary.json", "{}")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(text)
        assert main(["train", "--quiet", f"--output_dir={folder}", *flags]) == 2
        assert f"whose {name} no run wrote" in capsys.readouterr().err
        assert (folder / name).read_text() == text
    own = tmp_path / "own"
    for _ in range(2):  # the run's own files are no reason
        assert main(["train", "--quiet", f"--output_dir={own}", *flags]) == 0
    with pytest.raises(ConfigError, match="output_dir: got ' ', needs the name of a folder"):
        TaskConfig(output_dir=" ")


def test_a_temperature_of_0_has_nothing_to_compare():
    with pytest.raises(ConfigError, match="temperature: got 0, needs a number above 0"):
        STPConfig(temperature=0.0)
    STPConfig(temperature=0.0, stp_prior_per="sample")
    STPConfig(temperature=0.0, stp_confidence="random")


def test_a_canvas_too_short_for_the_layout_names_the_option(tmp_path: Path):
    config = TaskConfig(max_completion_length=5, output_dir=str(tmp_path))
    with pytest.raises(
        ConfigError, match="max_completion_length: got 5 for the task sudoku, whose layout has 18 tokens"
    ):
        running.complete(config, get_task("sudoku"))


@pytest.mark.parametrize("given", [["--card=foo"], ["--tflops=-5", "--shape=tiny"], ["--bench=x"], ["--tflops=3"]])
def test_throughputs_are_read_or_refused(given: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["estimate", *given]) == 2
    assert given[0][2:].split("=")[0] in capsys.readouterr().err


def test_a_torn_file_is_named_beside_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = tmp_path / "run"
    assert main(["train", "--quiet", f"--output_dir={run}", *(f"--{k}={v}" for k, v in SHORT.items())]) == 0
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().err == ""
    (run / "summary.json").write_bytes((run / "summary.json").read_bytes()[:-40])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    assert main(["report", str(run)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert "metrics.jsonl: 1 of" in said[0]
    assert "summary.json: is cut short" in said[1]


def test_a_run_without_a_checkpoint_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "config.yaml").write_text("task: sudoku\n")
    assert main(["eval", str(tmp_path)]) == 2
    assert "a run that has no checkpoint yet" in capsys.readouterr().err
