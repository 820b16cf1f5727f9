# The Rust core. Arrays are numpy, C-contiguous, of exactly the dtype named; nothing is cast or copied silently.
# Shapes: R rows, L completion length, P passes (corrupted canvases), N candidates, S slots, W canvas width.
from typing import Final, Literal, final

import numpy as np
from numpy.typing import NDArray

__version__: Final[str]

# --- rng ---
def philox4x32(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]: ...
def row_uid(a: int, b: int = 0, c: int = 0) -> int: ...
def permutation(seed: int, uid: int, n: int) -> list[int]: ...

# --- corrupt ---
@final
class Design:
    def __new__(
        cls,
        name: str,
        num_mc: int = 2,
        *,
        num_iterations: int = 1,
        block_length: int = 0,
        truncate: tuple[float, float] | None = None,
    ) -> Design: ...
    @property
    def name(self) -> str: ...
    @property
    def num_mc(self) -> int: ...
    @property
    def per_token(self) -> bool: ...
    @property
    def reads_plan(self) -> bool: ...
    @property
    def published(self) -> bool: ...
    @property
    def unbiased(self) -> bool: ...
    @property
    def target(
        self,
    ) -> Literal["plan_elbo", "full_elbo", "trajectory", "one_step", "autoregressive", "published"]: ...
    def passes(self, eligible: NDArray[np.uint8], unmask_counts: NDArray[np.int32]) -> NDArray[np.int32]: ...
    def draw(
        self,
        eligible: NDArray[np.uint8],
        unmask_counts: NDArray[np.int32],
        unmask_step: NDArray[np.int32],
        seed: int,
        uids: NDArray[np.uint64],
        iteration: int,
        mask: NDArray[np.uint8],
        weight: NDArray[np.float32],
        row: NDArray[np.int32],
    ) -> None: ...
    def law(
        self,
        eligible: NDArray[np.uint8],
        unmask_counts: NDArray[np.int32],
        unmask_step: NDArray[np.int32],
        *,
        iteration: int = 0,
        limit: int = 1_000_000,
    ) -> list[tuple[float, list[list[int]], list[list[float]]]]: ...
    @staticmethod
    def names() -> list[tuple[str, str]]: ...

def prompt_mask(
    prompt: NDArray[np.uint8],
    ratio: float,
    seed: int,
    uids: NDArray[np.uint64],
    iteration: int,
    row: NDArray[np.int32],
    mask: NDArray[np.uint8],
) -> None: ...
