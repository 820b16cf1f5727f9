"""Probes: checks of what a policy declares against what its module computes, on its own device and dtype.

Shapes: S canvas width, N rows, V vocabulary.
"""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, cast

import torch
from torch import Tensor, nn

from stp_rs.errors import ModelError
from stp_rs.models.base import _eval_mode, device_of

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Largest difference of logits that is rounding, as a share of the largest logit."""


@dataclass(frozen=True)
class Finding:
    """What one probe found."""

    name: str
    passed: bool | None
    """None where it could not be told."""
    text: str


def check(policy: Any) -> bool:
    """Refuse a policy that is not what it declares; return whether a row alone is the row in a padded batch.

    Raises:
        ModelError: the first probe that failed, in words.
    """
    name = type(policy.module).__name__
    with torch.no_grad(), _eval_mode(policy.module):
        try:
            if _context(policy) == 1:
                raise ModelError(f"{name}: it has 1 position, needs at least 2: a token is predicted from others")
            for probe in (head, attention):
                finding = probe(policy)
                if finding.passed is False:
                    raise ModelError(f"{name}: {finding.text}")
        except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, AssertionError) as error:
            if isinstance(error, ModelError):
                raise
            instead = "pass an object with the members of stp_rs.DiffusionModel instead"
            if type(policy.module).__module__.startswith("transformers_modules."):  # code that came with the weights
                instead = f"its code may need another transformers than {version('transformers')} (docs/models.md)"
            raise ModelError(
                f"{name}: it cannot be called as a masked LM ({type(error).__name__}: {error}); {instead}"
            ) from error
        return padding(policy).passed is True


def pads_are_hidden(policy: Any) -> bool:
    """Return whether a row alone is the row in a padded batch; for a policy that hides pads from attention itself."""
    with torch.no_grad(), _eval_mode(policy.module):
        return padding(policy).passed is True


def probe(policy: Any, tokenizer: Any) -> list[Finding]:
    """Return the findings of all probes, those that need a trained model included."""
    with torch.no_grad(), _eval_mode(policy.module):
        return [
            head(policy),
            attention(policy),
            padding(policy),
            shift(policy, tokenizer),
            mask_token(policy),
            dropout(policy),
        ]


def head(policy: Any) -> Finding:
    """Whether the head, applied to gathered rows, gives the model's own logits."""
    ids = _canvas(policy, _width(policy))
    gathered = policy.head(policy.hidden(ids, None)[0]).float()
    whole = _own_logits(policy, ids)[0].float()
    gap = float((gathered - whole).abs().max()) if gathered.shape == whole.shape else float("inf")
    passed = gap <= _scale(policy, whole)
    text = "the head applied to gathered rows gives the model's own logits"
    if not passed:
        text = (
            f"the head applied to gathered rows differs from the model's logits by {gap:.2g}; pass an object with the "
            "members of stp_rs.DiffusionModel instead"
        )
    return Finding("head", passed, text)


def attention(policy: Any) -> Finding:
    """Whether the first position sees the last token of what it should see, and nothing beyond."""
    ids = _canvas(policy, _width(policy))
    before = policy.hidden(ids, None)

    def seen(part: slice, by: int = 0) -> bool:
        changed = ids.clone()
        changed[0, part] = changed[0, part].roll(1) if changed[0, part].unique().numel() > 1 else _plain(policy)[-1]
        return not torch.allclose(policy.hidden(changed, None)[:, by], before[:, by], atol=1e-6, rtol=1e-6)

    size = int(getattr(policy, "block_size", 0))
    if not size:
        sees = seen(slice(ids.shape[1] - 1, None)) or seen(slice(1, None))
        text = "attention is bidirectional"
        if not sees:
            does = "it is causal" if seen(slice(0, 2), by=-1) else "its attention does nothing for short canvases here"
            text = (
                f"its first position does not see its last token, so {does}; a masked-diffusion policy needs "
                "bidirectional attention"
            )
        return Finding("attention", sees, text)
    inside, beyond = seen(slice(1, size)), seen(slice(size, None))
    passed = (inside or size == 1) and not beyond
    text = f"attention is block-causal in blocks of {size}"
    if not passed:
        where = "sees tokens beyond its block" if beyond else "does not see its own block"
        text = f"its first position {where}, so its attention is not block-causal in blocks of {size}"
    return Finding("attention", passed, text)


def padding(policy: Any) -> Finding:
    """Whether a row alone is the row in a padded batch."""
    ids = _canvas(policy, _width(policy))
    alone = policy.head(policy.hidden(ids, None)[0]).float()
    room = min(2, _context(policy) - ids.shape[1])
    if room < 1:
        return Finding("padding", None, "no position is left for a pad: rows of one length at a time share a call")
    padded = torch.cat([ids, torch.full_like(ids[:, :room], policy.pad_token_id)], dim=1)
    batch = torch.cat([padded, torch.cat([ids, ids[:, :room]], dim=1)])
    lengths = torch.tensor([ids.shape[1], padded.shape[1]], device=ids.device)
    try:
        together = policy.head(policy.hidden(batch, lengths)[0, : ids.shape[1]]).float()
        passed = torch.allclose(together, alone, atol=_scale(policy, alone), rtol=0)
    except (
        TypeError,
        ValueError,
        RuntimeError,
        AttributeError,
        AssertionError,
    ):  # code that takes no mask, or none of this shape
        passed = False
    text = "pads are not attended: rows of unequal lengths share a call"
    return Finding(
        "padding", passed, text if passed else "pads are attended: rows of one length at a time share a call"
    )


def shift(policy: Any, tokenizer: Any) -> Finding:
    """Whether a token that its context determines is predicted best at the declared row."""
    words = "one two three four one two three four one two three four one two three four"
    ids = _ids_of(tokenizer, words)
    if len(set(ids)) < 2 or len(ids) < 8:
        ids = (_plain(policy)[:4] * 4)[:16]
    if len(ids) > _context(policy):
        return Finding("shift", None, f"{_context(policy)} positions are too few to tell")
    canvas = torch.tensor([ids], device=_device(policy)).repeat(len(ids) // 2, 1)
    at = torch.arange(len(ids) // 2, len(ids) // 2 + len(canvas))
    rows = torch.arange(len(canvas))
    targets = canvas[rows, at].clone()
    canvas[rows, at] = policy.mask_token_id
    logits = policy.head(policy.hidden(canvas, None).flatten(0, 1)).float().view(*canvas.shape, -1)
    logits[..., policy.mask_token_id] = -torch.inf
    right = {s: float((logits[rows, at - s].argmax(-1) == targets).float().mean()) for s in (0, 1)}
    declared, other = right[policy.logit_shift], right[1 - policy.logit_shift]
    text = f"of masked tokens {declared:.0%} are found at shift {policy.logit_shift}, {other:.0%} at the other"
    if max(declared, other) < 0.75 or abs(declared - other) < 0.25:
        return Finding("shift", None, f"{text}: this model finds too few to tell")
    return Finding("shift", declared > other, text)


def mask_token(policy: Any) -> Finding:
    """Whether the mask token's embedding looks like a trained one."""
    embedding = getattr(policy.module, "get_input_embeddings", lambda: None)()
    weight = getattr(embedding, "weight", None)
    if weight is None or weight.dim() != 2 or not weight.is_floating_point():
        return Finding("mask token", None, f"id {policy.mask_token_id}; its embedding was not found")
    row, norms = weight[policy.mask_token_id].float(), weight[:: max(1, len(weight) // 4096)].float().norm(dim=1)
    twins = int((weight == weight[policy.mask_token_id]).all(1).sum()) - 1
    norm, usual = float(row.norm()), float(norms.median())
    text = f"id {policy.mask_token_id}, embedding norm {norm:.2g} (median {usual:.2g})"
    if norm < 1e-6 or twins > 0:
        return Finding("mask token", False, f"{text}: it was never trained; use the model's own mask token")
    return Finding("mask token", True, text)


def dropout(policy: Any) -> Finding:
    """Whether any dropout is set; it is switched off in every pass."""
    rates = [m.p for m in policy.module.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    text = f"{len(rates)} modules, up to {max(rates):.2g}; switched off in every pass" if rates else "none"
    return Finding("dropout", True, text)


def _width(policy: Any) -> int:
    if getattr(policy, "block_size", 0):
        return int(2 * policy.block_size + 1)
    return max(2, min(4, _context(policy) - 1))  # with room for a pad


def _context(policy: Any) -> int:
    """Return how many tokens fit, a large number where the model does not say."""
    return int(getattr(policy, "context_length", 0)) or 1 << 30


def _plain(policy: Any) -> list[int]:
    config = policy.module.config
    vocab = int(getattr(config, "vocab_size", 0) or 8)
    special = {policy.mask_token_id, policy.pad_token_id}
    return [i for i in range(min(vocab, 64)) if i not in special][:7]


def _canvas(policy: Any, width: int) -> Tensor:
    plain = _plain(policy)
    ids = torch.tensor([[plain[i % len(plain)] for i in range(width)]], device=_device(policy))
    ids[0, min(2, width - 1)] = policy.mask_token_id
    return ids


def _own_logits(policy: Any, ids: Tensor) -> Tensor:
    output = policy.own_output(ids)
    return cast(Tensor, output.logits if hasattr(output, "logits") else output[0])


def _scale(policy: Any, logits: Tensor) -> float:
    dtype = next((p.dtype for p in policy.module.parameters() if p.is_floating_point()), torch.float32)
    return _TOLERANCE.get(dtype, 6e-2) * max(1.0, float(logits.abs().max()))


def _device(policy: Any) -> torch.device:
    return device_of(policy)


def _ids_of(tokenizer: Any, text: str) -> list[int]:
    try:
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    except (TypeError, ValueError, KeyError):
        return []
    return [] if getattr(tokenizer, "unk_token_id", None) in ids else ids
