# The Rust core. Arrays are numpy, C-contiguous, of exactly the dtype named; nothing is cast or copied silently.
# Shapes: R rows, L completion length, P passes (corrupted canvases), N candidates, S slots, W canvas width.
from typing import Final

__version__: Final[str]

# --- rng ---
def philox4x32(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]: ...
def row_uid(a: int, b: int = 0, c: int = 0) -> int: ...
def permutation(seed: int, uid: int, n: int) -> list[int]: ...
