"""Rewards: functions and models that score completions, called as TRL's GRPOTrainer calls them.

A reward function takes what it names of `prompts`, `completions`, `completion_ids`, `trainer_state`, `log_extra`,
`log_metric` and the dataset's columns, all as keywords, and returns one number per completion; None means that it does
not judge that completion. It may be `async`. A completion of a chat prompt is a list of one message, as the prompt is.

Shapes: R completions, L tokens of a canvas, F functions.
"""

import copy
import functools
import inspect
import itertools
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from stp_rs.data.prompts import text_lengths
from stp_rs.errors import ConfigError, InvalidValueError, RewardError, RewardValueError, StpError
from stp_rs.rollout.reward_calls import call_together
from stp_rs.rollout.reward_models import RewardModel
from stp_rs.text import LONE_SURROGATE, shown
from stp_rs.types import RewardFunc

if TYPE_CHECKING:
    from stp_rs.config.arguments import STPConfig

RESERVED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""Keywords that every reward function may take: no column may have their names."""
LARGEST = 1e30
"""Rewards stay below it, so that sums and squares of them are finite."""

_LOGGER = logging.getLogger(__name__)


def decode_completions(token_ids_RL: NDArray[np.int64], lengths_R: NDArray[np.integer], tokenizer: Any) -> list[str]:
    """Return completion texts: tokens up to the first that ends a text, special tokens left out."""
    ends_R = text_lengths(token_ids_RL, tokenizer, lengths_R)
    kept = [ids[:end] for ids, end in zip(token_ids_RL.tolist(), ends_R.tolist(), strict=True)]
    return list(tokenizer.batch_decode(kept, skip_special_tokens=True))


def completion_token_ids(
    token_ids_RL: NDArray[np.int64], lengths_R: NDArray[np.integer], tokenizer: Any
) -> list[list[int]]:
    """Return the tokens of each completion up to the first that ends a text, that one included."""
    ends_R = completion_lengths(token_ids_RL, lengths_R, tokenizer)
    return [ids[:end] for ids, end in zip(token_ids_RL.tolist(), ends_R.tolist(), strict=True)]


def completion_lengths(
    token_ids_RL: NDArray[np.int64], lengths_R: NDArray[np.integer], tokenizer: Any
) -> NDArray[np.int64]:
    """Return the tokens of each completion up to the first that ends a text, that one included, [R]."""
    counted_R: NDArray[np.int64] = np.minimum(text_lengths(token_ids_RL, tokenizer, lengths_R) + 1, lengths_R)
    return counted_R


@dataclass(frozen=True)
class Scores:
    """What reward functions said about a batch of completions."""

    total: NDArray[np.float32]
    """[R] weighted sum of the rewards; NaN where every function abstained."""
    by_name: dict[str, NDArray[np.float32]]
    """Function -> its rewards [R], NaN where it abstained."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What functions logged with `log_metric`: means over the calls."""
    extra: dict[str, list[Any]] = field(default_factory=dict)
    """Columns that functions logged with `log_extra`, R values each."""


class Rewards:
    """The rewards of a run: what scores a batch of completions.

    Args:
        reward_funcs: functions, coroutine functions, sequence classifiers of transformers or folders and names that
            hold one; one alone or several.
        processing_classes: tokenizers of the classifiers, in the order of `reward_funcs` (None for functions, and where
            the classifier's own is meant).
        weights: what each reward counts in the sum; None is 1 each.
        device: where classifiers run.
        chat_template_kwargs: for the classifiers' chat templates.
        timeout: seconds that a call may take; None: no bound (`reward_timeout`).
        skip_errors: whether a completion for which a function fails alone is scored None, and the run goes on
            (`stp_reward_errors`).

    Raises:
        ConfigError: no reward, or other numbers of tokenizers or weights than of rewards.
    """

    def __init__(
        self,
        reward_funcs: Any,
        processing_classes: Any = None,
        weights: Sequence[float] | None = None,
        *,
        device: torch.device | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        skip_errors: bool = False,
    ) -> None:
        self.timeout, self.skip_errors = timeout, skip_errors
        given = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
        if not given or None in given:
            raise ConfigError("reward_funcs: got none, needs at least one function or sequence classifier")
        several = isinstance(processing_classes, (list, tuple))
        tokenizers = list(processing_classes) if several else [processing_classes] * len(given)
        if len(tokenizers) != len(given) or (not several and processing_classes is not None and len(given) > 1):
            raise ConfigError(
                f"reward_processing_classes: got {len(tokenizers) if several else 1} for {len(given)} rewards, needs "
                "one each (None for a function)"
            )
        self.weights = np.ones(len(given), np.float32) if weights is None else np.asarray(weights, np.float32)
        if self.weights.shape != (len(given),) or not np.isfinite(self.weights).all():
            raise ConfigError(f"reward_weights: got {weights}, needs {len(given)} finite numbers, one per reward")
        self._funcs: dict[str, RewardFunc] = {}
        for func, tokenizer in zip(given, tokenizers, strict=True):
            reward = func
            if isinstance(func, (str, torch.nn.Module)):
                reward = RewardModel(func, tokenizer, device=device, chat_template_kwargs=chat_template_kwargs)
            elif not callable(func):
                raise ConfigError(f"reward_funcs: got {func!r}, needs a function or a sequence classifier")
            self._funcs[_free_name(reward, self._funcs)] = reward

    @classmethod
    def of(cls, reward_funcs: Any, config: "STPConfig", processing_classes: Any = None) -> "Rewards":
        """Return the rewards of a run, with its weights, bounds and device."""
        return cls(
            reward_funcs,
            processing_classes,
            config.reward_weights,
            device=config.device,
            chat_template_kwargs=config.chat_template_kwargs,
            timeout=config.reward_timeout,
            skip_errors=config.stp_reward_errors == "skip",
        )

    @property
    def names(self) -> list[str]:
        """The name of each reward; two of one name are NAME and NAME_2."""
        return list(self._funcs)

    @property
    def functions(self) -> Mapping[str, RewardFunc]:
        """The rewards by their names."""
        return self._funcs

    def check_columns(self, columns: Iterable[str]) -> None:
        """Refuse columns that a reward function could not tell from its own arguments, and columns that are missing.

        Raises:
            InvalidValueError: a column has a reserved name, or a function needs one that is not there.
        """
        columns = [name for name in columns if name != "prompt"]
        if clash := [name for name in RESERVED if name in columns]:
            raise InvalidValueError(
                f"column {', '.join(clash)}: is what reward functions are given by that name; rename the column"
            )
        for name, func in self._funcs.items():
            if any(p.kind is p.POSITIONAL_ONLY for p in (_parameters(func) or {}).values()):
                raise InvalidValueError(f"reward {name}: has parameters without a name, needs to be called by keywords")
            lacking = [p for p in _required(func) if p not in columns and p not in RESERVED]
            if lacking:
                raise InvalidValueError(
                    f"reward {name}: needs {', '.join(lacking)}, and the rows have "
                    f"{', '.join(sorted(columns)) or 'no columns'} besides prompt"
                )

    def score(
        self,
        completions: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Any = None,
    ) -> Scores:
        """Return the rewards of completions. Each function gets copies: nothing that it changes is seen elsewhere.

        Args:
            completions: R texts.
            rows: the dataset rows that they belong to.
            completion_ids: their tokens.
            trainer_state: handed to functions that take it.

        Raises:
            InvalidValueError: a function returned something else than a number or None per completion; a
                `RewardValueError` where one completion's is to blame.
            RewardError: one raised, was late or called `sys.exit`; the message names a completion for which it does.
        """
        columns = {key: [row.get(key) for row in rows] for key in dict.fromkeys(k for row in rows for k in row)}
        self.check_columns(columns)
        prompts = columns.pop("prompt", [None] * len(rows))
        shaped = [
            [{"role": "assistant", "content": text}] if _is_chat(prompt) else text
            for text, prompt in zip(completions, prompts, strict=True)
        ]
        state = {"trainer_state": trainer_state}
        lists = {**columns, "prompts": prompts, "completions": shaped, "completion_ids": completion_ids}
        diary = _Diary(len(completions))
        returned = self._call(self._funcs, lists, diary, state)
        by_name: dict[str, NDArray[np.float32]] = {}
        for name, values in returned.items():
            try:
                by_name[name] = _checked(name, values, completions)
            except (RewardError, InvalidValueError) as error:
                by_name[name] = self._one_by_one(name, completions, lists, state, error)
                diary.log_metric(f"rewards/{name}/failed", float(np.isnan(by_name[name]).sum()))
        total = self._total(np.stack(list(by_name.values())), completions)
        if np.isnan(total).any():
            row = int(np.flatnonzero(np.isnan(total))[0])
            shown = {key: values[row] for key, values in columns.items()}
            shown |= {"prompt": prompts[row], "completion": shaped[row]}
            _LOGGER.warning(
                "All reward functions returned None for the following kwargs: %s. The completion has no advantage; "
                "make sure that at least one function judges each completion.",
                shown,
            )
        return Scores(total, by_name, diary.metrics(), diary.extra)

    def _call(
        self, names: Iterable[str], lists: Mapping[str, Any], diary: "_Diary", state: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what functions return, or the errors that they end with."""
        given = {**lists, **state, "log_extra": diary.log_extra, "log_metric": diary.log_metric}
        funcs = {name: self._funcs[name] for name in names}
        calls = {name: functools.partial(func, **_arguments(func, given)) for name, func in funcs.items()}
        return call_together(calls, self.timeout)

    def _one_by_one(
        self,
        name: str,
        completions: Sequence[str],
        lists: Mapping[str, Any],
        state: Mapping[str, Any],
        error: Exception,
    ) -> NDArray[np.float32]:
        """Return the rewards of a function that failed on a batch, asked for each completion alone; NaN where it fails.

        Raises:
            InvalidValueError, RewardError: rows are not to be skipped; the completion is named where there is one.
        """
        cause = error.__cause__
        if not self.skip_errors and (isinstance(error, InvalidValueError) or isinstance(cause, StpError)):
            raise cause if isinstance(cause, StpError) else error  # it says what is wrong, and of what
        rewards_R = np.full(len(completions), np.nan, np.float32)
        for row, completion in enumerate(completions):
            alone = {key: None if values is None else values[row : row + 1] for key, values in lists.items()}
            returned = self._call([name], alone, _Diary(1), state)[name]
            try:
                rewards_R[row] = _checked(name, returned, [completion])[0]
            except (RewardError, InvalidValueError) as failure:
                said = f"{failure} for completion {row} ({_shortened(completion)})"
                if not self.skip_errors and isinstance(failure, RewardError):
                    raise RewardError(f"{said}; stp_reward_errors=skip scores None for it and goes on") from cause
                if self.skip_errors:
                    warnings.warn(f"{said}; it is scored None", stacklevel=2)
        if not self.skip_errors:
            raise RewardError(f"{error} for a batch of {len(completions)}, and for none of them alone") from cause
        return rewards_R

    def _total(self, rewards_FR: NDArray[np.float32], completions: Sequence[str]) -> NDArray[np.float32]:
        total: NDArray[np.float32] = np.nansum(rewards_FR * self.weights[:, None], axis=0).astype(np.float32)
        if (np.abs(total) >= LARGEST).any():
            row = int(np.argmax(np.abs(total)))
            raise RewardValueError(
                f"rewards {', '.join(self._funcs)}: their weighted sum is {total[row]:g} for completion "
                f"{_shortened(completions[row])}, needs less than {LARGEST:g} in magnitude; lower reward_weights",
                reward=", ".join(self._funcs),
                row=row,
                completion=completions[row],
            )
        total[np.isnan(rewards_FR).all(axis=0)] = np.nan
        return total


def score_rewards(
    reward_funcs: Any,
    completions: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    completion_ids: Sequence[Sequence[int]] | None = None,
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Return (sum of rewards [R], rewards by function name), NaN where no function, or that function, judged.

    For a loop of your own; `Rewards` has weights, classifiers and what functions log.
    """
    scores = Rewards(reward_funcs).score(completions, rows, completion_ids)
    return scores.total, scores.by_name


def column_names(rows: Any) -> set[str]:
    """Return the columns of a dataset: `column_names` where it has them, else the keys of every row of a list."""
    named = getattr(rows, "column_names", None)
    if named is not None:
        return set(named)
    return {key for row in (rows if isinstance(rows, (list, tuple)) else itertools.islice(rows, 1)) for key in row}


def is_failures(metric: str) -> bool:
    """Return whether a metric is the number of completions that a function failed on (`stp_reward_errors: skip`)."""
    return metric.startswith("rewards/") and metric.endswith("/failed")


class _Diary:
    """What reward functions log about one batch."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.extra: dict[str, list[Any]] = {}
        self._logged: dict[str, list[float]] = {}

    def log_extra(self, column: str, values: Iterable[Any]) -> None:
        """Add a column to the table of completions, a value per completion."""
        values = list(values)
        if len(values) != self._count:
            raise InvalidValueError(
                f"log_extra {column}: got {len(values)} values, needs one per completion ({self._count})"
            )
        self.extra[column] = values

    def log_metric(self, name: str, value: float) -> None:
        """Log a number beside the built-in metrics; NaN counts as nothing logged."""
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise InvalidValueError(f"log_metric {name}: got {shown(value)}, needs a number") from error
        self._logged.setdefault(name, [])
        if math.isfinite(number):
            self._logged[name].append(number)

    def metrics(self) -> dict[str, float]:
        return {name: sum(values) / len(values) for name, values in self._logged.items() if values}


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, (list, tuple))


def _parameters(func: RewardFunc) -> Mapping[str, inspect.Parameter] | None:
    """Return a function's parameters by name; None where it takes any keyword or does not say."""
    try:
        parameters = inspect.signature(func).parameters
    except (TypeError, ValueError):
        return None
    return parameters


def _required(func: RewardFunc) -> Iterator[str]:
    for name, parameter in (_parameters(func) or {}).items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if not variadic and parameter.default is parameter.empty:
            yield name


def _arguments(func: RewardFunc, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return copies of what a function takes of what there is."""
    parameters = _parameters(func)
    everything = parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    taken = {name: value for name, value in given.items() if everything or name in (parameters or {})}
    return {name: [_copied(v) for v in value] if isinstance(value, list) else value for name, value in taken.items()}


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # what cannot be copied (a lock, a tensor of a graph) is handed over as it is
        return value


def _checked(name: str, returned: Any, completions: Sequence[str]) -> NDArray[np.float32]:
    """Return a function's rewards f32 [R], NaN for None.

    Raises:
        RewardError: that is what the call ended with.
        InvalidValueError: not one number or None per completion.
    """
    if isinstance(returned, RewardError):
        raise returned
    count = len(completions)
    try:
        values = _listed(returned, count)
    except Exception as error:  # a generator's own code, a tensor without data
        raise RewardError(f"reward {name}: what it returned cannot be read: {shown(error)}") from error
    if values is None:
        raise InvalidValueError(
            f"reward {name}: got {_described(returned)}, needs a list with one number (or None) for each of the "
            f"{count} completions"
        )
    if len(values) != count:
        more = "more than " if len(values) > count and isinstance(returned, Iterator) else ""
        got = count if more else len(values)
        raise InvalidValueError(f"reward {name}: got {more}{got} values for {count} completions, needs one each")
    rewards_R = np.empty(count, np.float32)
    for row, value in enumerate(values):
        number = math.nan if value is None else _number(value)
        if number is None:
            raise RewardValueError(
                f"reward {name}: got {shown(value)} for completion {_shortened(completions[row])}, needs a finite "
                f"number below {LARGEST:g} in magnitude, or None where it does not apply",
                reward=name,
                row=row,
                completion=completions[row],
            )
        rewards_R[row] = number
    return rewards_R


def _listed(returned: Any, count: int) -> list[Any] | None:
    """Return a function's values in their order, at most one too many; None where there is no such thing."""
    if returned is None or isinstance(returned, (str, bytes, bytearray, Mapping, Set)):
        return None
    if hasattr(returned, "ndim"):  # arrays, tensors, series
        return list(returned.tolist()) if returned.ndim == 1 else None
    if isinstance(returned, Iterator):
        return list(itertools.islice(returned, count + 1))
    return list(returned) if isinstance(returned, Iterable) else None


def _number(value: Any) -> float | None:
    try:
        if isinstance(value, (str, bytes, bytearray)) or getattr(value, "ndim", 0) != 0:
            return None
        number = float(value.item() if hasattr(value, "item") else value)  # of a tensor with a gradient too
    except Exception:  # whatever its own code says, it is no number
        return None
    return number if abs(number) < LARGEST else None  # NaN is below nothing


def _described(returned: Any) -> str:
    if hasattr(returned, "shape"):
        return f"{type(returned).__name__} of shape {tuple(returned.shape)}"
    return f"{type(returned).__name__} {shown(returned)}"


def _shortened(text: str) -> str:
    return f"{text!r:.200}" + ("..." if len(repr(text)) > 200 else "")


def _free_name(func: Callable[..., Any], taken: Mapping[str, Any]) -> str:
    """Return a function's name, or NAME_2, NAME_3 ... where it is taken: two lambdas are two rewards."""
    while isinstance(func, functools.partial):
        func = func.func
    name = free = LONE_SURROGATE.sub("\ufffd", str(getattr(func, "__name__", type(func).__name__)))
    number = 1
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
