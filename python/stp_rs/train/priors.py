"""The spatial priors that a configuration names, for a task (docs/priors.md)."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stp_rs.config.presets import PRUNINGS
from stp_rs.data.prompts import encode_prompts
from stp_rs.distributed import on_main
from stp_rs.errors import ConfigError, InvalidValueError
from stp_rs.models.base import DiffusionModel
from stp_rs.priors import (
    Anneal,
    AnswerSpan,
    Copy,
    Frequency,
    Hint,
    Length,
    Prior,
    Template,
    Vocabulary,
    solution_length,
    tag_span,
)
from stp_rs.priors.base import Constrained, Referenced, is_soft
from stp_rs.priors.hint import SELECTORS
from stp_rs.rollout.params import make_unmasking
from stp_rs.train.anchors import FirstForward, OfflineGeneration
from stp_rs.train.metrics import Ledger

if TYPE_CHECKING:
    from stp_rs.config.arguments import STPConfig
    from stp_rs.tasks.base import Task

_LOGGER = logging.getLogger(__name__)
NAMES = ("template", "copy", "length", "vocabulary", "offline_generation", "first_forward", "hint", "frequency")
"""Sources that `stp_spatial` may name."""
_OF_A_TASK = ("template", "copy", "vocabulary")
"""Sources that fix or restrict places of the canvas, which only a task knows."""


def spatial_names(config: "STPConfig", task: "Task | None", *, warn: bool = False) -> list[str]:
    """Return the sources of `stp_spatial`, in order.

    Without a task, those that a preset names and only a task could make are left out; `warn` says so.

    Raises:
        ConfigError: an unknown one, one that is named twice, or one that needs a task and was asked for without.
    """
    names = [name.strip() for name in config.stp_spatial.split("+")]
    names = [] if names == ["none"] else names
    for name in names:
        if name not in NAMES or names.count(name) > 1:
            raise ConfigError(f"stp_spatial: got {name!r}, needs {', '.join(NAMES)} (once each, joined by +) or none")
    lacking = [name for name in names if name in _OF_A_TASK and task is None]
    if not lacking:
        return names
    wish = f"needs priors=[...], for example Template and Copy, to make {' and '.join(lacking)}"
    if config.stp_spatial != PRUNINGS[str(config.pruning)]["stp_spatial"]:
        raise ConfigError(f"stp_spatial: got {config.stp_spatial!r} without a task of stp_rs, {wish}")
    if warn:
        _LOGGER.warning("pruning %s: %s; trained without", config.pruning, wish)
    return [name for name in names if name not in lacking]


def check_spatial(config: "STPConfig", task: "Task | None") -> None:
    """Check the prior options that are text, before anything is trained.

    Raises:
        ConfigError: one cannot be read.
    """
    if "length" in spatial_names(config, task):
        _quantile(config.stp_length)
    _anneal(config)


def configured_priors(
    config: "STPConfig",
    task: "Task | None",
    model: DiffusionModel,
    tokenizer: Any,
    *,
    read: Callable[[], Sequence[Mapping[str, Any]]],
    resumed: bool,
    ledger: Ledger,
) -> list[Prior]:
    """Return the priors of a run's training, in the order in which they apply.

    Args:
        config: the configuration.
        task: what knows templates, copied tokens and allowed ones; None for rows of one's own.
        model: the policy, from which offline completions are made.
        tokenizer: its tokenizer.
        read: returns the training rows that the run reads.
        resumed: whether the run goes on from a checkpoint: offline completions are those that it began with.
        ledger: gets what making them costs.
    """
    check_spatial(config, task)
    static = static_priors(config, task, tokenizer, model)
    return training_priors(config, task, model, tokenizer, read=read, static=static, resumed=resumed, ledger=ledger)


def static_priors(
    config: "STPConfig", task: "Task | None", tokenizer: Any, model: DiffusionModel | None = None
) -> list[Prior]:
    """Return the configured priors that need no answer and may stay on at evaluation.

    They are template, copy, vocabulary, and length where its budget is a number.

    Raises:
        ConfigError: places of the task's layout are no token places of the tokenizer.
    """
    found: list[Prior] = []
    names = spatial_names(config, task, warn=True)
    if task is not None and not set(_OF_A_TASK).isdisjoint(names):
        task.check_places(tokenizer)
    for name in names:
        if task is not None and name == "template":
            found.append(Template(task.template, tokenizer))
        elif task is not None and name == "copy":
            found.append(Copy(task.copies, tokenizer))
        elif task is not None and name == "vocabulary":
            found.append(_vocabulary(task, tokenizer, model))
        elif name == "length" and config.stp_length.isdecimal():
            found.append(Length(tokenizer, budget=int(config.stp_length)))
    return found


def training_priors(
    config: "STPConfig",
    task: "Task | None",
    model: DiffusionModel,
    tokenizer: Any,
    *,
    read: Callable[[], Sequence[Mapping[str, Any]]],
    static: Sequence[Prior],
    resumed: bool = False,
    ledger: Ledger,
) -> list[Prior]:
    """Return all configured priors of training: `static` and those that read answers or earlier rollouts.

    OfflineGeneration is made once per run from the training rows that it reads, and stored in its folder; `ledger` gets
    what that costs.
    """
    names, seed = spatial_names(config, task), config.seed
    shared: dict[str, Any] = {
        "anneal": _anneal(config),
        "per": config.stp_prior_per,
        "seed": seed,
    }
    hint: dict[str, Any] = {
        **shared,
        "share": config.stp_hint,
        "selector": config.stp_selector if config.stp_selector in SELECTORS else "random",
        "answer_span": answer_span(task)
        if config.stp_protect_answer and (task is None or not task.whole_answer)
        else None,
    }
    priors = list(static)
    if "length" in names and not config.stp_length.isdecimal():
        priors.append(_length(config.stp_length, task, tokenizer))
    if config.stp_rescue == "hint":
        priors.append(Hint(solution_text(task), tokenizer, when="all_wrong", **hint))
    for name in names:
        if name == "offline_generation":
            priors.append(
                _offline(config, task, model, tokenizer, read=read, given=priors, resumed=resumed, ledger=ledger)
            )
        elif name == "first_forward":
            span = answer_span(task) if config.stp_protect_answer else None
            certain = [prior for prior in priors if not is_soft(prior)]
            priors.append(FirstForward(model, tokenizer, config.stp_keep, span, shared["anneal"], certain))
        elif name == "hint":
            priors.append(Hint(solution_text(task), tokenizer, **hint))
        elif name == "frequency":
            priors.append(Frequency(tokenizer, config.stp_frequency, config.num_generations, **shared))
    return priors


def answer_span(task: "Task | None") -> AnswerSpan:
    """Return the finder of the answer: the task's; of rows of one's own in the answer tag, or else in the box."""
    if task is not None:
        return task.answer_span
    tag, box = tag_span(), tag_span("\\boxed{", "}")
    return lambda text: tag(text) or box(text)


def solution_text(task: "Task | None") -> Callable[[Any], str | None]:
    """Return how a row's known solution is found: the task's word, or the column completion or solution."""
    known: object = task
    if isinstance(known, Referenced):
        return known.reference
    return lambda row: row.get("completion") or row.get("solution")


def _vocabulary(task: "Task", tokenizer: Any, model: DiffusionModel | None) -> Vocabulary:
    if not isinstance(task, Constrained):
        raise ConfigError(f"stp_spatial: got vocabulary for the task {task.name}, which has no allowed(position)")
    config = getattr(getattr(model, "module", None), "config", None)
    return Vocabulary(task.allowed, tokenizer, vocab_size=int(getattr(config, "vocab_size", 0)))


def _anneal(config: "STPConfig") -> Anneal:
    try:
        return Anneal.parse(config.stp_prior_anneal)
    except InvalidValueError as error:
        raise ConfigError(f"stp_prior_{error}") from error


def _quantile(budget: str) -> float | None:
    """Return the share of `quantile:Q`; None for a number or `solution`."""
    if budget.isdecimal() or budget == "solution":
        return None
    kind, _, text = budget.partition(":")
    try:
        share = float(text) if kind == "quantile" else 0.0
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise ConfigError(
            f"stp_length: got {budget!r}, needs a number, solution, or quantile:Q with Q above 0 and at most 1"
        )
    return share


def _length(budget: str, task: "Task | None", tokenizer: Any) -> Length:
    share = _quantile(budget)
    if share is None:
        return Length(tokenizer, budget=solution_length(solution_text(task), tokenizer))
    return Length(tokenizer, quantile=share, slack=1)


def _offline(
    config: "STPConfig",
    task: "Task | None",
    model: DiffusionModel,
    tokenizer: Any,
    *,
    read: Callable[[], Sequence[Mapping[str, Any]]],
    given: Sequence[Prior],
    resumed: bool,
    ledger: Ledger,
) -> OfflineGeneration:
    prior = OfflineGeneration(
        config.stp_keep,
        config.stp_selector,
        answer_span(task),
        config.seed,
        protect_answer=config.stp_protect_answer,
        anneal=_anneal(config),
        per=config.stp_prior_per,
        refresh=config.stp_prior_refresh or 0,
    )
    prior.slots = config.stp_slots
    certain = [p for p in given if not is_soft(p)]
    unmasking = make_unmasking(config, prune=False)
    stored = Path(str(config.output_dir)) / "offline_generation.safetensors"
    if resumed and stored.is_file():
        prior.load(stored, tokenizer)
        prior.follow(model, tokenizer, unmasking, certain)
    else:
        rows = read()
        prompts = encode_prompts(
            rows, tokenizer, uids=range(len(rows)), chat_template_kwargs=config.chat_template_kwargs
        )
        length = config.max_completion_length
        cache = Path(config.stp_anchor_cache) if config.stp_anchor_cache else None
        cost = prior.build(model, prompts, tokenizer, unmasking, completion_length=length, given=certain, cache=cache)
        ledger.add(cost, "prior")
        on_main(lambda: prior.save(stored))
    return prior
