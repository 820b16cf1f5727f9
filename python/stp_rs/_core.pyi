# The Rust core. Arrays are numpy, C-contiguous, of exactly the dtype named; nothing is cast or copied silently.
# Shapes: R rows, L completion length, P passes (corrupted canvases), N candidates, S slots, W canvas width.
from collections.abc import Mapping
from typing import Any, Final, TypedDict, final, type_check_only

import numpy as np
import numpy.typing as npt
from typing_extensions import Self, Unpack

__version__: Final[str]

# --- rng ---
def philox4x32(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]: ...
def row_uid(a: int, b: int = 0, c: int = 0) -> int: ...
def permutation(seed: int, uid: int, n: int) -> list[int]: ...

# --- buffer ---
@type_check_only
class _Pushed(TypedDict):
    prompt_ids: npt.NDArray[np.int64]  # [R, P], right-padded; what follows prompt_length is not read
    prompt_length: npt.NDArray[np.int32]  # [R]
    token_ids: npt.NDArray[np.int64]  # [R, L]
    unmask_step: npt.NDArray[np.int32]  # [R, L]: denoising step, -1 prior, -2 outside the completion
    logprob: npt.NDArray[np.float32]  # [R, L]: under the law that drew the token, 0 where unmask_step < 0
    stop_reason: npt.NDArray[np.uint8]  # [R]
    uid: npt.NDArray[np.uint64]  # [R]
    group: npt.NDArray[np.int64]  # [R]
    policy_version: npt.NDArray[np.int64]  # [R]

@type_check_only
class _Read(TypedDict, total=False):
    prompt_ids: npt.NDArray[np.int64]  # [R, P], P at least the longest prompt of the rows
    prompt_length: npt.NDArray[np.int32]  # [R]
    token_ids: npt.NDArray[np.int64]  # [R, L]
    unmask_step: npt.NDArray[np.int32]  # [R, L]
    prior_mask: npt.NDArray[np.uint8]  # [R, L]: 1 where unmask_step is -1
    logprob: npt.NDArray[np.float32]  # [R, L]
    stop_reason: npt.NDArray[np.uint8]  # [R]
    reward: npt.NDArray[np.float32]  # [R]
    advantage: npt.NDArray[np.float32]  # [R]
    uid: npt.NDArray[np.uint64]  # [R]
    group: npt.NDArray[np.int64]  # [R]
    policy_version: npt.NDArray[np.int64]  # [R]

@final
class TrajectoryBuffer:
    def __new__(cls, completion_length: int, capacity: int) -> Self: ...
    def __len__(self) -> int: ...
    @property
    def completion_length(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def max_prompt_length(self) -> int: ...
    def push(self, **arrays: Unpack[_Pushed]) -> int: ...
    def set_rewards(self, rows: npt.NDArray[np.int32], reward: npt.NDArray[np.float32]) -> None: ...
    def set_advantages(self, rows: npt.NDArray[np.int32], advantage: npt.NDArray[np.float32]) -> None: ...
    def minibatch(
        self, rows: npt.NDArray[np.int32], *, pad_token_id: int = 0, **out: Unpack[_Read]
    ) -> None: ...
    def state_at(self, row: int, step: int, mask_token_id: int, out: npt.NDArray[np.int64]) -> None: ...
    def replay(
        self,
        rows: npt.NDArray[np.int32],
        step: npt.NDArray[np.int32],
        mask_token_id: int,
        out: npt.NDArray[np.int64],
    ) -> None: ...
    def evict(self, before_version: int) -> int: ...
    def clear(self) -> None: ...
    def to_arrays(self) -> dict[str, npt.NDArray[Any]]: ...
    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self: ...
    def __reduce__(self) -> tuple[Any, tuple[dict[str, npt.NDArray[Any]]]]: ...
