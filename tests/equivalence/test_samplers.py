"""Our rollouts are token for token those of the published samplers' formulas, on the same model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import stp_rs
from benches.python import published
from stp_rs.data.prompts import PromptBatch
from stp_rs.types import Mark

MASK, PAD, EOS, VOCAB, PROMPT, LENGTH, BLOCK, ROWS = 1, 0, 2, 23, 3, 24, 8, 6


class Mixing(torch.nn.Module):
    """A bidirectional model without a library: a token's logits depend on every other token of its row."""

    def __init__(self, seed: int, sharpness: float) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.embed = torch.nn.Parameter(torch.randn(VOCAB, 16, generator=draw))
        self.place = torch.nn.Parameter(torch.randn(64, 16, generator=draw))
        self.mix = torch.nn.Parameter(torch.randn(16, 16, generator=draw) / 4)
        self.out = torch.nn.Parameter(torch.randn(16, VOCAB, generator=draw) * sharpness)

    def forward(self, ids_BS: torch.Tensor) -> torch.Tensor:
        x = self.embed[ids_BS] + self.place[: ids_BS.shape[1]]
        return torch.tanh(x + x.mean(1, keepdim=True) @ self.mix)


class Model:
    mask_token_id, pad_token_id, eos_token_id, logit_shift, respects_padding = MASK, PAD, EOS, 0, False

    def __init__(self, seed: int, sharpness: float = 0.5) -> None:
        self.module: Any = Mixing(seed, sharpness)

    def hidden(self, ids_BS: torch.Tensor, lengths_B: torch.Tensor | None) -> torch.Tensor:
        assert lengths_B is None
        return self.module(ids_BS)

    def head(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        return hidden_NH @ self.module.out

    def logits(self, ids_BS: torch.Tensor) -> torch.Tensor:
        """Return whole-canvas logits; the published loops trust the model never to predict the mask."""
        logits = self.head(self.hidden(ids_BS, None))
        logits[..., MASK] = -torch.inf
        return logits


def prompts(rows: int = ROWS) -> PromptBatch:
    ids = np.random.default_rng(5).integers(3, VOCAB, (rows, PROMPT))
    at = np.arange(rows)
    return PromptBatch([{}] * rows, ids, np.full(rows, PROMPT, np.int32), at.astype(np.uint64), at)


Step = Callable[[torch.Tensor, torch.Tensor, int, int], None]
"""(logits, canvas, block end, step within the block) -> writes into the canvas."""


@torch.no_grad()
def reference(model: Model, step: Step, block: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (tokens, forward that revealed each, forwards) of a published loop; idle forwards are not numbered."""
    canvas = torch.full((ROWS, PROMPT + LENGTH), MASK)
    canvas[:, :PROMPT] = torch.from_numpy(prompts().prompt_ids)
    revealed = np.full((ROWS, LENGTH), -1)
    useful = np.zeros(ROWS, int)
    forwards = 0
    for start in range(0, LENGTH, block):
        end = PROMPT + start + block
        index = 0
        while bool((canvas[:, :end] == MASK).any()):
            before = (canvas == MASK).clone()
            step(model.logits(canvas), canvas, end, index)
            new = (before & (canvas != MASK)).numpy()[:, PROMPT:]
            revealed[new] = np.broadcast_to(useful[:, None], new.shape)[new]
            useful += new.any(1)
            index, forwards = index + 1, forwards + 1
            assert forwards < 1000
    return canvas[:, PROMPT:].numpy(), revealed, forwards


def same(model: Model, step: Step, unmasking: stp_rs.Unmasking, block: int = BLOCK) -> int:
    """Check our greedy rollout against a published loop; return the forwards of the loop."""
    tokens, steps, forwards = reference(model, step, block)
    ours = stp_rs.generate(model, prompts(), unmasking, completion_length=LENGTH, sampling=stp_rs.GREEDY)
    assert ours.token_ids.tolist() == tokens.tolist()
    filled_at = np.where(ours.unmask_step == Mark.UNDRAWN, ours.nfe[:, None] - 1, ours.unmask_step)
    assert filled_at.tolist() == steps.tolist()
    return forwards


def by_quota(quotas: Callable[[int, int], list[int]], steps: int, dtype: torch.dtype) -> Step:
    def step(logits: torch.Tensor, canvas: torch.Tensor, end: int, index: int) -> None:
        quota = torch.full((ROWS,), quotas(BLOCK, steps)[index])
        published.top_k_step(logits, canvas, quota, mask_token_id=MASK, end=end, dtype=dtype)

    return step


@pytest.mark.parametrize("steps", [1, 3, 5, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_llada_and_d1(seed: int, steps: int):
    unmasking = stp_rs.Unmasking(3 * steps, block_length=BLOCK, quota="llada", confidence="sampled_prob")
    same(Model(seed), by_quota(published.llada_quotas, steps, torch.float64), unmasking)
    same(Model(seed), by_quota(published.llada_quotas, steps, torch.float32), unmasking)


@pytest.mark.parametrize("steps", [1, 3, 5, 8])
def test_dllm(steps: int):
    unmasking = stp_rs.Unmasking(3 * steps, block_length=BLOCK, quota="dllm")
    same(Model(3), by_quota(published.dllm_quotas, steps, torch.float32), unmasking)


@pytest.mark.parametrize("steps", [4, 24, 40])
def test_dream(steps: int):
    quotas = published.dream_quotas(LENGTH, min(steps, LENGTH))

    def step(logits: torch.Tensor, canvas: torch.Tensor, end: int, index: int) -> None:
        published.top_k_step(logits, canvas, torch.full((ROWS,), quotas[index]), mask_token_id=MASK, end=end)

    unmasking = stp_rs.Unmasking(min(steps, LENGTH), quota="dream")
    forwards = same(Model(4), step, unmasking, block=LENGTH)
    idle = quotas.count(0)
    assert forwards - idle == len([q for q in quotas if q])


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("sharpness", [0.5, 2.0])
def test_fast_dllm_threshold(tau: float, sharpness: float):
    def step(logits: torch.Tensor, canvas: torch.Tensor, end: int, _index: int) -> None:
        waiting = (canvas[:, :end] == MASK).any(1)
        part = canvas[waiting]
        published.threshold_step(logits[waiting], part, tau, mask_token_id=MASK, end=end)
        canvas[waiting] = part

    same(Model(6, sharpness), step, stp_rs.Unmasking(LENGTH, block_length=BLOCK, selection=f"threshold:{tau}"))


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.9])
@pytest.mark.parametrize("sharpness", [0.5, 2.0])
def test_fast_dllm_factor(factor: float, sharpness: float):
    def step(logits: torch.Tensor, canvas: torch.Tensor, end: int, _index: int) -> None:
        published.factor_step(logits, canvas, factor, mask_token_id=MASK, end=end)

    same(Model(7, sharpness), step, stp_rs.Unmasking(LENGTH, block_length=BLOCK, selection=f"factor:{factor}"))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0])
def test_entropy_bound(gamma: float):
    def step(logits: torch.Tensor, canvas: torch.Tensor, end: int, _index: int) -> None:
        published.entropy_bound_step(logits, canvas, gamma, mask_token_id=MASK, end=end)

    options = {"selection": f"entropy_bound:{gamma}", "confidence": "entropy"}
    same(Model(8, 1.0), step, stp_rs.Unmasking(LENGTH, block_length=BLOCK, **options))


class Ending(Model):
    """A model that likes the end of text."""

    def head(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        logits = super().head(hidden_NH)
        logits[..., EOS] += 1.2
        return logits


def ranked_step(quota: int, eos: str, share: float = 2.0) -> Step:
    """Reveal a quota of each row's most certain masks; hold back or end at the end of text; commit all when full.

    As LLaDA's `confidence_eos_eot_inf`, as samplers that stop at the end of text, and as the paper's exit: it looks at
    the whole batch, whose rows are equally full here.
    """

    def step(logits: torch.Tensor, canvas: torch.Tensor, end: int, _index: int) -> None:
        drawn = logits.argmax(-1)
        confidence = torch.softmax(logits.double(), -1).amax(-1)
        if eos == "last":
            confidence = torch.where(drawn == EOS, -1.0, confidence)
        for row in range(ROWS):
            masks = [p for p in range(PROMPT, end) if canvas[row, p] == MASK]
            for p in sorted(masks, key=lambda p: (-float(confidence[row, p]), p))[:quota]:
                canvas[row, p] = drawn[row, p]
            shown = canvas[row, PROMPT:].tolist()
            if eos == "truncate" and EOS in shown and MASK not in shown[: shown.index(EOS)]:
                canvas[row, canvas[row] == MASK] = EOS
        if float((canvas[:, PROMPT:] != MASK).double().mean()) >= share:
            canvas[canvas == MASK] = drawn[canvas == MASK]

    return step


@pytest.mark.parametrize("block", [BLOCK, LENGTH])
@pytest.mark.parametrize("quota", [1, 2])
@pytest.mark.parametrize("eos", ["last", "truncate"])
def test_end_of_text(eos: str, quota: int, block: int):
    unmasking = stp_rs.Unmasking(LENGTH // quota, block_length=block, eos=eos)
    forwards = same(Ending(5), ranked_step(quota, eos), unmasking, block)
    tokens, steps, _ = reference(Ending(5), ranked_step(quota, eos), block)
    plain, order, most = reference(Ending(5), ranked_step(quota, "none"), block)
    if eos == "last":
        assert (steps != order).any(), "it holds something back"
    else:
        assert (tokens != plain).any(), "it cuts something off"
        assert forwards <= most


@pytest.mark.parametrize("share", [0.3, 0.75, 0.95])
@pytest.mark.parametrize("rule", ["fill_ratio", "fill_ratio_batch"])
def test_the_papers_exit(rule: str, share: float):
    unmasking = stp_rs.Unmasking(LENGTH, temporal=f"{rule}:{share}")
    forwards = same(Model(5), ranked_step(1, "none", share), unmasking, LENGTH)
    assert forwards == int(np.ceil(share * LENGTH - 1e-6)), "the tokens that are left need no forward of their own"


def test_the_published_quotas_are_those_of_the_table():
    assert published.llada_quotas(10, 4) == [3, 3, 2, 2]
    assert published.llada_quotas(5, 8) == [1] * 5 + [0] * 3
    assert published.dllm_quotas(10, 4) == [2, 3, 2, 3]
    assert published.dream_quotas(10, 4) == [2, 2, 2, 4]
    assert published.dream_quotas(5, 8) == [0, 0, 0, 0, 1, 1, 1, 2]


def test_the_published_loops_draw_from_the_law_that_we_draw_from():
    """Gumbel-argmax and inverse CDF draw other tokens, by the same law: counts of 20,000 draws of one candidate."""
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -4.0, 1.0])
    count = 20_000
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gumbel = published.gumbel_argmax(logits.expand(count, 1, -1), 0.9, torch.float64).flatten()
    uniforms = (torch.randperm(count, generator=torch.Generator().manual_seed(1)) + 0.5) / count
    law = stp_rs.SamplingParams(temperature=0.9)
    ours = stp_rs.rollout.logits.reduce_logits(logits.expand(count, -1), uniforms, law)[:, 0].long()
    expected = torch.softmax(logits / 0.9, 0) * count
    assert torch.allclose(torch.bincount(ours, minlength=6).float(), expected, atol=1.5)
    theirs = torch.bincount(gumbel, minlength=6)
    assert float(((theirs - expected) ** 2 / expected).sum()) < 30.9  # the 1e-5 tail of chi-square with 5 degrees
