"""Block-causal policies follow the published law exactly: in rollouts with a cache, and in every likelihood."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stp_rs
from stp_rs import Design, Unmasking
from stp_rs.data.prompts import encode_prompts
from stp_rs.errors import InvalidValueError, ModelError
from stp_rs.models.base import passes_without_dropout
from stp_rs.objective.likelihood import token_elbo
from stp_rs.objective.masks import draw_masks
from tests.standins import write

SIZE = 4
PROMPTS = [{"prompt": "012"}, {"prompt": "3[20]1"}, {"prompt": "0"}, {"prompt": "0123"}]


@pytest.fixture(params=["sdar", "llada2"])
def policy(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    return stp_rs.load(write(request.param, tmp_path / "model"), trust_remote_code=True)


class Uncached:
    """The policy without its cache: whole canvases under a block-causal mask."""

    def __init__(self, policy: Any) -> None:
        self.module, self.hidden, self.head = policy.module, policy.hidden, policy.head
        self.hidden_pair, self.block_size = policy.hidden_pair, policy.block_size
        for name in (
            "mask_token_id",
            "pad_token_id",
            "eos_token_id",
            "eos_token_ids",
            "logit_shift",
            "respects_padding",
        ):
            setattr(self, name, getattr(policy, name))


def decode(policy: Any, tokenizer: Any, length: int = 11, copies: int = 3, **options: Any) -> Any:
    prompts = encode_prompts(PROMPTS, tokenizer, uids=[4, 9, 2, 7]).repeat(copies)
    return stp_rs.generate(policy, prompts, Unmasking(length, **options), completion_length=length, seed=5, slots=7)


def law_of_a_block(policy: Any, clean: torch.Tensor, noisy: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """Return the log-probs of a noisy block behind clean ones, by definition: a forward of nothing else."""
    canvas = torch.cat([clean[:start], noisy[start:end]])[None]
    logits = policy.head(policy.hidden(canvas, None)[0, start:end])
    logits[:, policy.mask_token_id] = -torch.inf
    return logits.log_softmax(-1)


@pytest.mark.parametrize("design", ["cover", "mean_field", "trajectory", "canvas"])
def test_a_doubled_canvas_is_the_law_of_each_block_behind_clean_ones(policy: tuple[Any, Any], design: str):
    model, tokenizer = policy
    rollout = decode(model, tokenizer)
    masks = draw_masks(Design(design, 0 if design == "trajectory" else 2), rollout, seed=1)
    with torch.no_grad(), passes_without_dropout(model.module):
        got = token_elbo(model, rollout, masks).numpy()
        want = np.zeros_like(got)
        for mask_L, weight_L, row in zip(masks.mask_PL, masks.weight_PL, masks.row_P, strict=True):
            prompt = rollout.prompt_ids[row, : rollout.prompt_length[row]]
            clean = torch.from_numpy(np.concatenate([prompt, rollout.token_ids[row]]))
            noisy = clean.clone()
            noisy[len(prompt) :][torch.from_numpy(mask_L) == 1] = model.mask_token_id
            for start in range(0, len(clean), SIZE):
                end = min(start + SIZE, len(clean))
                logprobs = law_of_a_block(model, clean, noisy, start, end)
                for at in range(max(start, len(prompt)), end):
                    weight = weight_L[at - len(prompt)]
                    want[row, at - len(prompt)] += weight * float(logprobs[at - start, clean[at]])
    assert np.allclose(got, want, atol=2e-5)
    assert np.abs(want).max() > 0.3


def test_one_noisy_canvas_would_be_another_law(policy: tuple[Any, Any]):
    model, tokenizer = policy
    rollout = decode(model, tokenizer)
    masks = draw_masks(Design("canvas", 1), rollout, seed=1)
    single = Uncached(model)
    single.block_size = 0
    with torch.no_grad(), passes_without_dropout(model.module):
        right, wrong = (token_elbo(m, rollout, masks).sum(1) for m in (model, single))
    assert (right - wrong).abs().max() > 0.5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"confidence": "random"},
        {"selection": "threshold:0.4"},
        {"temporal": "fill_ratio:0.5"},
        {"temporal": "confidence:0.3"},
        {"eos": "truncate"},
    ],
    ids=str,
)
def test_the_cache_changes_no_token(policy: tuple[Any, Any], options: dict[str, Any]):
    model, tokenizer = policy
    cached, plain = (decode(m, tokenizer, **options) for m in (model, Uncached(model)))
    assert np.array_equal(cached.token_ids, plain.token_ids)
    assert np.array_equal(cached.unmask_step, plain.unmask_step)
    assert np.allclose(cached.logprob, plain.logprob, atol=1e-5)
    assert cached.stats["tokens"] < plain.stats["tokens"] / 2, "only current blocks and what is committed are computed"


def test_a_rollout_is_the_law_of_its_blocks(policy: tuple[Any, Any]):
    model, tokenizer = policy
    rollout = decode(model, tokenizer, confidence="random")
    assert rollout.exact
    assert np.allclose(stp_rs.replay_logprobs(model, rollout), rollout.logprob, atol=1e-4)


def test_blocks_are_counted_from_the_prompt_and_decoded_one_after_the_other(policy: tuple[Any, Any]):
    model, tokenizer = policy
    for options in ({"confidence": "random"}, {"temporal": "fill_ratio:0.5"}, {"selection": "threshold:0.2"}):
        rollout = decode(model, tokenizer, **options)
        for row, prompt in enumerate(rollout.prompt_length):
            block = (prompt + np.arange(11)) // SIZE
            steps = [rollout.unmask_step[row, block == b] for b in np.unique(block)]
            assert all(a.max() < b.min() for a, b in itertools.pairwise(steps))


def test_pruning_in_time_stays_inside_a_block(policy: tuple[Any, Any]):
    model, tokenizer = policy
    whole, pruned = decode(model, tokenizer), decode(model, tokenizer, temporal="fill_ratio:0.5")
    assert (pruned.nfe < whole.nfe).all()
    blocks = [len(np.unique((p + np.arange(11)) // SIZE)) for p in pruned.prompt_length]
    assert (pruned.nfe >= blocks).all(), "each block has a forward of its own"
    for options in ({"max_nfe": 2}, {"temporal": "fill_ratio_batch:0.9"}):
        with pytest.raises(InvalidValueError, match="rules that stay inside a block"):
            decode(model, tokenizer, **options)
    with pytest.raises(InvalidValueError, match="0 or 4, the block of the block-causal model"):
        decode(model, tokenizer, block_length=3)
    assert len(decode(model, tokenizer, block_length=4)) == 12


def test_a_row_does_not_depend_on_its_batch(policy: tuple[Any, Any]):
    model, tokenizer = policy
    together = decode(model, tokenizer, copies=1)
    for row, prompt in enumerate(PROMPTS):
        one = encode_prompts([prompt], tokenizer, uids=[[4, 9, 2, 7][row]]).repeat(1)
        alone = stp_rs.generate(model, one, Unmasking(11), completion_length=11, seed=5)
        assert np.array_equal(alone.token_ids[0], together.token_ids[row])
        assert np.allclose(alone.logprob[0], together.logprob[row], atol=1e-5)


def test_wrong_attention_is_refused(tmp_path: Path):
    folder = write("llada2", tmp_path / "causal")
    with pytest.raises(ModelError, match="it is causal"):
        stp_rs.load(folder, trust_remote_code=True, block_size=0)
    bidirectional = write("llada_moe", tmp_path / "moe")
    with pytest.raises(ModelError, match=r"sees tokens beyond its block|cannot be called"):
        stp_rs.load(bidirectional, trust_remote_code=True, block_size=4)
    with pytest.raises(ModelError, match="a shifted block-causal model is not supported"):
        stp_rs.load(write("sdar", tmp_path / "sdar"), trust_remote_code=True, logit_shift=1)
