"""Policies open by a folder, train, are saved, and open again: own modules, models of transformers, adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stp_rs
from stp_rs import STPConfig, STPTrainer
from stp_rs.errors import CheckpointError, ModelError
from stp_rs.models import load_policy
from tests.fixtures import ROWS, SMALL, Tabular, ones, tiny, tokenizer, trainer

# peft reads a name that transformers has since given another one
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

IDS = torch.tensor([[5, 1, 6, 4], [4, 4, 1, 7]])


def saved(folder: Path) -> Path:
    """Write the tests' policy and its tokenizer."""
    tiny().module.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def logits(policy: Any) -> Tensor:
    policy.module.eval()
    with torch.no_grad():
        return policy.head(policy.hidden(IDS, None))


class Plain(nn.Module):
    """A policy of one's own: no model of transformers, tied weights, a buffer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = nn.Embedding(10, 8)
            self.mix = nn.Linear(8, 8)
            self.out = nn.Linear(8, 10, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("seen", torch.zeros(1))


class Odd(Plain):
    """One with state that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"a": 1}


class Own:
    """It as a `DiffusionModel`."""

    mask_token_id, pad_token_id, eos_token_id, logit_shift, respects_padding = 1, 0, 2, 0, False

    def __init__(self, seed: int = 0) -> None:
        self.module = Plain(seed)

    def hidden(self, ids_BS: Tensor, _lengths_B: Tensor | None) -> Tensor:
        seen = self.module.embed(ids_BS)
        return torch.tanh(self.module.mix(seen) + seen.mean(1, keepdim=True))

    def head(self, hidden_NH: Tensor) -> Tensor:
        return self.module.out(hidden_NH)


@pytest.mark.parametrize("make", [Own, lambda seed=0: Tabular(vocab=10, width=12, seed=seed)], ids=["own", "table"])
def test_a_policy_of_ones_own_trains_is_saved_and_resumes(make: Any, tmp_path: Path):
    whole = trainer(tmp_path / "a", make(), stp_rollouts=4, save_strategy="steps", save_steps=4)
    whole.train()
    assert (tmp_path / "a" / "checkpoint-8" / "model.safetensors").is_file()
    cut = trainer(tmp_path / "b", make(), stp_rollouts=4, save_strategy="steps", save_steps=4)
    for _ in range(2):
        cut.train_step()
    cut.save()
    resumed = trainer(tmp_path / "b", make(), stp_rollouts=4, save_strategy="steps", save_steps=4)
    resumed.train(resume_from_checkpoint=True)
    ends = zip(whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in ends)


def test_what_a_checkpoint_could_not_hold_is_refused_before_the_first_step(tmp_path: Path):
    odd = Own()
    odd.module.__class__ = Odd
    with pytest.raises(ModelError, match=r"its state dict holds '_extra_state', which is no tensor"):
        trainer(tmp_path, odd)

    class Words:
        mask_token_id, pad_token_id, eos_token_id = 1, 0, 2

    config = STPConfig(**SMALL, output_dir=str(tmp_path))
    with pytest.raises(ModelError, match=r"processing_class: Words has no save_pretrained"):
        STPTrainer(Own(), ones, config, ROWS, processing_class=Words())


def test_weights_of_another_module_are_one_sentence(tmp_path: Path):
    made = trainer(tmp_path, Own(), stp_rollouts=1, save_strategy="steps")
    made.train()
    other = Own()
    other.module.mix = nn.Linear(8, 8, bias=False)
    with pytest.raises(CheckpointError, match="its weights cannot be loaded"):
        trainer(tmp_path, other, stp_rollouts=1, stp_allow_changed="model").train(resume_from_checkpoint=True)


def test_a_folder_opens_by_one_line(tmp_path: Path):
    policy, words = stp_rs.load(saved(tmp_path))
    assert torch.equal(logits(policy), logits(tiny()))
    assert words.get_vocab() == tokenizer().get_vocab()
    assert policy.mask_token_id == 1
    half, _ = stp_rs.load(tmp_path, dtype="bfloat16", gradient_checkpointing=True, logit_shift=1)
    assert next(half.module.parameters()).dtype == torch.bfloat16
    assert half.gradient_checkpointing
    assert half.logit_shift == 1
    assert torch.allclose(logits(half).float(), logits(policy), atol=0.1)
    with pytest.raises(TypeError, match=r"load: got 'lora_rank'"):
        stp_rs.load(tmp_path, lora_rank=4)
    with pytest.raises(CheckpointError, match="cannot be opened"):
        stp_rs.load(tmp_path / "nowhere")


def test_adapters_open_on_their_base_and_as_a_trainer_saved_them(tmp_path: Path):
    pytest.importorskip("peft", reason="the peft extra is not installed")
    base = saved(tmp_path / "base")
    options = {
        "use_peft": True,
        "lora_r": 2,
        "lora_target_modules": "query,value",
        "learning_rate": 3e-2,
        "save_strategy": "steps",
    }
    config = STPConfig(**{**SMALL, **options, "output_dir": str(tmp_path / "run")})
    made = STPTrainer(str(base), ones, config, ROWS)
    trained = {name for name, p in made.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    made.train()
    again, words = stp_rs.load(tmp_path / "run" / "checkpoint-8")
    assert torch.equal(logits(again), logits(made.policy))
    assert not torch.equal(logits(again), logits(tiny()))
    assert words.mask_token_id == 1
    assert {name for name, p in again.module.named_parameters() if p.requires_grad} == trained
    module, _ = load_policy(tmp_path / "run" / "checkpoint-8")
    assert type(module).__name__ == "PeftModel"
    with pytest.raises(
        ModelError, match=r"lora_target_modules: got \['nothing'\], which BertForMaskedLM does not have"
    ):
        stp_rs.load(base, use_peft=True, lora_target_modules=["nothing"])


def test_four_bits_say_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match="load_in_4bit: bitsandbytes is not installed"):
        stp_rs.load(saved(tmp_path), load_in_4bit=True)
