"""LoRA adapters of peft: the base stays, the reference is the base, and a resume goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stp_rs import STPTrainer
from stp_rs.errors import ModelError
from stp_rs.models.reference import WithoutAdapters
from tests.fixtures import tiny, trainer

# peft reads a name that transformers has since given another one
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
peft = pytest.importorskip("peft", reason="the peft extra is not installed")


def adapted(dropout: float = 0.0) -> Any:
    """Return the tests' policy with LoRA on its attention, its adapters' weights not random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["query", "value"])
        return peft.get_peft_model(tiny().module, config)


def run(folder: Path, **options: Any) -> STPTrainer:
    return trainer(folder, adapted(), learning_rate=3e-2, **options)


def test_adapters_learn_and_the_base_stays(tmp_path: Path):
    made = run(tmp_path, beta=0.1, num_iterations=2)
    assert isinstance(made.reference, WithoutAdapters)
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    kls = [made.train_step().metrics["kl"] for _ in range(3)]
    moved = {name for name, p in made.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert kls[-1] > kls[0] >= 0, "the reference is the base, whatever the adapters have become"
    ids = torch.tensor([[5, 1, 6, 4]])
    with torch.no_grad(), made.model.disable_adapter():
        base = made.model(input_ids=ids).logits[0]
    with torch.no_grad():
        assert torch.allclose(made.reference.head(made.reference.hidden(ids, None)[0]), base, atol=1e-5)


def test_a_run_with_adapters_resumes_with_the_same_numbers(tmp_path: Path):
    whole = run(tmp_path / "a", stp_rollouts=4, save_strategy="steps", save_steps=4)
    whole.train()
    cut = run(tmp_path / "b", stp_rollouts=4)
    for _ in range(2):
        cut.train_step()
    cut.save()
    resumed = run(tmp_path / "b", stp_rollouts=4, save_strategy="steps", save_steps=4)
    resumed.train(resume_from_checkpoint=True)
    for (name, one), (_, other) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    saved = tmp_path / "b" / "checkpoint-8"
    again = peft.PeftModel.from_pretrained(tiny().module, saved)
    ids = torch.tensor([[5, 1, 6, 4]])
    with torch.no_grad():
        resumed.model.eval()
        again.eval()
        assert torch.allclose(again(input_ids=ids).logits, resumed.model(input_ids=ids).logits, atol=1e-6)


def test_dropout_of_adapters_is_off_where_ratios_are_made(tmp_path: Path):
    made = trainer(tmp_path, adapted(dropout=0.5), learning_rate=0.0, num_iterations=3)
    assert abs(made.train_step().metrics["diffusion/ratio_max"] - 1) < 1e-6


def trained_adapter(folder: Path) -> Path:
    """Write an adapter that has been trained: it changes what the network computes."""
    made = adapted()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    made.save_pretrained(folder)
    return folder


def test_the_reference_of_a_trained_adapter_is_the_policy_before_rl(tmp_path: Path):
    folder = trained_adapter(tmp_path / "adapter")
    module = peft.PeftModel.from_pretrained(tiny().module, folder, is_trainable=True)
    made = trainer(tmp_path / "run", module, learning_rate=3e-2, beta=0.1, num_iterations=1)
    ids = torch.tensor([[5, 1, 6, 4]])

    def logits(policy: Any) -> torch.Tensor:
        with torch.no_grad():
            return policy.head(policy.hidden(ids, None)[0])

    made.model.eval()
    before = logits(made.policy)
    with torch.no_grad(), made.model.disable_adapter():
        assert not torch.allclose(made.model(input_ids=ids).logits[0], before, atol=1e-3)
    weights = sum(p.numel() for p in made.model.parameters())
    kept = sum(t.numel() for t in made.reference.kept.values())
    assert kept < weights / 10, "no copy of the weights"
    kls = [made.train_step().metrics["kl"] for _ in range(3)]
    assert kls[0] == 0.0
    assert kls[-1] > 0.0
    made.model.eval()
    assert torch.equal(logits(made.reference), before), "the reference is the policy before RL"
    assert not torch.equal(logits(made.policy), before)
    with pytest.raises(RuntimeError, match="called with gradients on"):
        made.reference.hidden(ids, None)


def test_the_reference_of_a_partly_frozen_policy_keeps_the_trained_part(tmp_path: Path):
    policy = tiny(layers=2)
    for name, parameter in policy.module.named_parameters():
        parameter.requires_grad_("layer.1" in name)
    made = trainer(tmp_path, policy, learning_rate=3e-2, beta=0.1, num_iterations=1)
    assert made.train_step().metrics["kl"] == 0.0
    assert made.train_step().metrics["kl"] > 0.0
    assert made.reference.module is policy.module


def test_adapters_loaded_frozen_have_nothing_to_train(tmp_path: Path):
    frozen = peft.PeftModel.from_pretrained(tiny().module, trained_adapter(tmp_path / "adapter"))
    with pytest.raises(ModelError, match=r"nothing to train; load adapters with is_trainable=True"):
        trainer(tmp_path / "run", frozen)
    policy = tiny()
    policy.module.requires_grad_(False)
    with pytest.raises(ModelError, match=r"nothing to train; unfreeze some"):
        trainer(tmp_path / "run", policy)
