# The Rust core. Arrays are numpy, C-contiguous, of exactly the dtype named; nothing is cast or copied silently.
# Shapes: R rows, L completion length, P passes (corrupted canvases), N candidates, S slots, W canvas width.
from collections.abc import Sequence
from typing import Final, Literal, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MARKS",
    "STOP_REASONS",
    "Design",
    "PriorSet",
    "RolloutScheduler",
    "Unmasking",
    "__version__",
    "answer_spans",
    "choose_anchors",
    "countdown_expressions",
    "countdown_grade",
    "countdown_numbers",
    "countdown_problems",
    "countdown_solutions",
    "grid_answers",
    "math_compare",
    "number_answers",
    "number_grade",
    "number_values",
    "permutation",
    "philox4x32",
    "plan_counts",
    "prompt_mask",
    "row_uid",
    "scored_counts",
    "sudoku4_grade",
    "sudoku4_grids",
    "sudoku4_puzzles",
    "sudoku9_grade",
    "tag_layout",
]

__version__: Final[str]

# the values of `types.Mark` and `types.StopReason`, by name
MARKS: Final[dict[str, int]]
STOP_REASONS: Final[dict[str, int]]

# --- rng ---
def philox4x32(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]: ...
def row_uid(a: int, b: int = 0, c: int = 0) -> int: ...
def permutation(seed: int, uid: int, n: int) -> NDArray[np.uint32]: ...

# --- schedule ---
@final
class Unmasking:
    def __new__(
        cls,
        diffusion_steps: int,
        *,
        block_length: int = 0,
        quota: str = "ceil_remaining",
        selection: str = "top_k",
        confidence: str = "prob",
        temporal: str = "none",
        max_nfe: int = 0,
        eos: str = "none",
    ) -> Unmasking: ...
    def __getnewargs_ex__(self) -> tuple[tuple[int], dict[str, object]]: ...
    @property
    def exact(self) -> bool: ...
    @property
    def diffusion_steps(self) -> int: ...
    def plan(self, free: NDArray[np.uint8]) -> list[int] | None: ...

def plan_counts(n: int, steps: int, quota: str = "ceil_remaining") -> list[int]: ...
def scored_counts(
    unmask_step: NDArray[np.int32],
    out: NDArray[np.int32],
    *,
    score_prior: bool,
    diffusion_steps: int,
    quota: str = "ceil_remaining",
) -> None: ...

# --- prior ---
@final
class PriorSet:
    @staticmethod
    def empty(rows: int) -> PriorSet: ...
    @staticmethod
    def from_dense(ids: NDArray[np.int64], source: str = "custom") -> PriorSet: ...
    def compose(self, later: PriorSet, *, soft: bool = False) -> PriorSet: ...
    def restrict(self, keep: NDArray[np.uint8]) -> PriorSet: ...
    def select(self, rows: Sequence[int]) -> PriorSet: ...
    def fill(self, ids: NDArray[np.int64]) -> None: ...
    def row(self, row: int) -> list[tuple[int, int, str]]: ...
    @property
    def num_anchors(self) -> int: ...
    def __len__(self) -> int: ...

def choose_anchors(
    selector: str,
    share: float,
    *,
    confidence: NDArray[np.float32],
    eligible: NDArray[np.uint8],
    seed: int,
    uids: NDArray[np.uint64],
    keep: NDArray[np.uint8],
) -> None: ...

# --- rollout ---
@final
class RolloutScheduler:
    def __new__(
        cls,
        *,
        mask_token_id: int,
        pad_token_id: int,
        slots: int,
        seed: int,
        share_first: bool = True,
        eos_token_ids: Sequence[int] | None = None,
        max_tokens: int = 0,
        length_sorted: bool = False,
        block_size: int = 0,
    ) -> RolloutScheduler: ...
    def submit(
        self,
        uids: NDArray[np.uint64],
        prompt_ids: NDArray[np.int64],
        prompt_lengths: NDArray[np.int32],
        completion_lengths: NDArray[np.int32],
        unmasking: Unmasking | Sequence[Unmasking],
        prior: PriorSet | None = None,
    ) -> None: ...
    def capacity(self) -> tuple[int, int]: ...
    def next_step(
        self,
        ids: NDArray[np.int64],
        lengths: NDArray[np.int32],
        candidates: NDArray[np.int32],
        uniforms: NDArray[np.float32],
    ) -> tuple[int, int, int, tuple[bool, bool, bool]]: ...
    def places(self, length: int, out: NDArray[np.int32]) -> None: ...
    def blocks(self, rows: NDArray[np.int32], starts: NDArray[np.int32]) -> None: ...
    def commit(self, packed: NDArray[np.float32]) -> None: ...
    def results(
        self,
        token_ids: NDArray[np.int64],
        unmask_step: NDArray[np.int32],
        logprob: NDArray[np.float32],
        nfe: NDArray[np.int32],
        stop: NDArray[np.uint8],
    ) -> None: ...
    def stats(self) -> dict[str, int]: ...
    @property
    def unfinished(self) -> int: ...
    def __len__(self) -> int: ...

# --- grade ---
def sudoku4_grade(completions: list[str], puzzles: list[str], out: NDArray[np.float32]) -> None: ...
def sudoku4_grids() -> list[str]: ...
def sudoku4_puzzles(grids: list[int], uids: list[int], blanks: int, seed: int) -> list[str]: ...
def countdown_grade(
    completions: list[str], numbers: list[list[int]], targets: list[int], out: NDArray[np.uint8]
) -> None: ...
def countdown_numbers(uids: list[int], count: int, max_number: int, seed: int) -> list[list[int]]: ...
def countdown_problems(
    numbers: list[list[int]], uids: list[int], max_target: int, operators: str, seed: int
) -> list[tuple[int, str] | None]: ...

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
        divide_weights: bool = False,
    ) -> Design: ...
    def __getnewargs_ex__(self) -> tuple[tuple[str, int], dict[str, object]]: ...
    @property
    def name(self) -> str: ...
    @property
    def num_mc(self) -> int: ...
    @property
    def recorded(self) -> bool: ...
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
    ) -> Literal["plan_elbo", "full_elbo", "trajectory", "states", "one_step", "autoregressive", "published"]: ...
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
        *,
        mass: NDArray[np.float32] | None = None,  # [R, L]
    ) -> None: ...
    def law(
        self,
        eligible: NDArray[np.uint8],
        unmask_counts: NDArray[np.int32],
        unmask_step: NDArray[np.int32],
        *,
        iteration: int = 0,
        limit: int = 1_000_000,
        mass: NDArray[np.float32] | None = None,  # [1, L]
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
def countdown_solutions(numbers: list[list[int]], targets: list[int]) -> list[str | None]: ...
def number_answers(completions: list[str]) -> list[tuple[str, str] | None]: ...
def number_grade(completions: list[str], truths: list[str]) -> list[bool | None]: ...
def number_values(answers: list[str]) -> list[float | None]: ...
def answer_spans(completions: list[str]) -> list[str]: ...
def math_compare(answers: list[str], truths: list[str]) -> list[tuple[str, str, str, int | None]]: ...
def countdown_expressions(completions: list[str]) -> list[str]: ...
def grid_answers(completions: list[str], n: int) -> list[str | None]: ...
def sudoku9_grade(
    completions: list[str], puzzles: list[str], solutions: list[str], out: NDArray[np.float32]
) -> None: ...
def tag_layout(completions: list[str], tags: list[str], prefilled: bool) -> list[tuple[float, bool]]: ...
