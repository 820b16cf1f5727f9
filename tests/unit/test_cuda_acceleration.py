"""On a CUDA device: cheaper passes of a bf16 policy with adapters, and by how much their numbers differ."""

import copy
from pathlib import Path

import pytest
import torch

import stp_rs
from stp_rs.models import acceleration
from stp_rs.models.masked_lm import MaskedLMAdapter
from tests.fixtures import tokenizer, trainer
from tests.unit.test_acceleration import BF16_GAP, IDS, adapted, bits, recorded_and_replayed, same_bits

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
DEVICE = torch.device("cuda")


def there() -> MaskedLMAdapter:
    """Return the bf16 policy with adapters on the device."""
    return MaskedLMAdapter(copy.deepcopy(adapted(torch.bfloat16).module).to(DEVICE), tokenizer())


def autocast() -> torch.autocast:
    return torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False)


def logprobs(model: stp_rs.DiffusionModel) -> torch.Tensor:
    return model.head(model.hidden(IDS.to(DEVICE), None).flatten(0, 1)).float().log_softmax(-1)


def test_casting_adapters_once_changes_no_bit():
    model = there()
    before = bits(model.module)
    with torch.no_grad(), autocast():
        plain = logprobs(model)
        with acceleration.adapters_ready(model.module):
            assert torch.equal(logprobs(model), plain)
    assert same_bits(model.module, before)


@pytest.mark.parametrize("host", [False, True])
def test_merging_leaves_every_bit(host: bool, monkeypatch: pytest.MonkeyPatch):
    if host:
        monkeypatch.setattr(acceleration, "_free_bytes", lambda _device: 0.0)
    model = there()
    before = bits(model.module)
    for _ in range(20):
        with torch.no_grad(), autocast(), acceleration.adapters_merged(model.module):
            logprobs(model)
    assert same_bits(model.module, before)


def test_compiled_blocks_stay_within_the_bound_and_shrink_without_compiling():
    model = there()
    with torch.no_grad(), autocast():
        plain = logprobs(model)
        assert acceleration.compile_blocks(model.module, probe=lambda: acceleration.first_pass(model)) == 2
        assert float((logprobs(model) - plain).abs().max()) < BF16_GAP
        counters = torch._dynamo.utils.counters["stats"]
        model.hidden(IDS[:2].to(DEVICE), None)
        before = counters["unique_graphs"]
        for rows, width in ((3, 6), (2, 5), (3, 4)):
            model.hidden(IDS[:rows, :width].to(DEVICE), None)
        assert counters["unique_graphs"] == before
        assert recorded_and_replayed(model).max() < BF16_GAP


def test_a_step_with_compiled_blocks_has_ratio_one_and_moves_adapters_only(tmp_path: Path):
    made = trainer(tmp_path, there().module, bf16=True, num_iterations=1, beta=0.1, stp_compile="blocks")
    before = bits(made.model.module)
    metrics = made.train_step().metrics
    assert abs(metrics["diffusion/ratio_max"] - 1) < 1e-6
    moved = {name for name, p in made.model.module.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
