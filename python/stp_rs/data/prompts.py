"""Prompts: rows of text become right-padded id arrays with a uid per prompt.

Shapes: R rows, P longest prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stp_rs._core import permutation, row_uid
from stp_rs.errors import InvalidValueError
from stp_rs.text import LONE_SURROGATE, shown


@dataclass(frozen=True)
class PromptBatch:
    """A batch of tokenised prompts."""

    rows: Sequence[Mapping[str, Any]]
    """The dataset rows, `prompt` and the columns that rewards read."""
    prompt_ids: NDArray[np.int64]
    """[R, P] right-padded."""
    prompt_length: NDArray[np.int32]
    """[R]."""
    uid: NDArray[np.uint64]
    """[R] one key per row; the randomness of a row depends on it and the seed alone."""
    group: NDArray[np.int64]
    """[R] which prompt a row belongs to: rows of a group share it."""

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, index: Sequence[int], uid: NDArray[np.uint64] | None = None) -> "PromptBatch":
        """Return some rows, with their groups; `uid` gives them other keys."""
        return PromptBatch(
            rows=[self.rows[i] for i in index],
            prompt_ids=self.prompt_ids[index],
            prompt_length=self.prompt_length[index],
            uid=self.uid[index] if uid is None else uid,
            group=self.group[index],
        )

    @staticmethod
    def concat(parts: Sequence["PromptBatch"]) -> "PromptBatch":
        """Return the prompts of several batches as one, in the groups that they say; behind a prompt stands 0."""
        width = max(part.prompt_ids.shape[1] for part in parts)
        return PromptBatch(
            rows=[row for part in parts for row in part.rows],
            prompt_ids=np.concatenate([_widened(part.prompt_ids, width) for part in parts]),
            prompt_length=np.concatenate([part.prompt_length for part in parts]),
            uid=np.concatenate([part.uid for part in parts]),
            group=np.concatenate([part.group for part in parts]),
        )

    def repeat(self, num_generations: int, *, step: int = 0) -> "PromptBatch":
        """Return each prompt `num_generations` times in a row, with uids keyed by (step, prompt uid, sample).

        Where a prompt is in the batch more than once its samples are numbered on, so that no two rows share a key.
        """
        index = np.repeat(np.arange(len(self)), num_generations)
        seen: dict[int, int] = {}
        uids = []
        for i in index.tolist():
            uid = int(self.uid[i])
            seen[uid] = seen.get(uid, -1) + 1
            uids.append(row_uid(step, uid, seen[uid]))
        chosen = self.select(index.tolist(), np.array(uids, dtype=np.uint64))
        return replace(chosen, group=index.astype(np.int64))


def _widened(ids_RP: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    return np.pad(ids_RP, ((0, 0), (0, width - ids_RP.shape[1])))


def encode_prompts(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    uids: Sequence[int],
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> PromptBatch:
    """Return the prompts of `rows` as ids, without special tokens.

    Args:
        rows: mappings with a `prompt` (str, or chat messages for a tokenizer with a chat template).
        tokenizer: a transformers tokenizer.
        uids: one integer per row that names the prompt, for example its index in the dataset.
        chat_template_kwargs: more arguments of the chat template.

    Raises:
        InvalidValueError: a row without a prompt, an empty prompt, one that holds the mask token, or one of which the
            tokenizer knows no token.
    """
    encoded = [_encode(row, i, tokenizer, chat_template_kwargs or {}) for i, row in enumerate(rows)]
    width = max((len(ids) for ids in encoded), default=0)
    pad = getattr(tokenizer, "pad_token_id", None)  # nobody sees it: an end of text pads where there is none
    ids_RP = np.full((len(rows), width), end_of_text_id(tokenizer) if pad is None else pad, dtype=np.int64)
    for i, ids in enumerate(encoded):
        ids_RP[i, : len(ids)] = ids
    return PromptBatch(
        rows=rows,
        prompt_ids=ids_RP,
        prompt_length=np.array([len(ids) for ids in encoded], dtype=np.int32),
        uid=np.array(list(uids), dtype=np.uint64),
        group=np.arange(len(rows), dtype=np.int64),
    )


def check_row(row: Any, index: int, name: str = "") -> None:
    """Check that a row has a prompt.

    Raises:
        InvalidValueError: it is no mapping, or its prompt is neither a text nor messages.
    """
    place = f"{name} row {index}".strip()
    if not isinstance(row, Mapping):
        raise InvalidValueError(f'{place}: got {row!r:.60}, needs a mapping of columns such as {{"prompt": "..."}}')
    prompt = row.get("prompt")
    if not (isinstance(prompt, list) or (isinstance(prompt, str) and prompt)):
        raise InvalidValueError(
            f"{place}: needs a non-empty `prompt` (text or chat messages), got columns {sorted(map(str, row))} "
            f"and prompt {prompt!r:.60}"
        )


def _encode(row: Mapping[str, Any], index: int, tokenizer: Any, template: Mapping[str, Any]) -> list[int]:
    check_row(row, index)
    prompt = row["prompt"]
    try:
        if isinstance(prompt, list):
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False, **template)
        else:
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    except Exception as error:  # a chat template is a program of its own
        if isinstance(prompt, str) and LONE_SURROGATE.search(prompt):
            why = "it holds half of a character (a lone surrogate), which no tokenizer reads"
        else:
            why = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise InvalidValueError(f"row {index}: its prompt {shown(prompt, 80)} cannot be encoded: {why}") from error
    if tokenizer.mask_token_id in ids:
        raise InvalidValueError(f"row {index}: the prompt holds the mask token {tokenizer.mask_token!r}; remove it")
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and ids and all(token == unknown for token in ids):
        raise InvalidValueError(
            f"row {index}: the tokenizer knows nothing of its prompt {shown(prompt, 80)}, whose {len(ids)} tokens are "
            f"all {tokenizer.unk_token!r}; needs the tokenizer that this text was written for"
        )
    return list(ids)


_ENDS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|role_end|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>")
"""Tokens that end a text or a turn in the chat formats of this field."""


def end_of_text_ids(tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end a completion: the tokenizer's own first, then the special tokens of `_ENDS` that it has.

    Its own is `eos_token_id`, or `sep_token_id` where there is none (BERT). A chat model ends its turn with another
    token than its documents: both end a completion.
    """
    first = getattr(tokenizer, "eos_token_id", None)
    first = getattr(tokenizer, "sep_token_id", None) if first is None else first
    added = getattr(tokenizer, "added_tokens_decoder", {})
    others = [i for i, token in added.items() if token.special and str(token) in _ENDS]
    return tuple(dict.fromkeys(others if first is None else [int(first), *others]))


def text_lengths(
    token_ids_RL: NDArray[np.int64], tokenizer: Any, lengths_R: NDArray[np.integer] | None = None
) -> NDArray[np.int64]:
    """Return how many tokens of each row come before its first one that ends a text, [R]; `lengths_R` bounds them."""
    length = token_ids_RL.shape[1]
    ended_RL = np.isin(token_ids_RL, end_of_text_ids(tokenizer))
    if lengths_R is not None:
        ended_RL = ended_RL | (np.arange(length) >= np.asarray(lengths_R)[:, None])
    return np.where(ended_RL.any(1), ended_RL.argmax(1) if length else 0, length)


def end_of_text_id(tokenizer: Any) -> int:
    """Return the id that fills a completion after its text: the first of `end_of_text_ids`.

    Raises:
        InvalidValueError: there is none.
    """
    ids = end_of_text_ids(tokenizer)
    if not ids:
        raise InvalidValueError("tokenizer: it has no end-of-text token; set tokenizer.eos_token to the model's own")
    return ids[0]


def batch_indices(step: int, batch_size: int, num_rows: int, seed: int) -> list[int]:
    """Return the dataset rows of a step: epochs of keyed permutations laid end to end, every row once per epoch."""
    picked = []
    for place in range(step * batch_size, (step + 1) * batch_size):
        epoch, offset = divmod(place, num_rows)
        picked.append(int(_permutation(seed, epoch, num_rows)[offset]))
    return picked


def rows_of_batches(batches: int, batch_size: int, num_rows: int, seed: int) -> list[int]:
    """Return the dataset rows that steps 0 to `batches` - 1 read, each once, in the dataset's order."""
    if batches * batch_size >= num_rows:
        return list(range(num_rows))
    return sorted(i for step in range(batches) for i in batch_indices(step, batch_size, num_rows, seed))


_CACHE: dict[tuple[int, int, int], NDArray[np.uint32]] = {}


def _permutation(seed: int, epoch: int, num_rows: int) -> NDArray[np.uint32]:
    key = (seed, epoch, num_rows)
    if key not in _CACHE:
        if len(_CACHE) > 4:
            _CACHE.clear()
        _CACHE[key] = permutation(seed, epoch, num_rows)
    return _CACHE[key]
