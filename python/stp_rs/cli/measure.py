"""What `stp-rs variance` measures and prints; its options are in variance.py, which imports no torch."""

import argparse
import contextlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stp_rs._core import Design
from stp_rs.data.prompts import PromptBatch, encode_prompts
from stp_rs.data.trajectories import Rollout
from stp_rs.errors import ConfigError
from stp_rs.eval.alignment import Alignment, BiasPart, align, align_trajectories, bias_parts, trajectory_gradients
from stp_rs.eval.checks import Checks, check_statements
from stp_rs.eval.pictures import sampled_variance, variance_by_anchors
from stp_rs.eval.plot import Pictures, draw, require_matplotlib
from stp_rs.eval.prunings import as_pruned, with_pruning
from stp_rs.eval.variance import (
    AlignmentRow,
    Measurement,
    PrunedBatch,
    Setting,
    VarianceRow,
    list_measurements,
    measure,
    pruned_batches,
    ratio,
    summarise,
    to_json,
)
from stp_rs.models import load_configured
from stp_rs.models.base import autocast
from stp_rs.objective.advantages import configured_advantages
from stp_rs.objective.masks import MAX_TOKENS
from stp_rs.objective.noise import Estimator
from stp_rs.priors import Vocabulary, compose_priors
from stp_rs.progress import Bar
from stp_rs.rollout.generate import generate
from stp_rs.rollout.loop import Batching
from stp_rs.rollout.params import make_unmasking, sampling_law
from stp_rs.rollout.rewards import Rewards, completion_token_ids, decode_completions
from stp_rs.tasks.base import Row
from stp_rs.testing import gram
from stp_rs.testing.states import Part
from stp_rs.testing.variance import independent_variance
from stp_rs.text import show
from stp_rs.train.checkpoint import policy_folder, write_json
from stp_rs.train.priors import static_priors
from stp_rs.types import Floats

COMPARED = (
    (("cover", 2, "both"), ("unigrpo", 2, "none")),
    (("cover", 2, "both"), ("coupled", 2, "none")),
    (("cover", 2, "both"), ("uniform_count", 2, "none")),
    (("cover", 4, "both"), ("pairs", 4, "both")),
    (("cover", 4, "both"), ("uniform_count", 4, "both")),
    (("spread", 4, "both"), ("pairs", 4, "both")),
    (("spread", 4, "both"), ("uniform_count", 4, "both")),
)
"""(design, K, pruning) whose gradient traces are compared, with intervals."""
EXACT = (*COMPARED[3:], (("spread", 8, "both"), ("cover", 8, "both")), (("cover", 4, "both"), ("cover", 4, "spatial")))
"""Those that are also compared through all masks' gradients."""
EXACT_ROWS = 64
PICTURE_DRAWS = 64
"""Draws of the masks for the pictures: no gradient is needed, and variances are heavy-tailed."""


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write what was asked for; return the exit code."""
    if args.rows < 0 or args.resamples < 2 or args.batches in (1, -1) or not args.rows + args.batches:
        got = f"--rows {args.rows}, --resamples {args.resamples}, --batches {args.batches}"
        raise ConfigError(f"{got}: needs rows or batches above 0, 2 resamples, and 2 batches or none")
    if args.plot and not args.rows:
        raise ConfigError("--plot: got --rows 0, which measures the alignment only; the figure needs rows")
    if args.plot:
        require_matplotlib()
    source = Source(args)
    with source.autocast():
        return _measure(args, source) if args.rows else _measure_alignment(args, source)


def _measure_alignment(args: argparse.Namespace, source: "Source") -> int:
    """Measure, print and write the alignment of the designs asked for, under the run's own pruning."""
    setting, batches = source.setting, source.batches(args.batches)
    if problem := nothing_to_align_with(batches):
        raise ConfigError(problem)
    own = [PrunedBatch("both", batches[0], [], [])]
    names = chosen_designs(args.designs, compared=not args.designs)
    exact = [(Design("trajectory", 0), own[0])] if "trajectory" in names else []
    passes = chosen_passes(args.passes, compared=False)
    pairs, refused = list_measurements(setting, own, names, passes)
    pairs = [*exact, *pairs]
    bar = Bar(len(pairs) + 1, "variance", "measurements")
    target = trajectory_gradients(setting.model, batches, setting.temperature)
    bar.update()
    lines = []
    for design, batch in pairs:
        if design.name == "trajectory" and design.num_mc == 0:
            found = align_trajectories(batches, target)
        else:
            found = aligned(setting, design, batch.pruning, batches, target)
        lines.append(AlignmentRow.of(design, batch.pruning, found))
        bar.update()
    bar.close()
    show("\n".join([*alignment_lines(lines), ""]))
    _show_refused(refused)
    if args.json:
        write_json(Path(args.json), to_json(lines))
    return 0


def _measure(args: argparse.Namespace, source: "Source") -> int:
    setting = source.setting
    scored = pruned_batches(setting, source.rollout)
    pairs, refused = list_measurements(setting, scored, chosen_designs(args.designs), chosen_passes(args.passes))
    batches = source.batches(args.batches)
    if problem := nothing_to_align_with(batches):
        batches = []
    target = trajectory_gradients(setting.model, batches, setting.temperature) if batches else None
    parts = {} if target is None else bias_parts(setting.model, batches, target, setting.temperature)
    measured, lines = [], []
    for design, batch in Bar(len(pairs), "variance", "measurements").over(pairs):
        measured.append(measure(setting, design, batch))
        found = None if target is None else aligned(setting, design, batch.pruning, batches, target)
        lines.append(summarise(measured[-1], args.seed, found))
    show(
        "\n".join(
            [
                *table_lines(lines),
                "",
                *alignment_lines(lines),
                *([f"Alignment was not measured: {problem}"] if problem else []),
                "",
                *bias_lines(parts),
                *comparison_lines(measured),
                "",
                *reduction_lines(scored),
                "",
            ]
        )
    )
    show("\n".join([*exact_lines(setting, scored[1], scored[3]), ""]))
    show("\n".join([*check_lines(check_statements(setting, scored[1], scored[3])), ""]))
    _show_refused(refused)
    if args.json:
        write_json(Path(args.json), to_json(lines))
    if args.plot:
        anchors = variance_by_anchors(setting.model, scored[0].rows, source.estimator("uniform_count"), PICTURE_DRAWS)
        rows = (source.variance("uniform_count", "none"), source.variance("cover", "both"))
        draw(measured, Pictures(training=variance_over_training(args), rows=rows, anchors=anchors), Path(args.plot))
    return 0


def nothing_to_align_with(batches: Sequence[Rollout]) -> str:
    """Return why the batches have no policy gradient, and what to do; nothing where they have one."""
    if not batches or any(batch.weights().any() for batch in batches):
        return ""
    return (
        f"--batches: got {len(batches)}, in which no group of completions has rewards that differ, so that there is no "
        "policy gradient to align with; needs more batches, or a policy that is sometimes right"
    )


def _show_refused(refused: Sequence[str]) -> None:
    if refused:
        show("\n".join(["Not legal, so not measured:", *(f"  {line}" for line in refused)]))


class Source:
    """A policy (the run's, or one of its checkpoints) and its own rollouts, one for each of `--rows` prompts."""

    def __init__(self, args: argparse.Namespace, checkpoint: Path | None = None) -> None:
        from stp_rs.cli.run import load_run

        loaded, tokenizer, config, task = load_run(args.model)
        config = with_pruning(config)
        if checkpoint is not None:
            loaded, tokenizer = load_configured(config, checkpoint, config.device)
        self.config, self.task, self.tokenizer = config, task, tokenizer
        length = config.max_completion_length
        self.setting = Setting(
            model=loaded,
            temperature=config.temperature,
            diffusion_steps=config.diffusion_steps or length,
            block_length=config.block_length or -(-length // 8),
            draws=args.resamples,
            seed=args.seed,
            own=config,
        )
        rows = task.rows("train", args.rows, args.seed)
        with self.autocast():
            self.rollout: Rollout = self._generate(self._encode(rows, range(args.rows)))

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which the run makes its passes."""
        return autocast(self.config.device, self.config.bf16)

    def _encode(self, rows: Sequence[Row], uids: Sequence[int]) -> PromptBatch:
        template = self.config.chat_template_kwargs
        return encode_prompts(rows, self.tokenizer, uids=uids, chat_template_kwargs=template)

    def _generate(self, prompts: PromptBatch) -> Rollout:
        """Return completions under the run's static priors.

        The vocabulary is left out: rollouts and estimates are both of the law without it.
        """
        config, length = self.config, self.config.max_completion_length
        fixed = [p for p in static_priors(config, self.task, self.tokenizer) if not isinstance(p, Vocabulary)]
        return generate(
            self.setting.model,
            prompts,
            make_unmasking(config),
            completion_length=length,
            sampling=sampling_law(config),
            prior=compose_priors(fixed, prompts, length),
            seed=self.setting.seed,
            slots=config.stp_slots,
            batching=Batching(config.stp_max_tokens or 0, entropies=config.stp_states == "entropy"),
        )

    def batches(self, count: int) -> list[Rollout]:
        """Return batches of the run's size with advantages, each of prompts of its own."""
        config, length = self.config, self.config.max_completion_length
        groups, rewards = config.groups, Rewards.of(list(self.task.reward_funcs), config)
        rows = self.task.rows("train", groups * count, self.setting.seed + 1) if count else []
        made = []
        for number in range(count):
            uids = range(number * groups, (number + 1) * groups)
            own = self._encode([rows[i] for i in uids], uids)
            rollout = self._generate(own.repeat(config.num_generations, step=number))
            texts = decode_completions(rollout.token_ids, np.full(len(rollout), length), self.tokenizer)
            ids = completion_token_ids(rollout.token_ids, np.full(len(rollout), length), self.tokenizer)
            scores = rewards.score(texts, rollout.prompts.rows, ids)
            given = scores.total, scores.by_name, rewards.weights, rollout.group
            advantage, _ = configured_advantages(config, *given)
            made.append(rollout.replaced(advantage=advantage))
        return made

    def estimator(self, design: str) -> Estimator:
        """Return a design with two passes."""
        return Estimator(Design(design, 2), self.setting.seed, temperature=self.setting.temperature)

    def variance(self, design: str, pruning: str) -> Floats:
        """Return the variance of a two-pass estimate of every row."""
        rows = as_pruned(self.rollout, pruning, self.setting.diffusion_steps)
        return sampled_variance(self.setting.model, rows, self.estimator(design), PICTURE_DRAWS)


def aligned(setting: Setting, design: Design, pruning: str, batches: Sequence[Rollout], target: Tensor) -> Alignment:
    """Return a design's alignment on batches scored under a pruning."""
    read = [as_pruned(batch, pruning, setting.diffusion_steps) for batch in batches]
    draws = max(2, setting.draws // 2)
    return align(setting.model, batches, target, setting.estimator(design), draws=draws, read=read)


def chosen_designs(names: str, *, compared: bool = True) -> list[str]:
    """Return the designs to measure; where they are `compared`, `uniform_count` and `cover` are always among them.

    Raises:
        ConfigError: an unknown name.
    """
    known = [name for name, _ in Design.names()]
    asked = {name.strip() for name in names.split(",") if name.strip()} or set(known)
    if not asked <= set(known):
        raise ConfigError(f"--designs: got {', '.join(sorted(asked - set(known)))}, needs some of {', '.join(known)}")
    return [name for name in known if name in asked | ({"uniform_count", "cover"} if compared else set())]


def chosen_passes(passes: str, *, compared: bool = True) -> list[int]:
    """Return the numbers of passes to measure; where they are `compared`, 2 is always among them.

    Raises:
        ConfigError: not numbers.
    """
    try:
        asked = {*([2] if compared else []), *(int(number) for number in passes.split(",") if number.strip())}
        if min(asked) < 1 or max(asked) > 1 << 16:
            raise ValueError
        return sorted(asked)
    except ValueError as error:
        raise ConfigError(
            f"--passes: got {passes!r}, needs numbers from 1 to 65536 joined by commas, such as 2,4"
        ) from error


def variance_over_training(args: argparse.Namespace) -> list[tuple[int, Floats, Floats]]:
    """Return (step, variance unpruned, variance pruned) of the warm-up and every checkpoint, on their own rollouts."""
    run_folder = policy_folder(args.model).parent
    paths = [*run_folder.glob("warmup/checkpoint-*"), *run_folder.glob("checkpoint-*")]
    found = []
    for step, path in sorted((int(path.name.split("-")[1]), path) for path in paths):
        source = Source(args, path)
        found.append((step, source.variance("uniform_count", "none"), source.variance("cover", "both")))
    return found


def exact_lines(setting: Setting, unmerged: PrunedBatch, merged: PrunedBatch) -> list[str]:
    """Return ratios of gradient traces from all masks' gradients; of rows with at most 8 free tokens."""
    rows = [row for row, plan in enumerate(merged.plans) if plan and plan[0] <= gram.MAX_TOKENS][:EXACT_ROWS]
    shown = [f"The same through every mask's gradient, {len(rows)} rows of at most {gram.MAX_TOKENS} free tokens:"]
    if not rows:
        return []
    grams = [gram.mask_gram(setting.model, merged.rows, row, temperature=setting.temperature) for row in rows]

    @cache
    def traces(name: str, num_mc: int, pruning: str) -> Floats:
        design, plans = Design(name, num_mc), (merged if pruning == "both" else unmerged).plans
        return np.array([gram.gram_trace(g, design, plans[row]) for g, row in zip(grams, rows, strict=True)])

    for top, base in EXACT:
        middle, low, high = ratio(traces(*top), traces(*base))
        shown.append(f"  {_name(top)} / {_name(base)}: {middle:.3f} [{low:.3f}, {high:.3f}]")
    return shown


def table_lines(lines: Sequence[VarianceRow]) -> list[str]:
    """Return the table as text."""
    head = f"{'design':<15}{'K':>3} {'pruning':<9}{'forwards':>8}{'tokens':>7}{'bias (95 %)':>27}{'variance':>10}"
    shown = [f"{head}{'sd/token':>9}{'coverage':>9}{'grad trace':>11}{'SNR':>7}"]
    for line in lines:
        bias = f"{line.bias:8.3f} [{line.bias_ci[0]:7.3f}, {line.bias_ci[1]:7.3f}]"
        coverage = "inf" if line.coverage_variance is None else f"{line.coverage_variance:.3f}"
        snr = "-" if line.gradient_snr is None else f"{line.gradient_snr:.2f}"
        shown.append(
            f"{line.design:<15}{line.passes:>3} {line.pruning:<9}{line.forwards:>8.1f}{line.tokens:>7.1f}{bias:>27}"
            f"{line.variance:>10.3f}{line.per_token_sd:>9.4f}{coverage:>9}{line.gradient_trace:>11.1f}{snr:>7}"
        )
    return shown


def alignment_lines(lines: Sequence[VarianceRow | AlignmentRow]) -> list[str]:
    """Return where the designs' gradients point, best first; nothing where it was not measured."""
    measured = [line for line in lines if line.batch_forwards is not None]
    if not measured:
        return []
    shown = [
        "Alignment of one batch's gradient with the trajectories' mean gradient = bias cosine x root of the signal's "
        "share; the rest of the gradient's mean square is noise of the masks and of the rollouts:",
        f"{'design':<15}{'K':>3} {'pruning':<9}{'forwards':>9}{'alignment (95 %)':>26}{'bias cosine':>13}{'masks':>8}"
        f"{'rollouts':>10}",
    ]
    for line in sorted(measured, key=lambda line: -(line.alignment or 0.0)):
        cosine = f"{'-':>10}" if line.alignment is None else f"{line.alignment:>10.3f}"
        around = "" if line.alignment_ci is None else " [{:6.3f}, {:6.3f}]".format(*line.alignment_ci)
        bias = "-" if line.bias_cosine is None else f"{line.bias_cosine:.2f}"
        shown.append(
            f"{line.design:<15}{line.passes:>3} {line.pruning:<9}{line.batch_forwards:>9.2f}"
            f"{cosine}{around:>17}{bias:>13}{line.mask_noise:>8.2f}"
            f"{line.rollout_noise:>10.2f}"
        )
    return shown


def bias_lines(parts: Mapping[Part, BiasPart]) -> list[str]:
    """Return how much of the bias of scoring visited states is weights and how much earliness; nothing without any."""
    if not parts:
        return []
    shown = [
        "Every masked token at every visited state = trajectory + weights + earliness (docs/designs.md); mean "
        "gradients over the trajectories' own norm, and cosine with it ('divided': without the weights part):"
    ]
    for name, part in parts.items():
        size, cosine = ("-" if value is None else f"{value:.2f}" for value in (part.size, part.cosine))
        shown.append(f"  {name:<11} size {size:>5}   cosine {cosine:>5}")
    return [*shown, ""]


def comparison_lines(measured: Sequence[Measurement]) -> list[str]:
    """Return the ratios of gradient traces in `COMPARED`, with intervals."""
    by_key = {one.key: one for one in measured}
    shown = ["Gradient trace, ratio of (design, K, pruning) to (design, K, pruning), 95 % over rows:"]
    for top, base in COMPARED:
        if top in by_key and base in by_key:
            middle, low, high = ratio(by_key[top].trace_R, by_key[base].trace_R)
            shown.append(f"  {_name(top)} / {_name(base)}: {middle:.2f} [{low:.2f}, {high:.2f}]")
    return shown


def reduction_lines(batches: Sequence[PrunedBatch]) -> list[str]:
    """Return which part of the drop in variance is fewer tokens and which is less variance per token.

    From a(l) and v(l) of every row by the law of total variance, not from draws.
    """
    parts = {
        batch.pruning: np.array(
            [
                (levels.n, *independent_variance(levels, plan, 2)) if plan else (0.0, 0.0, 0.0)
                for levels, plan in zip(batch.levels, batch.plans, strict=True)
            ]
        ).T
        for batch in batches
    }
    base_tokens_R, *base = parts["none"]
    shown = [
        "Variance of uniform_count, K = 2 (of the counts + of the masks), relative to no pruning = (scored tokens) x "
        "(variance per token):"
    ]
    for pruning, (tokens_R, *both) in parts.items():
        middle, low, high = ratio(both[0] + both[1], base[0] + base[1])
        tokens = float(tokens_R.sum() / base_tokens_R.sum())
        shown.append(
            f"  {pruning:<9}{both[0].mean():7.3f} +{both[1].mean():7.3f}   {middle:.3f} [{low:.3f}, {high:.3f}] "
            f"= {tokens:.2f} x {middle / tokens:.3f}"
        )
    return shown


def check_lines(checks: Checks) -> list[str]:
    """Return what the enumeration of masks says about the variance statements' hypotheses."""
    n = checks.rows
    return [
        f"Hypotheses, exact, {n} rows of 2 to {MAX_TOKENS} free tokens: a(l) never rises in {checks.a_falls}, never "
        f"falls in {checks.a_rises}; v(l) never rises in {checks.v_falls}",
        f"  temporal: hypotheses hold in {checks.temporal_holds} of {n}, variance fell in {checks.temporal_fell}",
        f"  spatial (half of the free tokens fixed): hypotheses hold in {checks.spatial_holds} of {n}, variance fell "
        f"in {checks.spatial_fell}",
    ]


def _name(key: tuple[str, int, str]) -> str:
    return f"{key[0]} K={key[1]} {key[2]}"
