"""The spatial priors that a configuration names, for a task (docs/priors.md)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stp_rs.config.sections import STPConfig
from stp_rs.data.prompts import encode_prompts
from stp_rs.errors import ConfigError, InvalidValueError
from stp_rs.models.base import DiffusionModel
from stp_rs.priors import (
    Anneal,
    Copy,
    Frequency,
    Length,
    Prior,
    Reference,
    Template,
    Vocabulary,
    reference_length,
)
from stp_rs.priors.base import Constrained, Referenced, is_soft
from stp_rs.priors.reference import SELECTORS
from stp_rs.rollout.params import make_unmasking
from stp_rs.train.anchors import OfflineGeneration
from stp_rs.train.checkpoint import newest_checkpoint
from stp_rs.train.metrics import Ledger
from stp_rs.types import Row

if TYPE_CHECKING:
    from stp_rs.tasks.base import Task

NAMES = ("template", "copy", "length", "vocabulary", "offline_generation", "reference", "frequency")
"""Sources that `stp_spatial` may name."""
_PLACED = {"template", "copy", "vocabulary"}
"""Sources that fix or restrict places of the canvas."""


def spatial_names(config: STPConfig) -> list[str]:
    """Return the sources of `stp_spatial`, in order.

    Raises:
        ConfigError: an unknown one, or one that is named twice.
    """
    names = [name.strip() for name in config.stp_spatial.split("+")]
    names = [] if names == ["none"] else names
    for name in names:
        if name not in NAMES or names.count(name) > 1:
            raise ConfigError(f"stp_spatial: got {name!r}, needs {', '.join(NAMES)} (once each, joined by +) or none")
    return names


def check_spatial(config: STPConfig) -> None:
    """Check the prior options that are text, before anything is trained.

    Raises:
        ConfigError: one cannot be read.
    """
    if "length" in spatial_names(config):
        _quantile(config.stp_length)
    _anneal(config)


def static_priors(config: STPConfig, task: "Task", tokenizer: Any, model: DiffusionModel | None = None) -> list[Prior]:
    """Return the configured priors that need no answer and may stay on at evaluation.

    They are template, copy, vocabulary, and length where its budget is a number.

    Raises:
        ConfigError: places of the task's layout are no token places of the tokenizer.
    """
    found: list[Prior] = []
    if not _PLACED.isdisjoint(spatial_names(config)):
        task.check_places(tokenizer)
    for name in spatial_names(config):
        if name == "template":
            found.append(Template(task.template, tokenizer))
        elif name == "copy":
            found.append(Copy(task.copies, tokenizer))
        elif name == "vocabulary":
            found.append(_vocabulary(task, tokenizer, model))
        elif name == "length" and config.stp_length.isdecimal():
            found.append(Length(tokenizer, budget=int(config.stp_length)))
    return found


def training_priors(
    config: STPConfig,
    task: "Task",
    model: DiffusionModel,
    tokenizer: Any,
    *,
    rows: Sequence[Row],
    static: Sequence[Prior],
    ledger: Ledger,
) -> list[Prior]:
    """Return all configured priors of training: `static` and those that read answers or earlier rollouts.

    OfflineGeneration is made once per run from `rows`, the training rows that the run reads, and stored in its folder;
    `ledger` gets what that costs.
    """
    names, seed = spatial_names(config), config.seed
    shared: dict[str, Any] = {
        "anneal": _anneal(config),
        "per": config.stp_prior_per,
        "seed": seed,
    }
    hint: dict[str, Any] = {
        **shared,
        "share": config.stp_hint,
        "selector": config.stp_selector if config.stp_selector in SELECTORS else "random",
        "answer_span": task.answer_span if config.stp_protect_answer and not task.whole_answer else None,
    }
    priors = list(static)
    if "length" in names and not config.stp_length.isdecimal():
        priors.append(_length(config.stp_length, task, tokenizer))
    if config.stp_rescue == "reference":
        priors.append(Reference(reference_text(task), tokenizer, when="all_wrong", **hint))
    for name in names:
        if name == "offline_generation":
            priors.append(_offline(config, task, model, tokenizer, rows=rows, given=priors, ledger=ledger))
        elif name == "reference":
            priors.append(Reference(reference_text(task), tokenizer, **hint))
        elif name == "frequency":
            priors.append(Frequency(tokenizer, config.stp_frequency, config.num_generations, **shared))
    return priors


def reference_text(task: "Task") -> Callable[[Any], str | None]:
    """Return how a row's reference completion is found: the task's word, or the column completion or solution."""
    if isinstance(task, Referenced):
        return task.reference
    return lambda row: row.get("completion") or row.get("solution")


def _vocabulary(task: "Task", tokenizer: Any, model: DiffusionModel | None) -> Vocabulary:
    if not isinstance(task, Constrained):
        raise ConfigError(f"stp_spatial: got vocabulary for the task {task.name}, which has no allowed(position)")
    config = getattr(getattr(model, "module", None), "config", None)
    return Vocabulary(task.allowed, tokenizer, vocab_size=int(getattr(config, "vocab_size", 0)))


def _anneal(config: STPConfig) -> Anneal:
    try:
        return Anneal.parse(config.stp_prior_anneal)
    except InvalidValueError as error:
        raise ConfigError(f"stp_prior_{error}") from error


def _quantile(budget: str) -> float | None:
    """Return the share of `quantile:Q`; None for a number or `reference`."""
    if budget.isdecimal() or budget == "reference":
        return None
    kind, _, text = budget.partition(":")
    try:
        share = float(text) if kind == "quantile" else 0.0
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise ConfigError(
            f"stp_length: got {budget!r}, needs a number, reference, or quantile:Q with Q above 0 and at most 1"
        )
    return share


def _length(budget: str, task: "Task", tokenizer: Any) -> Length:
    share = _quantile(budget)
    if share is None:
        return Length(tokenizer, budget=reference_length(reference_text(task), tokenizer))
    return Length(tokenizer, quantile=share, slack=1)


def _offline(
    config: STPConfig,
    task: "Task",
    model: DiffusionModel,
    tokenizer: Any,
    *,
    rows: Sequence[Row],
    given: Sequence[Prior],
    ledger: Ledger,
) -> OfflineGeneration:
    prior = OfflineGeneration(
        config.stp_keep,
        config.stp_selector,
        task.answer_span,
        config.seed,
        protect_answer=config.stp_protect_answer,
        anneal=_anneal(config),
        per=config.stp_prior_per,
        refresh=config.stp_prior_refresh,
    )
    certain = [p for p in given if not is_soft(p)]
    unmasking = make_unmasking(config, prune=False)
    stored = Path(config.output_dir) / "offline_generation.safetensors"
    started = newest_checkpoint(Path(config.output_dir)) is not None  # of these very settings: resumes check it
    if config.resume and started and stored.is_file():
        prior.load(stored, tokenizer)
        prior.follow(model, tokenizer, unmasking, certain)
    else:
        prompts = encode_prompts(rows, tokenizer, uids=range(len(rows)))
        length = config.max_completion_length
        cost = prior.build(model, prompts, tokenizer, unmasking, completion_length=length, given=certain)
        ledger.add(cost, "prior")
        prior.save(stored)
    return prior
