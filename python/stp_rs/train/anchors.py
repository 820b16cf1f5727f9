"""Anchors from the policy's own completion of a prompt: of the initial policy, or of the group's own first forward."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from stp_rs._core import PriorSet, Unmasking
from stp_rs.data.prompts import PromptBatch
from stp_rs.data.trajectories import Rollout
from stp_rs.distributed import gather, own_rows
from stp_rs.errors import CheckpointError, InvalidValueError
from stp_rs.models.base import DiffusionModel, device_of, in_step, passes_without_dropout, whole_weights
from stp_rs.objective.likelihood import token_elbo
from stp_rs.objective.masks import Masks
from stp_rs.priors.base import Prior, allowed_tokens, compose_priors
from stp_rs.priors.choice import Anneal, AnswerSpan, Choice, Per, eligible_tokens, fixed_where
from stp_rs.priors.hashes import policy_hash, prompt_keys, tokenizer_hash
from stp_rs.priors.lifecycle import check_tokenizer
from stp_rs.rollout.generate import generate
from stp_rs.rollout.params import SamplingParams
from stp_rs.train.checkpoint import read_stored, write_stored
from stp_rs.train.stepwise import one_step_completions
from stp_rs.types import Cost, Mark, Stored


class Completion(NamedTuple):
    """A policy's own completion of one prompt: L ids, their confidence, which may be kept, and when it was made."""

    ids: NDArray[np.int64]
    confidence: NDArray[np.float32]
    eligible: NDArray[np.uint8]
    version: int


class _Made(NamedTuple):
    """What one process made: completions by the key of their prompt, and their cost."""

    completions: dict[int, Completion]
    cost: Cost


class Source(NamedTuple):
    """Who makes completions, and the priors that they are made under."""

    model: DiffusionModel
    tokenizer: Any
    unmasking: Unmasking
    given: Sequence[Prior]


@dataclass
class OfflineGeneration:
    """The paper's prior (arXiv 2602.08905): anchors from the initial policy's own completion of each training prompt.

    Kept is the share `keep` of the tokens outside the answer, chosen by `selector`; confidence is the log-prob under
    one fully masked forward of the policy. Token ids are stored and never re-tokenised, with hashes of the tokenizer
    and of the policy that made them.

    The paper's ablation is `selector` x `protect_answer`: random and False, random and True (the same as `not_answer`),
    top_confidence and False, top_confidence and True (the paper's own).

    Attributes:
        keep: share of the eligible tokens that is fixed.
        selector: top_confidence, random, not_answer (random, and never the answer), prefix, span.
        answer_span: finds the answer in a completion.
        seed: key of random selectors.
        protect_answer: whether tokens of the answer are never fixed.
        anneal: how `keep` shrinks during training.
        per: who shares a draw of a random selector.
        refresh: a prompt's completion is made anew by the current policy when the prompt first comes up after every
            so many rollout batches; 0 never.

    Example:
        prior = OfflineGeneration(keep=0.05, answer_span=tag_span("[", "]"))
        prior.build(model, prompts, tokenizer, unmasking, completion_length=20)
    """

    keep: float = 0.05
    selector: str = "top_confidence"
    answer_span: AnswerSpan | None = None
    seed: int = 0
    protect_answer: bool = True
    anneal: Anneal = field(default_factory=Anneal)
    per: Per = "group"
    refresh: int = 0
    hashes: dict[str, str] = field(default_factory=dict)
    """Of the tokenizer, and of the policy at the build or at the first refresh of a period."""
    soft: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the selector and start without completions."""
        random = self.selector == "not_answer"
        if random and self.answer_span is None:
            raise InvalidValueError("selector: got not_answer without an answer_span, needs one (for example tag_span)")
        self._choice = Choice("random" if random else self.selector, self.keep, self.anneal, self.per, self.seed)
        self._span = self.answer_span if self.protect_answer or random else None
        self._completions: dict[int, Completion] = {}
        self._source: Source | None = None
        self._step, self._progress = 0, 0.0
        self.slots = 64  # most rows in flight; how many decides no number

    def build(
        self,
        model: DiffusionModel,
        prompts: PromptBatch,
        tokenizer: Any,
        unmasking: Unmasking,
        *,
        completion_length: int,
        given: Sequence[Prior] = (),
        cache: Path | None = None,
    ) -> Cost:
        """Return the cost of completions of `prompts` by the current policy: a greedy rollout and one forward each.

        Args:
            model: the policy.
            prompts: whose completions are made.
            tokenizer: its tokenizer.
            unmasking: of the rollouts.
            completion_length: L.
            given: the priors that will stand beside this one: completions are made under them, and what they fix needs
                no anchor.
            cache: a folder that several runs share: what the same policy made of the same prompt under the same priors
                is read from there and costs nothing, and what is made is written there.
        """
        self.follow(model, tokenizer, unmasking, given)
        self.hashes = {"tokenizer": tokenizer_hash(tokenizer), "policy": policy_hash(model)}
        keys = prompt_keys(prompts)
        if cache is None:
            return self._make(prompts, keys, completion_length)
        span = "answer" if self._span is not None else "all"
        parts = [*self.hashes.values(), completion_length, self.seed, repr(unmasking), span]
        device = device_of(model).type
        if torch.is_autocast_enabled(device):  # in another type, other completions
            parts.append(str(torch.get_autocast_dtype(device)))
        path = cache / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}.safetensors"
        known, names_R = dict[int, Completion](), _cache_names(given, prompts, keys, completion_length)
        if path.is_file():
            stored = OfflineGeneration(self.keep)
            stored.load(path, tokenizer)
            known = stored._completions
        found = [name in known for name in names_R]
        self._completions.update({int(k): known[n] for k, n, f in zip(keys, names_R, found, strict=True) if f})
        missing = [i for i, there in enumerate(found) if not there]
        cost = self._make(prompts.select(missing), keys[missing], completion_length) if missing else Cost()
        if missing:
            stored = OfflineGeneration(self.keep, hashes=self.hashes)
            stored._completions = known | {names_R[i]: self._completions[int(keys[i])] for i in missing}
            path.parent.mkdir(parents=True, exist_ok=True)
            stored.save(path)
        return cost

    def follow(self, model: DiffusionModel, tokenizer: Any, unmasking: Unmasking, given: Sequence[Prior] = ()) -> None:
        """Set the policy that makes the completions of a refresh, where `build` was not called in this process."""
        self._source = Source(model, tokenizer, unmasking, [p for p in given if p is not self])

    def begin_step(self, step: int, max_steps: int) -> None:
        """Note the progress of training, which `anneal` and refreshes read."""
        self._step, self._progress = step, step / max(1, max_steps)

    def __call__(self, prompts: PromptBatch, completion_length: int) -> PriorSet:
        """Return the anchors of each row's prompt."""
        keys = prompt_keys(prompts)
        rows = []
        for key, row in zip(keys.tolist(), prompts.rows, strict=True):
            if key not in self._completions:
                raise InvalidValueError(
                    f"offline_generation: no anchors for the prompt {row.get('prompt')!r}; call build with it first"
                )
            rows.append(self._completions[key])
        if not rows:
            return PriorSet.empty(0)
        if any(len(row.ids) != completion_length for row in rows):
            built = next(len(row.ids) for row in rows if len(row.ids) != completion_length)
            raise InvalidValueError(
                f"offline_generation: anchors were built for completions of {built} tokens, "
                f"got {completion_length}; build them again"
            )
        ids_RL, confidence_RL, eligible_RL = (np.stack([row[i] for row in rows]) for i in range(3))
        keep_RL = self._choice.pick(prompts, eligible_RL, self._progress, confidence_RL)
        return fixed_where(keep_RL, ids_RL, "offline_generation")

    def prepare(self, prompts: PromptBatch, completion_length: int) -> Cost:
        """Return the cost of the prompts' completions that were due for a refresh."""
        if not self.refresh or self._step < self.refresh:
            return Cost()
        keys = prompt_keys(prompts)
        if self._source is None:
            raise InvalidValueError("offline_generation: refresh needs a policy; call build or follow first")
        period = self._step // self.refresh
        known = self._completions
        stale = [i for i, k in enumerate(keys.tolist()) if k not in known or known[k].version // self.refresh < period]
        first = list({int(keys[i]): i for i in reversed(stale)}.values())[::-1]  # a group once
        if not first:
            return Cost()
        if max((c.version for c in known.values()), default=0) // self.refresh < period:
            self.hashes = {**self.hashes, "policy": policy_hash(self._source.model)}
        return self._make(prompts.select(first), keys[first], completion_length)

    def _make(self, prompts: PromptBatch, keys: NDArray[np.uint64], length: int) -> Cost:
        """Store completions of prompts whose keys are their uids, so that neither batch nor order matters.

        Each process makes its share of them, and all get them all.
        """
        if self._source is None or not len(prompts):
            return Cost()

        model = self._source.model

        def own() -> _Made | None:
            mine = own_rows(np.arange(len(prompts)))
            with whole_weights(model), in_step(model):
                return self._completed(prompts.select(mine.tolist()), keys[mine], length) if len(mine) else None

        made = [part for part in gather(own) if part is not None]
        for part in made:
            for key, completion in part.completions.items():
                self._completions[key] = completion
        return sum((part.cost for part in made), Cost())

    def _completed(self, prompts: PromptBatch, keys: NDArray[np.uint64], length: int) -> "_Made":
        model, tokenizer, unmasking, given = cast(Source, self._source)
        prompts = replace(prompts, uid=keys)
        allowed, prior = allowed_tokens(given, prompts, length), compose_priors(given, prompts, length)
        law = SamplingParams(0.0, allowed=allowed)
        rollout = generate(
            model,
            prompts,
            unmasking,
            completion_length=length,
            sampling=law,
            prior=prior,
            seed=self.seed,
            slots=self.slots,
        )
        ids_RL = rollout.token_ids
        everything = Masks(
            mask_PL=np.ones(ids_RL.shape, dtype=np.uint8),
            weight_PL=np.ones(ids_RL.shape, dtype=np.float32),
            row_P=np.arange(len(prompts), dtype=np.int32),
            scored_RL=np.ones(ids_RL.shape, dtype=np.uint8),
            length_R=np.full(len(prompts), length, dtype=np.int32),
        )
        cost = rollout.cost
        with torch.no_grad(), passes_without_dropout(model.module):
            confidence_RL = token_elbo(
                model, rollout, everything, forward_batch_size=self.slots, allowed=allowed, cost=cost
            )
        eligible_RL = eligible_tokens(ids_RL, tokenizer, self._span) & (rollout.unmask_step >= 0)
        rows = (ids_RL, confidence_RL.cpu().numpy(), eligible_RL.astype(np.uint8))
        completions = {}
        for i, key in enumerate(keys.tolist()):
            ids, confidence, eligible = (column[i].copy() for column in rows)
            completions[key] = Completion(ids, confidence, eligible, self._step)
        return _Made(completions, cost)

    def state_dict(self) -> Stored:
        """Return every completion and the hashes."""
        keys = sorted(self._completions)
        rows = [self._completions[k] for k in keys]
        arrays = {
            "keys": np.array(keys, dtype=np.uint64),
            "ids": _stack([r.ids for r in rows], np.int64),
            "confidence": _stack([r.confidence for r in rows], np.float32),
            "eligible": _stack([r.eligible for r in rows], np.uint8),
            "version": np.array([r.version for r in rows], dtype=np.int64),
        }
        return Stored(arrays, dict(self.hashes))

    def load_state_dict(self, stored: Stored) -> None:
        """Continue with stored completions."""
        if self._source is not None:
            check_tokenizer(stored, self._source.tokenizer, "offline_generation")
        names = ("ids", "confidence", "eligible", "version")
        columns = [stored.arrays["keys"].tolist(), *(stored.arrays[name] for name in names)]
        self._completions = {
            key: Completion(ids, confidence, eligible, int(version))
            for key, ids, confidence, eligible, version in zip(*columns, strict=True)
        }
        self.hashes = dict(stored.hashes)

    def save(self, path: Path) -> None:
        """Write completions and hashes to a safetensors file, atomically."""
        write_stored(path, {"offline_generation": self.state_dict()})

    def load(self, path: Path, tokenizer: Any) -> None:
        """Read what `save` wrote.

        Raises:
            CheckpointError: the file is unreadable, or was made with another tokenizer.
        """
        try:
            stored = read_stored(path)["offline_generation"]
            check_tokenizer(stored, tokenizer, str(path))
            self.load_state_dict(stored)
        except KeyError as error:
            raise CheckpointError(f"{path}: cannot be read as stored anchors: no {error}") from error


@dataclass
class FirstForward:
    """Anchors from the group's own first forward: the tokens that the current policy is surest of on the empty canvas.

    All completions of a prompt share their fully masked canvas, so anchors cost one canvas a group, where those of
    `OfflineGeneration` cost a greedy rollout; and they are the current policy's, never an older one's.

    Attributes:
        model: the policy.
        tokenizer: its tokenizer.
        keep: share of the eligible tokens that is fixed.
        answer_span: finds the answer in the one-step completion; its tokens are never fixed. None: all are eligible.
        anneal: how `keep` shrinks during training.
        given: the priors beside this one: what they fix is shown, and needs no anchor.
    """

    model: DiffusionModel
    tokenizer: Any
    keep: float = 0.05
    answer_span: AnswerSpan | None = None
    anneal: Anneal = field(default_factory=Anneal)
    given: Sequence[Prior] = ()
    soft: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the share."""
        self._choice = Choice("top_confidence", self.keep, self.anneal)
        self._made: dict[int, Completion] = {}
        self._progress = 0.0

    def begin_step(self, step: int, max_steps: int) -> None:
        """Note the progress of training, which `anneal` reads."""
        self._progress = step / max(1, max_steps)

    def prepare(self, prompts: PromptBatch, completion_length: int) -> Cost:
        """Return the cost of one forward for each different prompt."""
        keys, first_R = np.unique(prompt_keys(prompts), return_index=True)
        groups, cost = prompts.select(first_R.tolist()), Cost()
        ids_RL = np.full((len(groups), completion_length), -1, dtype=np.int64)
        compose_priors(self.given, groups, completion_length).fill(ids_RL)
        free_RL = ids_RL < 0
        rollout = Rollout.of(groups, np.maximum(ids_RL, 0), np.where(free_RL, 0, Mark.PRIOR).astype(np.int32))
        masks = Masks(
            mask_PL=free_RL.astype(np.uint8),
            weight_PL=free_RL.astype(np.float32),
            row_P=np.arange(len(groups), dtype=np.int32),
            scored_RL=free_RL.astype(np.uint8),
            length_R=np.full(len(groups), completion_length, dtype=np.int32),
        )
        allowed = allowed_tokens(self.given, groups, completion_length)
        with passes_without_dropout(self.model.module):
            made_RL, sure_RL = one_step_completions(self.model, rollout, masks, allowed, cost)
        eligible_RL = eligible_tokens(made_RL, self.tokenizer, self.answer_span) & free_RL
        rows = zip(made_RL, sure_RL, eligible_RL.astype(np.uint8), strict=True)
        self._made = {int(key): Completion(*row, version=0) for key, row in zip(keys, rows, strict=True)}
        return cost

    def __call__(self, prompts: PromptBatch, completion_length: int) -> PriorSet:
        """Return the anchors of each row's prompt; `prepare` comes first."""
        del completion_length
        rows = [self._made.get(key) for key in prompt_keys(prompts).tolist()]
        known = [row for row in rows if row is not None]
        if len(known) < len(rows):
            raise InvalidValueError("first_forward: got a prompt that was not prepared, needs prepare with it first")
        if not known:
            return PriorSet.empty(0)
        ids_RL, confidence_RL, eligible_RL = (np.stack([row[i] for row in known]) for i in range(3))
        keep_RL = self._choice.pick(prompts, eligible_RL, self._progress, confidence_RL)
        return fixed_where(keep_RL, ids_RL, "first_forward")


def _cache_names(given: Sequence[Prior], prompts: PromptBatch, keys: NDArray[np.uint64], length: int) -> list[int]:
    """Return a number for each prompt and what the priors beside its completion fix and allow."""
    ids_RL = np.full((len(prompts), length), -1, dtype=np.int64)
    compose_priors(given, prompts, length).fill(ids_RL)
    allowed = allowed_tokens(given, prompts, length)
    tables = [b""] * len(prompts)
    if allowed is not None:
        table = allowed.cpu().numpy()
        tables = [row.tobytes() for row in table] if table.ndim == 3 else [table.tobytes()] * len(prompts)
    parts = zip(keys, ids_RL, tables, strict=True)
    digests = (hashlib.blake2b(key.tobytes() + ids.tobytes() + table, digest_size=8) for key, ids, table in parts)
    return [int.from_bytes(digest.digest(), "little") for digest in digests]


def _stack(rows: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.stack(rows) if rows else np.empty((0, 0), dtype=dtype)
