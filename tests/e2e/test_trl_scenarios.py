"""What TRL's own tests of GRPOTrainer ask of it, and what its users write: asked of STPTrainer, with names changed.

Each test is a scenario of a script that was written for TRL; docs/coming_from_trl.md lists what does not apply.
"""

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import EarlyStoppingCallback, HfArgumentParser, TrainerCallback
from transformers.trainer_callback import PrinterCallback, TrainerState

from stp_rs import STPConfig, STPTrainer
from stp_rs.config import PRESETS
from stp_rs.errors import CheckpointError, ConfigError
from tests.fixtures import ROWS, Watch, tiny, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
OPTIONS: dict[str, Any] = {
    "preset": "grpo",
    "learning_rate": 0.1,
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 6,
    "max_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def length_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    """Reward the share of ones."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(text.count("1")) + i % 3 for i, text in enumerate(texts)]


def made(run: Path, reward: Any = length_reward, model: Any = None, rows: Any = None, **given: Any) -> STPTrainer:
    """Return a trainer as a script of TRL makes it."""
    arguments = ("eval_dataset", "callbacks", "optimizers", "peft_config", "reward_processing_classes", "priors")
    passed = {name: given.pop(name) for name in arguments if name in given}
    chosen = {**OPTIONS, "output_dir": str(run), **given}
    trainer = STPTrainer(
        model=tiny().module if model is None else model,
        reward_funcs=reward,
        args=STPConfig(**chosen),
        train_dataset=ROWS if rows is None else rows,
        processing_class=tokenizer(),
        **passed,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def moved(trainer: STPTrainer) -> bool:
    """Train and return whether every parameter that can move did."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] is not None
    after = dict(trainer.model.named_parameters())
    return any(not torch.equal(value, after[name]) for name, value in before.items())


def logged(trainer: STPTrainer, name: str) -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


# --- training, losses, options


def test_train(tmp_path: Path):
    trainer = made(tmp_path)
    assert moved(trainer)
    assert trainer.state.global_step == 2
    names = {"loss", "grad_norm", "learning_rate", "reward", "reward_std", "frac_reward_zero_std", "epoch", "step"}
    names |= {
        "completions/mean_length",
        "rewards/length_reward/mean",
        "rewards/length_reward/std",
        "num_tokens",
        "step_time",
    }
    assert names <= trainer.state.log_history[0].keys()


def test_the_smallest_call_takes_every_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    trainer = STPTrainer(tiny().module, length_reward, train_dataset=ROWS, processing_class=tokenizer())
    assert trainer.args.output_dir == "trainer_output"
    assert trainer.args.learning_rate == 1e-6


LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")


@pytest.mark.parametrize("loss_type", LOSSES)
def test_train_loss_types(loss_type: str, tmp_path: Path):
    level = {"importance_sampling_level": "sequence"} if loss_type == "luspo" else {}
    assert moved(made(tmp_path, loss_type=loss_type, **level))


@pytest.mark.parametrize(
    "options",
    [
        {"num_iterations": 2, "max_steps": 4},
        {"beta": 0.1},
        {"delta": 2.0},
        {"epsilon_high": 0.28},
        {"importance_sampling_level": "sequence"},
        {"mask_truncated_completions": True},
        {"top_entropy_quantile": 0.2},
        {"entropy_coef": 0.01},
        {"off_policy_mask_threshold": 0.5},
        {"use_bias_correction_kl": True, "beta": 0.1},
        {"multi_objective_aggregation": "normalize_then_sum"},
        {"top_p": 0.9, "top_k": 3, "min_p": 0.01, "temperature": 0.8},
        {"gradient_accumulation_steps": 2},
        {"steps_per_generation": 2},
        {"generation_batch_size": 8},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"gradient_checkpointing": True},
        {"lr_scheduler_type": "cosine", "warmup_steps": 1},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 1},
        {"optim": "adamw_torch"},
        {"optim": "sgd"},
        {"optim": "adafactor"},
        {"weight_decay": 0.1},
        {"max_grad_norm": 0.1},
        {"bf16": True, "use_cpu": True},
        {"seed": 7, "data_seed": 3},
        {"shuffle_dataset": False},
        {"logging_first_step": True, "logging_steps": 2},
        {"full_determinism": False},
        {"dataloader_num_workers": 1},
        {"torch_empty_cache_steps": 1},
    ],
    ids="-".join,
)
def test_train_with_options(options: dict[str, Any], tmp_path: Path):
    assert moved(made(tmp_path, **options)) or options == {"mask_truncated_completions": True}


@pytest.mark.parametrize("scale_rewards", [False, "group", "batch", True, "none"])
def test_train_scale_rewards(scale_rewards: Any, tmp_path: Path):
    assert moved(made(tmp_path, scale_rewards=scale_rewards))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains(preset: str, tmp_path: Path):
    options = {"stp_rescue": "none"} if preset == "igpo" else {}
    each = {"stp_paper": 4}.get(preset, 4)
    trainer = made(
        tmp_path, preset=preset, pruning="none", num_generations=each, per_device_train_batch_size=4, **options
    )
    trainer.train()
    assert trainer.state.global_step == 2


def test_max_steps_counts_updates_and_epochs_stand_in_for_it(tmp_path: Path):
    seen: list[int] = []
    trainer = made(tmp_path / "a", num_iterations=2, max_steps=4, callbacks=[Watch(lambda r: seen.append(r.step))])
    trainer.train()
    assert seen == [2, 4], "two rollouts of two updates"
    without = made(tmp_path / "b", max_steps=-1)
    without.train()
    assert without.state.global_step == 3 * len(ROWS), "three epochs, one prompt a batch"
    assert without.state.epoch == pytest.approx(3)
    odd = made(tmp_path / "c", num_iterations=2, max_steps=3)
    assert odd.train().global_step == 3


def test_the_first_warm_up_rate_is_zero_and_norms_do_not_decay(tmp_path: Path):
    trainer = made(tmp_path, warmup_steps=2, weight_decay=0.5, max_steps=3)
    trainer.train()
    assert logged(trainer, "learning_rate")[0] == 0.0
    decayed, kept = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.5, 0.0)
    by_id = {id(p): name for name, p in trainer.model.named_parameters()}
    assert all("bias" in by_id[id(p)] or "LayerNorm" in by_id[id(p)] for p in kept["params"])


def test_optimizers_of_the_caller_are_used(tmp_path: Path):
    model = tiny().module
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    trainer = made(tmp_path, model=model, optimizers=(optimizer, schedule))
    trainer.train()
    assert trainer.optimizer is optimizer
    assert logged(trainer, "learning_rate") == [0.5, 0.25]


def test_logged_values_are_means_since_the_last_line(tmp_path: Path):
    rewards: list[float] = []
    trainer = made(
        tmp_path, max_steps=4, logging_steps=2, callbacks=[Watch(lambda r: rewards.append(r.metrics["reward"]))]
    )
    trainer.train()
    assert logged(trainer, "reward") == pytest.approx([np.mean(rewards[:2]), np.mean(rewards[2:])])


# --- datasets, prompts, evaluation


class Stream:
    """Rows that can only be read in order, as a `datasets.IterableDataset`."""

    def __iter__(self) -> Any:
        return iter(ROWS)


def test_train_with_a_stream_needs_max_steps(tmp_path: Path):
    assert moved(made(tmp_path / "a", rows=Stream(), max_steps=8))
    with pytest.raises(ConfigError, match="max_steps: got -1 with a stream of rows"):
        made(tmp_path / "b", rows=Stream(), max_steps=-1).train()


def test_train_dataset_of_datasets(tmp_path: Path):
    datasets = pytest.importorskip("datasets", reason="the datasets extra is not installed")
    whole = datasets.Dataset.from_list(list(ROWS))
    assert moved(made(tmp_path / "a", rows=whole))
    assert moved(made(tmp_path / "b", rows=whole.to_iterable_dataset()))
    several = datasets.DatasetDict({"train": whole, "test": whole})
    with pytest.raises(ConfigError, match="train_dataset: got the sets train, test"):
        made(tmp_path / "c", rows=several)
    trainer = made(tmp_path / "d", rows=whole, eval_dataset=several)
    assert {"eval_train_reward", "eval_test_reward"} <= trainer.evaluate().keys()


@pytest.mark.parametrize("wrong", [None, [], 3, {"train": ROWS}])
def test_a_dataset_that_cannot_be_is_refused(wrong: Any, tmp_path: Path):
    with pytest.raises(ConfigError, match="train_dataset: got"):
        STPTrainer(tiny().module, length_reward, STPConfig(**OPTIONS), wrong, processing_class=tokenizer())


def test_train_with_eval(tmp_path: Path):
    trainer = made(tmp_path, eval_dataset=ROWS, eval_strategy="steps", eval_steps=1, num_generations_eval=2)
    trainer.train()
    assert len(logged(trainer, "eval_reward")) == 2
    assert {"eval_loss", "eval_reward_std", "eval_rewards/length_reward/mean", "eval_runtime"} <= {
        name for line in trainer.state.log_history for name in line
    }


def test_evaluate_several_sets_and_one_of_the_callers(tmp_path: Path):
    trainer = made(tmp_path, eval_dataset={"easy": ROWS[:2], "hard": ROWS[2:]})
    assert {"eval_easy_reward", "eval_hard_reward"} <= trainer.evaluate().keys()
    assert "mine_reward" in trainer.evaluate(ROWS[:1], metric_key_prefix="mine")
    again = trainer.evaluate(ROWS[:1])
    assert trainer.evaluate(ROWS[:1])["eval_reward"] == again["eval_reward"], "the same random numbers each time"


def test_predict_returns_completions_and_metrics(tmp_path: Path):
    found = made(tmp_path).predict(ROWS[:2])
    assert found.predictions.shape == (8, 6)
    assert "test_reward" in found.metrics


def test_evaluation_moves_nothing_of_training(tmp_path: Path):
    plain = made(tmp_path / "a", max_steps=3)
    watched = made(
        tmp_path / "b", max_steps=3, eval_dataset=ROWS, eval_strategy="steps", eval_steps=1, eval_on_start=True
    )
    for trainer in (plain, watched):
        trainer.train()
    assert logged(plain, "loss") == logged(watched, "loss")
    assert plain.ledger.forward_equivalents == watched.ledger.forward_equivalents
    assert len(logged(watched, "eval_reward")) == 4, "before training too"


def test_evaluation_without_a_dataset_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="eval_dataset: got none"):
        made(tmp_path).evaluate()


def conversation(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_train_with_conversations_and_arguments_of_the_template(tmp_path: Path):
    words = tokenizer()
    before = words.chat_template
    words.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if loud %}]{% endif %}"
    try:
        seen: list[Any] = []

        def reward(completions: Any, prompts: Any, **_: Any) -> list[float]:
            seen.extend(zip(prompts, completions, strict=True))
            return length_reward(completions)

        rows = [{"prompt": conversation(row["prompt"])} for row in ROWS]
        plain = made(tmp_path / "a", reward, rows=rows)
        assert moved(plain)
        prompt, completion = seen[0]
        assert prompt[0]["role"] == "user"
        assert completion[0]["role"] == "assistant"
        lengths: list[int] = []
        watch = Watch(lambda r: lengths.append(int(r.rollout.prompt_length[0])))
        loud = made(tmp_path / "b", reward, rows=rows, chat_template_kwargs={"loud": True}, callbacks=[watch])
        loud.train()
        assert len(lengths) == 2
        assert "]" in tokenizer().decode(loud._prompts(0).prompt_ids[0])
    finally:
        words.chat_template = before


# --- rewards


def test_several_rewards_with_weights(tmp_path: Path):
    def other(completions: Sequence[str], **_: Any) -> list[float]:
        return [float(len(set(text))) for text in completions]

    trainer = made(tmp_path, [length_reward, other], reward_weights=[0.7, 0.3])
    assert moved(trainer)
    line = trainer.state.log_history[0]
    total = 0.7 * line["rewards/length_reward/mean"] + 0.3 * line["rewards/other/mean"]
    assert line["reward"] == pytest.approx(total, abs=1e-5)


def test_asynchronous_rewards(tmp_path: Path):
    async def slow(completions: Sequence[str], **_: Any) -> list[float]:
        await asyncio.sleep(0)
        return [float(i) for i in range(len(completions))]

    assert moved(made(tmp_path, [length_reward, slow]))


def test_rewards_may_abstain(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def sometimes(completions: Sequence[str], **_: Any) -> list[float | None]:
        return [None if i % 2 else 1.0 for i in range(len(completions))]

    assert moved(made(tmp_path / "a", [length_reward, sometimes]))

    def never(completions: Sequence[str], **_: Any) -> list[None]:
        return [None] * len(completions)

    with caplog.at_level(logging.WARNING):
        made(tmp_path / "b", never).train()
    assert "All reward functions returned None" in caplog.text


def test_rewards_read_columns_ids_and_the_state_and_log(tmp_path: Path):
    states: list[int] = []

    def reading(
        completions: Any,
        prompts: Any,
        completion_ids: Any,
        mine: Any,
        trainer_state: Any,
        log_extra: Any,
        log_metric: Any,
    ) -> list[float]:
        assert len(completions) == len(prompts) == len(completion_ids) == len(mine)
        assert isinstance(trainer_state, TrainerState)
        states.append(trainer_state.global_step)
        log_extra("twice", [2 * value for value in mine])
        log_metric("mean_of_mine", float(np.mean(mine)))
        return [float(value) + i for i, value in enumerate(mine)]

    rows = [{**row, "mine": i} for i, row in enumerate(ROWS)]
    trainer = made(tmp_path, reading, rows=rows, log_completions=True)
    trainer.train()
    assert states == [0, 1]
    assert len(logged(trainer, "mean_of_mine")) == 2
    (first, *_) = sorted((tmp_path / "completions").iterdir())
    if first.suffix == ".jsonl":
        row = json.loads(first.read_text().splitlines()[0])
        assert list(row) == ["step", "prompt", "completion", "reading", "advantage", "twice"]


def test_remove_unused_columns_hides_them(tmp_path: Path):
    def reading(completions: Any, **columns: Any) -> list[float]:
        assert "mine" not in columns
        return length_reward(completions)

    rows = [{**row, "mine": 1} for row in ROWS]
    assert moved(made(tmp_path, reading, rows=rows, remove_unused_columns=True))


def test_no_reward_is_refused(tmp_path: Path):
    for none in (None, []):
        with pytest.raises(ConfigError, match="reward_funcs: got none"):
            made(tmp_path, none)


# --- callbacks, saving, resuming


def test_users_callbacks_hear_all_events_and_can_stop(tmp_path: Path):
    heard: list[str] = []

    class Mine(TrainerCallback):
        def __getattribute__(self, name: str) -> Any:
            if name.startswith("on_"):
                heard.append(name)
            return super().__getattribute__(name)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == 3

    trainer = made(tmp_path, max_steps=9, callbacks=[Mine], save_strategy="steps", save_steps=2, num_iterations=2)
    trainer.train()
    assert trainer.state.global_step == 3
    wanted = {"init_end", "train_begin", "train_end", "epoch_begin", "step_begin", "step_end", "log", "save"}
    assert {f"on_{name}" for name in wanted | {"pre_optimizer_step", "optimizer_step"}} <= set(heard)


def test_a_callback_can_ask_for_a_save_an_evaluation_and_a_log(tmp_path: Path):
    class Asks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                control.should_save = control.should_evaluate = control.should_log = True

    trainer = made(tmp_path, max_steps=3, logging_steps=100, callbacks=[Asks()], eval_dataset=ROWS)
    trainer.train()
    assert (tmp_path / "checkpoint-2").is_dir()
    assert [line["step"] for line in trainer.state.log_history if "eval_reward" in line] == [2]
    assert [line["step"] for line in trainer.state.log_history if "loss" in line] == [2, 3]


def test_callbacks_come_and_go(tmp_path: Path):
    class Counts(TrainerCallback):
        steps = 0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            Counts.steps += 1

    trainer = made(tmp_path)
    trainer.add_callback(Counts)
    assert trainer.pop_callback(Counts) is not None
    trainer.add_callback(Counts())
    trainer.train()
    assert Counts.steps == 2


def test_early_stopping_and_the_best_model(tmp_path: Path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "reward", "greater_is_better": True}
    trainer = made(
        tmp_path,
        max_steps=6,
        eval_dataset=ROWS[:1],
        callbacks=[EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=1e9)],
        **options,
        **best,
    )
    trainer.train()
    assert trainer.state.global_step < 6
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{trainer.state.best_global_step}")
    saved = type(trainer.model).from_pretrained(trainer.state.best_model_checkpoint)
    pairs = zip(saved.parameters(), trainer.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_checkpoints_have_the_files_of_transformers(tmp_path: Path):
    made(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=1, max_steps=3).train()
    (folder,) = tmp_path.glob("checkpoint-*")
    assert folder.name == "checkpoint-3"
    names = {path.name for path in folder.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "optimizer.safetensors",
        "scheduler.safetensors",
        "trainer_state.json",
    } <= names
    assert {"training_args.json", "tokenizer_config.json", "stp_state.json"} <= names
    state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
    assert state.global_step == 3
    assert len(state.log_history) == 3


def test_only_the_model_is_saved_where_asked(tmp_path: Path):
    made(tmp_path, save_strategy="steps", save_only_model=True).train()
    assert not (tmp_path / "checkpoint-2" / "optimizer.safetensors").exists()


def test_save_model_and_state(tmp_path: Path):
    trainer = made(tmp_path / "run")
    trainer.train()
    trainer.save_model(str(tmp_path / "mine"))
    trainer.save_state()
    again = type(trainer.model).from_pretrained(tmp_path / "mine")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), trainer.model.parameters(), strict=True))
    assert (tmp_path / "run" / "trainer_state.json").is_file()
    opened = STPTrainer(str(tmp_path / "mine"), length_reward, STPConfig(**OPTIONS), ROWS)
    assert opened.tokenizer.get_vocab() == tokenizer().get_vocab()


@pytest.mark.parametrize("how", [True, "folder"])
def test_training_goes_on_where_asked_and_only_there(how: Any, tmp_path: Path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = made(tmp_path / "whole", **options)
    whole.train()
    cut = made(tmp_path / "cut", **options)

    class Stop(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = True

    cut.add_callback(Stop())
    cut.train()
    assert cut.state.global_step == 2
    with pytest.raises(CheckpointError, match=r"holds a run \(checkpoint-2\)"):
        made(tmp_path / "cut", **options).train()
    asked = True if how is True else str(tmp_path / "cut" / "checkpoint-2")
    on = made(tmp_path / "cut", **options)
    out = on.train(resume_from_checkpoint=asked)
    assert out.global_step == 4
    assert logged(on, "loss") == logged(whole, "loss")
    assert all(torch.equal(a, b) for a, b in zip(on.model.parameters(), whole.model.parameters(), strict=True))


def test_train_returns_what_transformers_returns(tmp_path: Path):
    out = made(tmp_path).train()
    assert out.global_step == 2
    assert isinstance(out.training_loss, float)
    assert {"train_runtime", "train_loss", "train_steps_per_second", "total_flos"} <= out.metrics.keys()


def test_a_second_call_trains_again(tmp_path: Path):
    trainer = made(tmp_path)
    trainer.train()
    first = trainer.model.state_dict()["bert.embeddings.word_embeddings.weight"].clone()
    trainer.train()
    assert trainer.state.global_step == 2
    assert not torch.equal(first, trainer.model.state_dict()["bert.embeddings.word_embeddings.weight"])


def test_log_and_process_zero(tmp_path: Path):
    trainer = made(tmp_path)
    trainer.log({"mine": 1.0})
    assert trainer.state.log_history[-1]["mine"] == 1.0
    assert trainer.is_world_process_zero()
    assert trainer.is_local_process_zero()


def test_strategies_by_epoch(tmp_path: Path):
    strategies = {"logging_strategy": "epoch", "save_strategy": "epoch", "eval_strategy": "epoch"}
    trainer = made(tmp_path, max_steps=-1, num_train_epochs=2, eval_dataset=ROWS[:1], **strategies)
    trainer.train()
    assert [line["epoch"] for line in trainer.state.log_history if "eval_reward" in line] == [1.0, 2.0]
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2


def test_metrics_go_to_tensorboard(tmp_path: Path):
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    made(tmp_path, report_to="tensorboard").train()
    assert list(tmp_path.rglob("events.out.tfevents*"))


# --- peft, devices


def test_train_with_peft(tmp_path: Path):
    peft = pytest.importorskip("peft", reason="the peft extra is not installed")
    config = peft.LoraConfig(r=2, target_modules=["query", "value"])
    trainer = made(tmp_path / "a", peft_config=config, beta=0.1, save_strategy="steps")
    assert moved(trainer)
    assert (tmp_path / "a" / "checkpoint-2" / "adapter_model.safetensors").is_file()
    with pytest.raises(ConfigError, match="peft_config: got one for a model that has adapters"):
        made(tmp_path / "b", model=trainer.model, peft_config=config)
    checkpointed = made(tmp_path / "c", peft_config=config, gradient_checkpointing=True)
    assert moved(checkpointed)


def test_the_model_goes_to_the_device(tmp_path: Path):
    trainer = made(tmp_path, stp_device="cpu")
    assert trainer.args.device == torch.device("cpu")
    assert {p.device for p in trainer.model.parameters()} == {torch.device("cpu")}


# --- the configuration


def test_the_parser_of_transformers_reads_it():
    words = [
        "--output_dir",
        "x",
        "--preset",
        "espo",
        "--learning_rate",
        "1e-5",
        "--num_mc",
        "4",
        "--shuffle_dataset",
        "no",
    ]
    (config,) = HfArgumentParser(STPConfig).parse_args_into_dataclasses(words)
    assert config == STPConfig(output_dir="x", preset="espo", learning_rate=1e-5, num_mc=4, shuffle_dataset=False)
    assert (config.beta, config.num_iterations) == (0.01, 8), "what was not given is the preset's"


def test_the_preset_grpo_is_that_of_trl():
    config = STPConfig(preset="grpo")
    assert (config.beta, config.epsilon, config.epsilon_high, config.num_iterations) == (0.0, 0.2, None, 1)
    assert (config.loss_type, config.importance_sampling_level, config.scale_rewards) == ("dapo", "token", "group")
    assert (config.stp_kl, config.stp_negative_advantage_weight, config.temperature) == ("k3", 1.0, 1.0)
    assert (config.learning_rate, config.num_generations, config.logging_steps, config.save_steps) == (1e-6, 8, 10, 500)
    assert (config.max_steps, config.num_train_epochs, config.per_device_train_batch_size) == (-1, 3, 8)
    assert (config.adam_beta2, config.max_grad_norm, config.seed, config.top_k) == (0.999, 1.0, 42, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_vllm": True}, "use_vllm: is not supported: completions come from the denoising rollout"),
        ({"use_liger_kernel": True}, "use_liger_kernel: is not supported"),
        ({"repetition_penalty": 1.1}, "repetition_penalty: is not supported"),
        ({"fp16": True}, "fp16: is not supported: no loss is scaled here"),
        ({"deepspeed": "zero3.json"}, "deepspeed: is not supported: the processes of a run share work through"),
        ({"generation_batch_size": 8, "steps_per_generation": 4}, "got both, needs one of them"),
        ({"generation_batch_size": 10}, "needs a multiple of per_device_train_batch_size"),
        ({"num_generations": 3}, "needs a multiple of num_generations (3)"),
        ({"num_generations": 1}, "num_generations: got 1, needs at least 2"),
        ({"loss_type": "unknown"}, "loss_type: got 'unknown', needs one of"),
        (
            {"save_strategy": "steps", "load_best_model_at_end": True},
            "load_best_model_at_end requires the save and eval",
        ),
        ({"lora_r": 8}, "lora_r: got 8 without use_peft, so nothing reads it"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        made(tmp_path, **options)
    assert message in str(caught.value)


def test_what_is_off_in_trl_too_may_be_said(tmp_path: Path):
    assert STPConfig(use_vllm=False, repetition_penalty=None, output_dir=str(tmp_path)).preset == "stp"
