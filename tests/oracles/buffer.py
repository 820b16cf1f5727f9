"""The trajectory buffer as a list of dicts: one record per rollout, no columns, no compaction."""

from typing import Any

import numpy as np

from stp_rs.types import Mark

Row = dict[str, Any]


class ListBuffer:
    """The same calls as `TrajectoryBuffer`, in the slowest and most obvious way."""

    def __init__(self, completion_length: int, capacity: int) -> None:
        self.completion_length = completion_length
        self.capacity = capacity
        self.rows: list[Row] = []

    def push(self, rows: list[Row]) -> int:
        first = len(self.rows)
        if first + len(rows) > self.capacity:
            raise RuntimeError("full")
        self.rows += [{**row, "reward": None, "advantage": None} for row in rows]
        return first

    def set(self, name: str, rows: list[int], values: list[float]) -> None:
        for row, value in zip(rows, values, strict=True):
            self.rows[row][name] = value

    def evict(self, before_version: int) -> int:
        kept = [row for row in self.rows if row["policy_version"] >= before_version]
        evicted = len(self.rows) - len(kept)
        self.rows = kept
        return evicted

    def state_at(self, row: int, step: int, mask_token_id: int) -> list[int]:
        record = self.rows[row]
        pairs = zip(record["token_ids"], record["unmask_step"], strict=True)
        ended = all(revealed < step for revealed in record["unmask_step"])
        hidden = (Mark.UNDRAWN,) if not ended else ()
        return [mask_token_id if revealed >= step or revealed in hidden else token for token, revealed in pairs]

    def nbytes(self) -> int:
        return sum(41 + 10 * self.completion_length + 4 * len(row["prompt_ids"]) for row in self.rows)


def columns(rows: list[Row], completion_length: int, pad_token_id: int = -100) -> dict[str, Any]:
    """Return the arrays that push the rows."""
    n = len(rows)
    width = max((len(row["prompt_ids"]) for row in rows), default=0)
    prompts = [row["prompt_ids"] + [pad_token_id] * (width - len(row["prompt_ids"])) for row in rows]
    flat = {
        name: np.array([row[name] for row in rows], dtype).reshape(n)
        for name, dtype in [
            ("stop_reason", np.uint8),
            ("uid", np.uint64),
            ("group", np.int64),
            ("policy_version", np.int64),
        ]
    }
    wide = {
        name: np.array([row[name] for row in rows], dtype).reshape(n, completion_length)
        for name, dtype in [("token_ids", np.int64), ("unmask_step", np.int32), ("logprob", np.float32)]
    }
    return {
        "prompt_ids": np.array(prompts, np.int64).reshape(n, width),
        "prompt_length": np.array([len(row["prompt_ids"]) for row in rows], np.int32),
        **wide,
        **flat,
    }


def random_rows(n: int, completion_length: int, seed: int, *, version: int = 0) -> list[Row]:
    """Return rollouts with prompts of 0 to 6 tokens, each with a prior position, padding and ragged steps."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(n):
        steps = rng.integers(Mark.UNDRAWN, completion_length, completion_length).tolist()
        logprob = -rng.exponential(size=completion_length).astype(np.float32)
        rows.append(
            {
                "prompt_ids": rng.integers(0, 1000, rng.integers(0, 7)).tolist(),
                "token_ids": rng.integers(0, 2**32, completion_length).tolist(),
                "unmask_step": steps,
                "logprob": [float(x) if step >= 0 else 0.0 for x, step in zip(logprob, steps, strict=True)],
                "stop_reason": int(rng.integers(0, 256)),
                "uid": int(rng.integers(0, 2**64, dtype=np.uint64)),
                "group": index // 2,
                "policy_version": version,
            }
        )
    return rows


def same_arrays(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Return whether two dicts hold the same names, dtypes, shapes and values (NaN equals NaN)."""
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype and np.array_equal(left[k], right[k], equal_nan=left[k].dtype.kind == "f")
        for k in left
    )
