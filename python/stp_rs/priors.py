"""Spatial priors: what fixes completion tokens before decoding.

A prior is any callable (prompts, completion_length) -> PriorSet. Sources compose in order; conflicts are errors.

Shapes: R rows, L completion length.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from stp_rs import _core
from stp_rs.checkpoint import atomic_file
from stp_rs.errors import CheckpointError, InvalidValueError, PriorConflictError
from stp_rs.likelihood import Masks, token_elbo
from stp_rs.model import DiffusionModel, passes_without_dropout
from stp_rs.prompts import PromptBatch, end_of_text_id
from stp_rs.rollout import generate
from stp_rs.sampling import Sampling


class Prior(Protocol):
    """Fixes completion tokens of a batch of prompts."""

    def __call__(self, prompts: PromptBatch, completion_length: int) -> _core.PriorSet:
        """Return the fixed tokens, one row per prompt row."""
        ...


def compose_priors(priors: Sequence[Prior], prompts: PromptBatch, completion_length: int) -> _core.PriorSet:
    """Return all priors of a batch, applied in order.

    Raises:
        PriorConflictError: two of them fix one position to different tokens.
    """
    combined = _core.PriorSet.empty(len(prompts))
    for prior in priors:
        combined = combined.compose(prior(prompts, completion_length))
    return combined


END = ""
"""Stands for the end-of-text token in a template or copy."""


def _token_id(text: str, tokenizer: Any) -> int:
    if text == END:
        return end_of_text_id(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise InvalidValueError(f"prior text {text!r}: got {len(ids)} tokens, needs exactly one; split it by position")
    return int(ids[0])


def _dense(cells: Sequence[Mapping[int, str]], tokenizer: Any, length: int, source: str) -> _core.PriorSet:
    ids_RL = np.full((len(cells), length), -1, dtype=np.int64)
    known: dict[str, int] = {}
    for row, mapping in enumerate(cells):
        for position, text in mapping.items():
            if not -length <= position < length:
                raise InvalidValueError(
                    f"prior position: got {position}, needs one from {-length} to {length - 1} for a completion of "
                    f"{length} tokens"
                )
            if text not in known:
                known[text] = _token_id(text, tokenizer)
            fixed = ids_RL[row, position]
            if fixed not in (-1, known[text]):  # a position named from both ends
                raise PriorConflictError(
                    f"prior row {row}: position {position} is fixed to token {fixed} and to token {known[text]}"
                )
            ids_RL[row, position] = known[text]
    return _core.PriorSet.from_dense(ids_RL, source)


@dataclass(frozen=True)
class Template:
    """Literal tokens of the output format at fixed places.

    Attributes:
        texts: completion position -> one-token text, or `END`; a negative position counts from the end of the canvas.
        tokenizer: the policy's tokenizer.
    """

    texts: Mapping[int, str]
    tokenizer: Any

    def __call__(self, prompts: PromptBatch, completion_length: int) -> _core.PriorSet:
        """Return the template for every row."""
        return _dense([self.texts] * len(prompts), self.tokenizer, completion_length, "template")


@dataclass(frozen=True)
class Copy:
    """Completion tokens that the prompt already determines, for example the clues of a Sudoku.

    Attributes:
        copies: dataset row -> (completion position -> one-token text).
        tokenizer: the policy's tokenizer.
    """

    copies: Callable[[dict[str, Any]], Mapping[int, str]]
    tokenizer: Any

    def __call__(self, prompts: PromptBatch, completion_length: int) -> _core.PriorSet:
        """Return each row's copies."""
        return _dense([self.copies(dict(row)) for row in prompts.rows], self.tokenizer, completion_length, "copy")


AnswerSpan = Callable[[str], tuple[int, int] | None]
"""Completion text -> character range of the answer, which is never fixed; None where there is no answer."""


def tag_span(start: str = "<answer>", end: str = "</answer>") -> AnswerSpan:
    """Return a finder of the text between the last `start` tag and the `end` that follows it."""

    def find(text: str) -> tuple[int, int] | None:
        begin = text.rfind(start)
        if begin < 0:
            return None
        begin += len(start)
        stop = text.find(end, begin)
        return begin, stop if stop >= 0 else len(text)

    return find


@dataclass
class OfflineGeneration:
    """The paper's prior (arXiv 2602.08905): anchors from the initial policy's own completion of each training prompt.

    Kept is the share `keep` of the *non-answer* tokens, chosen by `selector`; confidence is the log-prob under one
    fully masked forward of the initial policy. Token ids are stored and never re-tokenised, with hashes of the
    tokenizer and of the policy that made them.

    Example:
        prior = OfflineGeneration(keep=0.05, answer_span=tag_span("[", "]"))
        prior.build(model, prompts, tokenizer, sampler, completion_length=20)
    """

    keep: float = 0.05
    selector: str = "top_confidence"
    answer_span: AnswerSpan | None = None
    seed: int = 0
    anchors: dict[str, NDArray[np.int64]] = field(default_factory=dict, repr=False)
    hashes: dict[str, str] = field(default_factory=dict)

    def build(
        self,
        model: DiffusionModel,
        prompts: PromptBatch,
        tokenizer: Any,
        sampler: _core.Sampler,
        *,
        completion_length: int,
    ) -> None:
        """Make and store the anchors of `prompts` with the current policy: one rollout and one forward per prompt."""
        rollout = generate(
            model,
            prompts,
            sampler,
            completion_length=completion_length,
            sampling=Sampling(0.0),
            seed=self.seed,
        )
        ids_RL = rollout.token_ids
        everything = Masks(
            mask_PL=np.ones(ids_RL.shape, dtype=np.uint8),
            weight_PL=np.ones(ids_RL.shape, dtype=np.float32),
            row_P=np.arange(len(prompts), dtype=np.int32),
            scored_RL=np.ones(ids_RL.shape, dtype=np.uint8),
            length_R=np.full(len(prompts), completion_length, dtype=np.int32),
        )
        with torch.no_grad(), passes_without_dropout(model.module):
            confidence_RL = token_elbo(model, rollout, everything, forward_batch_size=256).cpu().numpy()
        keep_RL = np.zeros(ids_RL.shape, dtype=np.uint8)
        _core.choose_anchors(
            self.selector,
            self.keep,
            confidence=np.ascontiguousarray(confidence_RL),
            eligible=eligible_tokens(ids_RL, tokenizer, self.answer_span),
            seed=self.seed,
            uids=prompts.uid,
            keep=keep_RL,
        )
        for prompt, row in zip(_keys(prompts), np.where(keep_RL == 1, ids_RL, -1), strict=True):
            self.anchors[prompt] = row
        self.hashes = {"tokenizer": tokenizer_hash(tokenizer), "policy": policy_hash(model)}

    def __call__(self, prompts: PromptBatch, completion_length: int) -> _core.PriorSet:
        """Return the stored anchors of each row's prompt."""
        rows = []
        for key, row in zip(_keys(prompts), prompts.rows, strict=True):
            if key not in self.anchors:
                raise InvalidValueError(
                    f"offline_generation: no anchors for the prompt {row.get('prompt')!r}; call build with it first"
                )
            rows.append(self.anchors[key])
        ids_RL = np.stack(rows) if rows else np.empty((0, completion_length), dtype=np.int64)
        if ids_RL.shape[1] != completion_length:
            raise InvalidValueError(
                f"offline_generation: anchors were built for completions of {ids_RL.shape[1]} tokens, "
                f"got {completion_length}; build them again"
            )
        return _core.PriorSet.from_dense(np.ascontiguousarray(ids_RL), "offline_generation")

    def save(self, path: Path) -> None:
        """Write anchors and hashes to a safetensors file, atomically."""
        keys = sorted(self.anchors)
        ids = np.stack([self.anchors[k] for k in keys]) if keys else np.empty((0, 0), dtype=np.int64)
        with atomic_file(path) as temporary:
            save_file({"ids": ids}, temporary, metadata={**self.hashes, "prompts": json.dumps(keys)})

    def load(self, path: Path, tokenizer: Any) -> None:
        """Read what `save` wrote.

        Raises:
            CheckpointError: the file is unreadable, or was made with another tokenizer.
        """
        from safetensors import safe_open

        try:
            with safe_open(path, framework="numpy") as handle:
                meta = dict(handle.metadata() or {})
            ids = load_file(path)["ids"]
            keys = json.loads(meta.pop("prompts"))
        except Exception as error:
            raise CheckpointError(f"{path}: cannot be read as stored anchors: {error}") from error
        if meta.get("tokenizer") != tokenizer_hash(tokenizer):
            raise CheckpointError(f"{path}: anchors were made with another tokenizer; delete the file to make new ones")
        self.anchors, self.hashes = dict(zip(keys, ids, strict=True)), meta


def eligible_tokens(token_ids_RL: NDArray[np.int64], tokenizer: Any, span: AnswerSpan | None) -> NDArray[np.uint8]:
    """Return u8 [R, L]: 1 where a token lies outside the answer span of its completion, which ends at end-of-text."""
    eligible_RL = np.ones(token_ids_RL.shape, dtype=np.uint8)
    if span is None:
        return eligible_RL
    eos = end_of_text_id(tokenizer)
    for row, ids in enumerate(token_ids_RL.tolist()):
        end = ids.index(eos) if eos in ids else len(ids)
        pieces = [tokenizer.decode([i], skip_special_tokens=True) if p < end else "" for p, i in enumerate(ids)]
        ends = np.cumsum([len(piece) for piece in pieces])
        found = span("".join(pieces))
        if found is not None:
            starts = ends - [len(piece) for piece in pieces]
            eligible_RL[row, (starts < found[1]) & (ends > found[0])] = 0
    return eligible_RL


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a hash of the vocabulary: ids mean the same tokens where it is equal."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def policy_hash(model: DiffusionModel) -> str:
    """Return a hash of the policy's parameters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _keys(prompts: PromptBatch) -> list[str]:
    return [
        hashlib.sha256(ids[:length].tobytes()).hexdigest()[:24]
        for ids, length in zip(prompts.prompt_ids, prompts.prompt_length, strict=True)
    ]
