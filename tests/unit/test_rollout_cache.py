"""Approximate caches: what they compute, when they refuse, and how a ratio is corrected for them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

import stp_rs
from stp_rs.errors import ConfigError, ModelError
from stp_rs.models import keys
from stp_rs.models.masked_lm import MaskedLMAdapter
from stp_rs.objective.replay import importance_weights
from stp_rs.rollout.loop import Batching
from tests.fixtures import ROWS, Tabular, tiny, tokenizer, trainer
from tests.standins import write

# peft reads a name that transformers has since given another one
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LENGTH, BLOCK = 12, 4


def sharp(*, seed: int = 1, layers: int = 3) -> MaskedLMAdapter:
    """Return a policy whose attention matters: with small random weights a cache would change nothing."""
    model = tiny(layers=layers, seed=seed)
    model.module.eval()
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if parameter.dim() > 1 and "embeddings" not in name:
                parameter.mul_(6.0)
    return model


def roll(model: Any, cache: keys.CacheKind = "none", *, tokens: Any = None, **options: Any) -> stp_rs.Rollout:
    prompts = stp_rs.encode_prompts(ROWS, tokens or tokenizer(), uids=range(len(ROWS))).repeat(3, step=0)
    slots = options.pop("slots", 64)
    unmasking = stp_rs.Unmasking(LENGTH, block_length=options.pop("block_length", BLOCK), **options)
    batching = Batching(cache=cache, share_first=slots != 5)
    return stp_rs.generate(model, prompts, unmasking, completion_length=LENGTH, seed=3, slots=slots, batching=batching)


class Stale(TorchFunctionMode):
    """The law of a cache, by its definition: the whole canvas, but of tokens outside the window old keys and values."""

    def __init__(self, kept: list[tuple[torch.Tensor, torch.Tensor]], window: slice | None) -> None:
        super().__init__()
        self.kept, self.window, self.layer = kept, window, 0

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value, *rest = args
        if self.window is None:
            self.kept.append((key.clone(), value.clone()))
        else:
            old_key, old_value = (t.clone() for t in self.kept[self.layer])
            old_key[:, :, self.window], old_value[:, :, self.window] = key[:, :, self.window], value[:, :, self.window]
            key, value = old_key, old_value
        self.layer += 1
        return func(query, key, value, *rest, **(kwargs or {}))


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("temporal", ["none", "steps:0.6"])
def test_every_recorded_number_is_that_of_the_definition(cache: keys.CacheKind, temporal: str):
    model = sharp()
    found = roll(model, cache, temporal=temporal)
    for row in range(0, len(found), 3):
        prompt = int(found.prompt_length[row])
        steps = found.unmask_step[row]
        canvas = torch.full((1, prompt + LENGTH), model.mask_token_id)
        canvas[0, :prompt] = torch.from_numpy(found.prompt_ids[row, :prompt])
        kept: list[Any] = []
        block = window = None
        for step in range(steps.max() + 1):
            drawn = np.flatnonzero(steps == step)
            masked = np.flatnonzero(steps >= step)
            last = step == steps.max() and temporal != "none"  # all that is left is committed, from a whole forward
            whole = last or masked[0] // BLOCK != block
            if whole:
                kept, block = [], masked[0] // BLOCK
                end = LENGTH if cache == "prefix" else masked[masked // BLOCK == block][-1] + 1
                window = slice(prompt + int(masked[0]), prompt + int(end))
            with torch.no_grad(), Stale(kept, None if whole else window):
                hidden = model.hidden(canvas, None)[0, prompt:]
                logits = model.head(hidden).float()
            logits[:, model.mask_token_id] = -torch.inf
            logprobs = logits.log_softmax(-1)
            ids = torch.from_numpy(found.token_ids[row])
            for place in drawn:
                assert float(logprobs[place, ids[place]]) == pytest.approx(found.logprob[row, place], abs=2e-4)
            canvas[0, prompt + drawn] = ids[drawn]


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_row_depends_on_its_own_blocks_only(cache: keys.CacheKind):
    model = sharp()
    wide, narrow = roll(model, cache), roll(model, cache, slots=5)
    assert np.array_equal(wide.token_ids, narrow.token_ids)
    assert np.array_equal(wide.unmask_step, narrow.unmask_step)
    assert np.allclose(wide.logprob, narrow.logprob, atol=1e-4)


def test_a_cache_computes_fewer_tokens_and_is_another_law():
    model = sharp()
    exact, prefix, dual = (roll(model, cache) for cache in ("none", "prefix", "dual"))
    assert dual.stats["tokens"] < prefix.stats["tokens"] < exact.stats["tokens"]
    assert exact.exact
    for found in (prefix, dual):
        assert not found.exact
        assert (found.nfe == exact.nfe).all()
        gap = np.abs(stp_rs.replay_logprobs(model, found) - found.logprob)
        assert gap.max() > 1e-2, "the recorded numbers are those of the law that drew"
    # a whole canvas at each block's start, and the rest of each block's steps by itself
    rows, blocks = len(dual), LENGTH // BLOCK
    widths = [rows * (n + LENGTH) for n in (int(dual.prompt_length.max()),)]
    assert dual.stats["tokens"] == blocks * widths[0] + blocks * (BLOCK - 1) * rows * BLOCK


def test_one_layer_is_exact():
    """What a first layer reads of a token is its own, and outside the block no token changes."""
    model = sharp(layers=1)
    exact, dual = roll(model), roll(model, "dual")
    assert np.array_equal(exact.token_ids, dual.token_ids)
    assert np.allclose(exact.logprob, dual.logprob, atol=1e-4)


@pytest.mark.parametrize("name", ["llada", "dream", "a2d"])
def test_stand_ins_of_published_code_are_called_in_part(name: str, tmp_path: Path):
    model, tokens = stp_rs.load(write(name, tmp_path / name), trust_remote_code=True)
    exact, dual = roll(model, tokens=tokens), roll(model, "dual", tokens=tokens)
    assert (exact.token_ids == dual.token_ids).mean() > 0.3
    assert dual.stats["tokens"] < exact.stats["tokens"]
    assert dual.logprob.max() <= 0


def test_adapters_are_called_in_part_too():
    peft = pytest.importorskip("peft", reason="the peft extra is not installed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
        model = MaskedLMAdapter(peft.get_peft_model(sharp().module, config), tokenizer())
    assert roll(model, "dual").stats["tokens"] < roll(model).stats["tokens"]


def refusal(model: Any) -> str:
    with pytest.raises(ModelError) as caught:
        keys.check(model)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_what_cannot_be_called_in_part_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert "Tabular" in refusal(Tabular(vocab=9, width=20, seed=0))
    blocks, _ = stp_rs.load(write("sdar", tmp_path / "sdar"), trust_remote_code=True)
    assert "exact cache" in refusal(blocks)
    eager = tiny()
    eager.module.config._attn_implementation = "eager"
    assert "not torch's" in refusal(eager)
    moved = tiny(layers=2)
    monkeypatch.setattr(moved, "hidden_window", lambda ids, _at: MaskedLMAdapter.hidden_window(moved, ids, None))
    assert "not computed as within the whole" in refusal(moved)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"stp_rollout_cache": "dual"}, "block_length"),
        ({"stp_rollout_cache": "prefix", "block_length": 3, "stp_temporal": "margin:2:1"}, "stp_temporal"),
        ({"stp_rollout_precision": "fp8"}, "capability"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], word: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=word):
        trainer(tmp_path, **options)


def test_weights_are_those_of_trajectories_and_bounded():
    found = roll(sharp(), "dual")
    policy = found.logprob + np.where(found.unmask_step >= 0, np.float32(0.1), np.float32(5.0))
    weights, metrics = importance_weights(policy.astype(np.float32), found, 2.0)
    assert np.allclose(weights, 2.0)
    weights, metrics = importance_weights(policy.astype(np.float32), found, 100.0)
    assert np.allclose(weights, np.exp(0.1 * LENGTH), rtol=1e-3)
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(0.1, abs=1e-4)
    assert metrics["sampling/importance_sampling_ratio/max"] == pytest.approx(np.exp(0.1 * LENGTH), rel=1e-3)


def test_weighted_samples_of_a_cache_have_the_policys_mean():
    """Importance weights without a bound turn the law that drew into the policy's: a mean of one token."""
    model = sharp(layers=2)
    prompts = stp_rs.encode_prompts(ROWS[:1], tokenizer(), uids=[0]).repeat(3000, step=0)
    unmasking = stp_rs.Unmasking(2, block_length=2, confidence="leftmost")
    drawn = {}
    for cache in ("none", "dual"):
        found = stp_rs.generate(
            model, prompts, unmasking, completion_length=2, seed=1, slots=512, batching=Batching(cache=cache)
        )
        weights = np.ones(len(found), dtype=np.float32)
        if cache == "dual":
            weights, _ = importance_weights(stp_rs.replay_logprobs(model, found), found, 1e9)
            assert weights.mean() == pytest.approx(1.0, abs=0.05)
        drawn[cache] = np.array([float((weights * (found.token_ids[:, 1] == token)).mean()) for token in range(10)])
    assert np.allclose(drawn["none"], drawn["dual"], atol=0.05)


def test_a_training_step_is_corrected_and_says_by_how_much(tmp_path: Path):
    options = {
        "block_length": 3,
        "stp_rollout_cache": "dual",
        "num_iterations": 2,
        "stp_design": "trajectory",
        "num_mc": 0,
    }
    made = trainer(tmp_path / "a", sharp(), **options)
    advantages: list[Any] = []
    updates = made.update.updates
    made.update.updates = lambda rollout, *rest: (advantages.append(rollout.advantage), updates(rollout, *rest))[1]
    metrics = made.train_step().metrics
    assert metrics["sampling/sampling_logp_difference/max"] > 1e-3
    assert (
        0 < metrics["sampling/importance_sampling_ratio/min"] < metrics["sampling/importance_sampling_ratio/max"] <= 2
    )
    assert metrics["diffusion/ratio_max"] < 1.5, "the old estimate is the policy's, not what the rollout recorded"
    plain = trainer(tmp_path / "b", sharp(), **options, stp_rollout_cap=None)
    without = plain.train_step().metrics
    assert "sampling/importance_sampling_ratio/mean" not in without
    assert metrics["diffusion/forwards_likelihood"] > without["diffusion/forwards_likelihood"]
    assert metrics["diffusion/tokens_rollout"] == without["diffusion/tokens_rollout"]


@pytest.mark.parametrize("bf16", [False, True])
def test_rounded_weights_are_put_back(bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """torchao's part is played by one that rounds, so that the path runs where it is not installed."""
    import sys
    from types import ModuleType

    torchao, quantization = ModuleType("torchao"), ModuleType("torchao.quantization")

    biases = set()

    def quantize(layer: Any, _recipe: Any) -> None:
        layer.register_forward_pre_hook(lambda layer, _inputs: biases.add(layer.bias.dtype))
        scale = layer.weight.detach().abs().max() / 7
        layer.weight = torch.nn.Parameter((layer.weight.detach() / scale).round() * scale)

    quantization.quantize_ = quantize  # type: ignore[attr-defined] # a stand-in module
    quantization.Int8WeightOnlyConfig = lambda: None  # type: ignore[attr-defined] # a stand-in module
    monkeypatch.setitem(sys.modules, "torchao", torchao)
    monkeypatch.setitem(sys.modules, "torchao.quantization", quantization)
    options = {"stp_rollout_precision": "int8", "num_iterations": 1, "learning_rate": 0.0, "bf16": bf16}
    made = trainer(tmp_path, sharp(), **options)
    before = {name: (p, p.detach().clone()) for name, p in made.model.named_parameters()}
    metrics = made.train_step().metrics
    assert metrics["sampling/sampling_logp_difference/mean"] > 1e-4
    for name, p in made.model.named_parameters():
        assert p is before[name][0]
        assert torch.equal(p, before[name][1])
    assert (torch.bfloat16 in biases) == bf16, "fp8 adds a bias in autocast's type only"


def test_int8_weights_of_torchao_are_near(tmp_path: Path):
    pytest.importorskip("torchao", reason="torchao is not installed")
    made = trainer(tmp_path, sharp(), stp_rollout_precision="int8")
    metrics = made.train_step().metrics
    assert 0 < metrics["sampling/sampling_logp_difference/mean"] < 0.2


def test_without_torchao_a_precision_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ConfigError, match="pip install torchao"):
        trainer(tmp_path, stp_rollout_precision="int8")
