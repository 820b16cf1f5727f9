"""The baselines: a rollout and an update as d1 (arXiv 2504.12216) makes them, written from their description.

Each keeps what makes its original slow: logits of the whole canvas, a softmax over the vocabulary at every position, a
device round trip per row and step, every row until the last step, an old and a reference pass for each inner iteration.

Shapes: B rows, S canvas width, L completion length, V vocabulary.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benches.python.published import llada_quotas, top_k_step

MASK = 1
Logits = Callable[[Tensor], Tensor]
"""Canvases [B, S] to logits [B, S, V]."""


@torch.no_grad()
def rollout(
    logits: Logits,
    prompt_BP: Tensor,
    *,
    completion: int,
    steps: int,
    block: int,
    temperature: float,
    seconds: float = float("inf"),
) -> tuple[Tensor, int]:
    """Return the canvases [B, S] and the steps that were made: d1's decoding, block by block, most confident first.

    Args:
        logits: the policy.
        prompt_BP: prompts of equal length.
        completion: L.
        steps: denoising steps of the whole completion.
        block: tokens of a block.
        temperature: of the Gumbel noise, which is drawn in the logits' type.
        seconds: no step starts after so many.
    """
    (rows, prompt), start, made = prompt_BP.shape, time.perf_counter(), 0
    canvas_BS = torch.full((rows, prompt + completion), MASK, device=prompt_BP.device)
    canvas_BS[:, :prompt] = prompt_BP
    blocks = completion // block
    for number in range(blocks):
        end = prompt + (number + 1) * block
        for quota in llada_quotas(block, steps // blocks):
            if time.perf_counter() - start > seconds:
                return canvas_BS, made
            found_BSV = logits(canvas_BS)
            quota_B = torch.full((rows,), quota, device=canvas_BS.device)
            top_k_step(
                found_BSV, canvas_BS, quota_B,
                mask_token_id=MASK, end=end, temperature=temperature, dtype=found_BSV.dtype,
            )  # fmt: skip
            made += 1
    return canvas_BS, made


class DiffuGRPO:
    """Diffu-GRPO's update: `iterations` masks of the prompt, and for each a step with the ratio and a k3 penalty.

    Args:
        logits: the policy, with gradient.
        reference: the policy before RL.
        optimizer: of its parameters.
        iterations: inner iterations.
    """

    def __init__(
        self, logits: Logits, reference: Logits, optimizer: torch.optim.Optimizer, iterations: int = 12
    ) -> None:
        self._logits, self._reference, self._optimizer, self._iterations = logits, reference, optimizer, iterations

    def run(self, prompt_BP: Tensor, completion_BL: Tensor, advantage_B: Tensor) -> tuple[float, float]:
        """Make the updates; return (seconds of the passes without gradient, seconds in all), each waited for."""
        start = _now(prompt_BP)
        draw = torch.Generator(prompt_BP.device).manual_seed(0)
        hidden = [
            torch.rand(prompt_BP.shape, generator=draw, device=prompt_BP.device) < 0.15 for _ in range(self._iterations)
        ]
        with torch.no_grad():
            old = [self._logprobs(self._logits, prompt_BP, completion_BL, mask) for mask in hidden]
            reference = [self._logprobs(self._reference, prompt_BP, completion_BL, mask) for mask in hidden]
        scored = _now(prompt_BP) - start
        for mask, old_BL, reference_BL in zip(hidden, old, reference, strict=True):
            new_BL = self._logprobs(self._logits, prompt_BP, completion_BL, mask)
            ratio_BL = (new_BL - old_BL).exp()
            gain_BL = torch.minimum(ratio_BL * advantage_B[:, None], ratio_BL.clamp(0.5, 1.5) * advantage_B[:, None])
            gap_BL = reference_BL - new_BL
            loss = -(gain_BL - 0.04 * (gap_BL.exp() - gap_BL - 1)).mean(1).mean()
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            loss.item()
            nn.utils.clip_grad_norm_([p for group in self._optimizer.param_groups for p in group["params"]], 0.2)
            self._optimizer.step()
        return scored, _now(prompt_BP) - start

    @staticmethod
    def _logprobs(logits: Logits, prompt_BP: Tensor, completion_BL: Tensor, mask_BP: Tensor) -> Tensor:
        """Return the log-probs [B, L] of the completion, all of it masked."""
        hidden = torch.full_like(completion_BL, MASK)
        canvas_BS = torch.cat([prompt_BP.masked_fill(mask_BP, MASK), hidden], dim=1)
        found_BLV = logits(canvas_BS)[:, prompt_BP.shape[1] :].float()
        loss = nn.functional.cross_entropy(found_BLV.flatten(0, 1), completion_BL.flatten(), reduction="none")
        return -loss.view(completion_BL.shape)


def _now(like: Tensor) -> float:
    if like.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
