"""Hashes of tokenizers and policies, which stored tokens are checked against, and keys of prompts."""

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stp_rs.data.prompts import PromptBatch
from stp_rs.models.base import DiffusionModel
from stp_rs.models.content import content_digest
from stp_rs.models.sharding import whole


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a hash of the vocabulary: ids mean the same tokens where it is equal."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def policy_hash(model: DiffusionModel) -> str:
    """Return a hash of the policy's parameters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(content_digest(whole(tensor.detach()).float()))
    return digest.hexdigest()[:16]


def prompt_keys(prompts: PromptBatch) -> NDArray[np.uint64]:
    """Return u64 [R]: a key of each row's prompt ids, the same wherever and whenever the prompt comes up."""
    known: dict[bytes, int] = {}
    keys = np.empty(len(prompts), dtype=np.uint64)
    for row, (ids, length) in enumerate(zip(prompts.prompt_ids, prompts.prompt_length, strict=True)):
        text = ids[:length].tobytes()
        if text not in known:
            known[text] = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
        keys[row] = known[text]
    return keys
