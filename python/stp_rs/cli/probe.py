"""`stp-rs probe` and `stp-rs train --dry_run`: what a policy declares, checked against what its module computes."""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stp_rs.text import clip, inert, show

if TYPE_CHECKING:
    from stp_rs.config import TaskConfig

_MARKS = {True: "ok  ", False: "FAIL", None: "?   "}


def add_parser(commands: Any, argv: Sequence[str]) -> None:
    """Add the command to the parser of `stp-rs`; its options are added where `argv` is about it."""
    parser = commands.add_parser(
        "probe", help="open a model and hold its declared traits against what it computes", allow_abbrev=False
    )
    parser.add_argument("model", metavar="MODEL", help="a model of the hub, a folder, or a run folder")
    parser.set_defaults(run=run)
    if "probe" in argv[:1]:
        from stp_rs.cli.flags import add_option_flags
        from stp_rs.config.listing import listed
        from stp_rs.config.sections import ModelConfig

        about = {field.name for field in fields(ModelConfig)} | {"use_cpu"}
        add_option_flags(parser, skip=listed().keys() - about)


def run(args: argparse.Namespace) -> int:
    """Print traits and findings; return 1 where a probe failed."""
    from stp_rs.cli.flags import given_options
    from stp_rs.cli.run import found_model
    from stp_rs.config import TaskConfig
    from stp_rs.models import load_configured

    config = TaskConfig(**given_options(args), model_name_or_path=args.model)
    policy, tokenizer = load_configured(config, found_model(args.model), config.device)
    return _describe(policy, tokenizer)


def dry_run(config: "TaskConfig") -> int:
    """Show policy, plan, cost and three prompts with their priors drawn in; make one batch, and write nothing.

    Returns:
        The exit code: 1 where a probe failed.
    """
    from stp_rs.cli.estimate import print_cost
    from stp_rs.cli.run import TaskTrainer, complete, make_task, prepare_policy, set_threads

    set_threads(config)
    task = make_task(config)
    with tempfile.TemporaryDirectory() as folder:
        whole = complete(config, task)
        config = replace(whole, output_dir=folder, sft_steps=0)
        policy, tokenizer = prepare_policy(config, task, Path(folder))
        failed = _describe(policy, tokenizer)
        trainer = TaskTrainer(config, task, policy, tokenizer, [])
        trainer.prepare()
        show("\nThe plan:\n" + repr(trainer.unmasking))
        show("\n".join(["", "Prompts with their priors drawn in (\u00b7 is free):", *drawn_prompts(trainer)]))
        show("\nThe cost:")
        print_cost(whole)
        metrics = trainer.train_step().metrics
    show("\nOne batch:")
    names = ("loss", "grad_norm", "reward", "completions/mean_length", "diffusion/nfe", "diffusion/forward_equivalents")
    for name in names:
        if name in metrics:
            show(f"{name:32} {metrics[name]:.4g}")
    show("dry run: one batch was decoded, scored and trained on; nothing was written")
    return failed


def drawn_prompts(trainer: Any) -> list[str]:
    """Return, for three training prompts, the prompt and its completion with fixed tokens as text, and the forwards."""
    import numpy as np

    from stp_rs.data.prompts import encode_prompts
    from stp_rs.priors import compose_priors
    from stp_rs.priors import lifecycle as hooks

    rows, tokenizer = trainer.task.rows("train", _DRAWN, trainer.args.seed), trainer.tokenizer
    length = trainer.args.max_completion_length
    template = trainer.args.chat_template_kwargs
    prompts = encode_prompts(rows, tokenizer, uids=range(len(rows)), chat_template_kwargs=template)
    hooks.begin_step(trainer.priors, 0, trainer.count_rollouts())
    hooks.prepare(trainer.priors, prompts, length)
    fixed = compose_priors(trainer.priors, prompts, length)
    ids_RL = np.empty((len(rows), length), dtype=np.int64)
    fixed.fill(ids_RL)
    lines = []
    for row, ids_L in zip(prompts.rows, ids_RL, strict=True):
        plan = trainer.unmasking.plan((ids_L < 0).astype(np.uint8))
        forwards = "forwards as the model decides" if plan is None else f"{len(plan)} forwards"
        said = row["prompt"][-1]["content"] if isinstance(row["prompt"], list) else row["prompt"]
        lines += [f"  {clip(inert(str(said)), _WIDE)}", f"    {_filled(ids_L, tokenizer)}"]
        lines += [f"    {int((ids_L >= 0).sum())} of {length} tokens fixed, {forwards}"]
    return lines


def _filled(ids_L: Any, tokenizer: Any) -> str:
    """Return fixed tokens as their text; a free one is a dot, many of them a dot and their number."""
    parts = []
    for free, run in groupby(ids_L.tolist(), key=lambda token: token < 0):
        tokens = list(run)
        dots = "\u00b7" * len(tokens) if len(tokens) <= _DOTS else f" \u00b7x{len(tokens)} "
        parts.append(dots if free else inert(tokenizer.decode(tokens)))
    return clip("".join(parts), _WIDE)


_DRAWN, _WIDE, _DOTS = 3, 96, 24
"""Prompts of a dry run, columns of each, and most free tokens in a row that are drawn one by one."""


def _describe(policy: Any, tokenizer: Any) -> int:
    """Print what a policy is and what its probes find; return 1 where one failed."""
    from stp_rs.models.base import block_size_of, device_of, end_token_ids
    from stp_rs.models.probes import probe

    parameters = list(policy.module.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    family = getattr(getattr(policy, "family", None), "name", "own")
    blocks = block_size_of(policy)
    for name, value in (
        ("class", f"{type(policy.module).__name__}, family {family}"),
        ("parameters", f"{sum(p.numel() for p in parameters):,}, trained {trained:,}"),
        ("weights", f"{parameters[0].dtype}, on {device_of(policy)}"),
        (
            "mask, pad, ends",
            f"{policy.mask_token_id}, {policy.pad_token_id}, {', '.join(map(str, end_token_ids(policy)))}",
        ),
        ("logit shift", str(policy.logit_shift)),
        ("attention", f"block-causal, {blocks} tokens" if blocks else "bidirectional"),
        ("context", f"{getattr(policy, 'context_length', 0) or 'not said'} tokens"),
    ):
        show(f"{name:16} {value}")
    findings = probe(policy, tokenizer)
    for finding in findings:
        show(f"{_MARKS[finding.passed]} {finding.name:11} {finding.text}")
    bad = [f.name for f in findings if f.passed is False and f.name != "padding"]
    return 1 if bad else 0
