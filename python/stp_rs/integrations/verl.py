"""verl-style scores, `compute_score(data_source, solution_str, ground_truth, extra_info)`, both ways.

Neither direction imports verl: its reward is a plain function, so nothing needs to be installed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stp_rs.errors import ConfigError
from stp_rs.tasks.base import RewardFunc
from stp_rs.tasks.columns import column, texts
from stp_rs.tasks.graders.modes import CORRECTED, MODES, PUBLISHED, Item

ComputeScore = Callable[..., Any]
"""verl's `custom_reward_function`: returns a float, or a mapping with `score`."""


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None
) -> float:
    r"""Return the score of one completion, for verl's `custom_reward_function`.

    Args:
        data_source: a name with `gsm8k`, `math`, `countdown` or `sudoku` in it, such as `openai/gsm8k`.
        solution_str: the completion.
        ground_truth: the answer; for Countdown `[numbers, target]` or a mapping with `numbers` and `target`;
            for Sudoku the solution.
        extra_info: may hold `mode` (`corrected`, the default, or `published`), and `puzzle` or `question`.

    Returns:
        1.0 or 0.0; for Sudoku that is not solved, the share of blank cells right, below 1.

    Example:
        >>> compute_score("openai/gsm8k", "so \\boxed{1,200}", "1200")
        1.0
    """
    info = dict(extra_info or {})
    mode = info.get("mode", "corrected")
    if mode not in MODES:
        raise ConfigError(f"extra_info['mode']: got '{mode}', needs one of {', '.join(MODES)}")
    task = next((name for name in PUBLISHED if name in data_source.lower()), None)
    if task is None:
        raise ConfigError(f"data_source: got '{data_source}', needs a name with one of {', '.join(PUBLISHED)} in it")
    graders = PUBLISHED if mode == MODES[0] else CORRECTED
    grade = graders[task]([Item(solution_str, ground_truth, str(info.get("question", "")), info)])[0]
    if grade.correct is None:
        raise ConfigError(f"ground_truth: got {ground_truth!r}, needs an answer that {task} can compare with")
    return 1.0 if grade.correct else grade.right / max(1, grade.blanks)


def reward_from(score: ComputeScore, data_source: str, truth: str = "ground_truth") -> RewardFunc:
    """Return a TRL-shaped reward that calls a verl-style function for each completion.

    Args:
        score: the function, called with keywords as verl calls it.
        data_source: what it is told the data is, where the batch has no column `data_source`.
        truth: the column with the ground truth. The other columns of the row become `extra_info`.
    """

    def verl_reward(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
        del prompts
        n = len(completions)
        named = "data_source" in columns
        sources = column(columns, "data_source", n) if named else [data_source] * n
        truths = column(columns, truth, n)
        rest = {k: v for k, v in columns.items() if isinstance(v, list) and len(v) == n and k != truth}
        scores = []
        for i, text in enumerate(texts(completions)):
            info = {name: values[i] for name, values in rest.items()}
            found = score(data_source=sources[i], solution_str=text, ground_truth=truths[i], extra_info=info)
            scores.append(float(found["score"] if isinstance(found, Mapping) else found))
        return scores

    return verl_reward
