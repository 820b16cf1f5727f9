"""LoRA adapters of peft: the base stays, the reference is the base, and a resume goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stp_rs import STPTrainer
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
    before = {name: p.detach().clone() for name, p in made.model.module.named_parameters()}
    kls = [made.train_step().metrics["kl"] for _ in range(3)]
    moved = {name for name, p in made.model.module.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert kls[-1] > kls[0] >= 0, "the reference is the base, whatever the adapters have become"
    ids = torch.tensor([[5, 1, 6, 4]])
    with torch.no_grad(), made.model.module.disable_adapter():
        base = made.model.module(input_ids=ids).logits[0]
    with torch.no_grad():
        assert torch.allclose(made.reference.head(made.reference.hidden(ids, None)[0]), base, atol=1e-5)


def test_a_run_with_adapters_resumes_with_the_same_numbers(tmp_path: Path):
    whole = run(tmp_path / "a", max_steps=4, save_steps=2)
    whole.train()
    cut = run(tmp_path / "b", max_steps=4, save_steps=2)
    for _ in range(2):
        cut.train_step()
    cut.save()
    resumed = run(tmp_path / "b", max_steps=4, save_steps=2)
    assert resumed.step == 2
    resumed.train()
    for (name, one), (_, other) in zip(
        whole.model.module.named_parameters(), resumed.model.module.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    saved = tmp_path / "b" / "checkpoint-4"
    again = peft.PeftModel.from_pretrained(tiny().module, saved)
    ids = torch.tensor([[5, 1, 6, 4]])
    with torch.no_grad():
        resumed.model.module.eval()
        again.eval()
        assert torch.allclose(again(input_ids=ids).logits, resumed.model.module(input_ids=ids).logits, atol=1e-6)


def test_dropout_of_adapters_is_off_where_ratios_are_made(tmp_path: Path):
    made = trainer(tmp_path, adapted(dropout=0.5), learning_rate=0.0, num_iterations=3)
    assert abs(made.train_step().metrics["diffusion/ratio_max"] - 1) < 1e-6
