"""The command line: stp-rs train | estimate | sample | eval | report | inspect | watch | variance | grade | env."""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stp_rs._core import __version__
from stp_rs.cli.terminal import Parser, at_least, guarded, not_negative
from stp_rs.progress import Bar
from stp_rs.text import show, table


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code. Errors of ours are one line on stderr, without a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(build_parser(arguments), arguments)


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Run the command that a parser chose; return the exit code: 2 after an error of ours, 130 after Ctrl-C."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # the bars of small models would stand among ours: transformers reads this when it is imported, if it is not yet
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if sys.modules.get("transformers"):
        quiet: Any = importlib.import_module("transformers.utils.logging").disable_progress_bar
        quiet()

    def run() -> int:
        args = parser.parse_args(argv)
        args.argv = list(sys.argv[1:] if argv is None else argv)
        return int(args.run(args))

    return guarded(run)


def build_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser of all commands; the options of a run are added where `argv` is about a command with them.

    Nothing here imports torch or transformers, which take seconds.
    """
    from stp_rs.cli import estimate, grade, inspect, probe, report, variance, watch

    parser: argparse.ArgumentParser = Parser(prog="stp-rs", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_train(commands, argv)
    sample = commands.add_parser("sample", help="decode a few problems of the task and show them")
    sample.add_argument("model", help="run folder or checkpoint")
    sample.add_argument("-n", type=at_least(1), default=8, help="problems")
    sample.add_argument("--temperature", type=not_negative, default=0.0, help="0 is greedy")
    sample.add_argument("--prior", action="store_true", help="fix template and copied tokens first")
    sample.add_argument("--seed", type=at_least(0), default=0)
    sample.set_defaults(run=_sample)
    evaluation = commands.add_parser("eval", help="greedy free and prior decode of held-out problems")
    evaluation.add_argument("model", help="run folder or checkpoint")
    evaluation.add_argument(
        "--data", default="", help="a file in the task's published format instead of the test split"
    )
    evaluation.add_argument("-n", type=at_least(1), default=256, help="problems")
    evaluation.add_argument("--lengths", type=_numbers, help="completion lengths, e.g. 128,256,512; default the run's")
    evaluation.add_argument(
        "--steps",
        type=_numbers,
        help="denoising steps, several for a curve; default the run's at its length, length / 2 at others",
    )
    evaluation.add_argument(
        "--block_length", type=at_least(1), default=None, help="tokens per block; the literature: 32"
    )
    evaluation.add_argument("--temperature", type=not_negative, default=0.0, help="0 is greedy")
    evaluation.add_argument("--samples", type=at_least(1), default=1, help="completions per problem, for pass@k")
    evaluation.add_argument("--few_shot", type=at_least(0), default=0, help="demonstrations before each prompt")
    evaluation.add_argument("--prefill", default="", help="text that every completion starts with")
    evaluation.add_argument("--json", default="", help="write the cells here; a second call continues the file")
    evaluation.set_defaults(run=_eval)
    for command in (report, inspect, watch):
        command.add_parser(commands)
    for command in (probe, estimate):
        command.add_parser(commands, argv)
    for command in (variance, grade):
        command.add_parser(commands)
    env = commands.add_parser("env", help="versions and devices, for a bug report")
    env.set_defaults(run=_env)
    return parser


def _add_train(commands: Any, argv: Sequence[str]) -> None:
    train = commands.add_parser(
        "train",
        help="train a policy on a task",
        allow_abbrev=False,
        description="Every option is also a line of the YAML file given with --config; flags win.",
    )
    train.add_argument("--config", default="", help="YAML file of options")
    train.add_argument("--dry_run", action="store_true", help="one batch at the configured sizes; writes nothing")
    train.add_argument("--quiet", action="store_true", help="no bar and no tables, only the summary")
    train.set_defaults(run=_train)
    if "train" in argv[:1]:
        from stp_rs.cli.flags import add_option_flags

        add_option_flags(train, preset=asked_preset(argv))


def asked_preset(argv: Sequence[str]) -> str:
    """Return the preset that a command line asks for, empty where it does not: its defaults are those of --help."""
    for i, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name == "--preset":
            return value if equals else "".join(argv[i + 1 : i + 2])
    return ""


def _train(args: argparse.Namespace) -> int:
    from stp_rs.cli.flags import given_options
    from stp_rs.cli.run import run_training
    from stp_rs.config import TaskConfig
    from stp_rs.distributed import is_main, stop
    from stp_rs.train.console import Console

    flags = given_options(args)
    config = TaskConfig.from_yaml(args.config, **flags) if args.config else TaskConfig(**flags)
    main_process = is_main()
    if args.dry_run:
        from stp_rs.cli.probe import dry_run

        return dry_run(config)
    console = Console(quiet=args.quiet or not main_process, closes=False)
    done = run_training(config, [console], lambda step, loss: console.on_sft(step, loss, config.sft_steps))
    if main_process:
        console.finish(done, str(config.output_dir))
    stop()
    return 0


def _sample(args: argparse.Namespace) -> int:
    import numpy as np

    from stp_rs.cli.run import evaluation_priors, load_run
    from stp_rs.data.prompts import encode_prompts
    from stp_rs.models.base import autocast
    from stp_rs.priors import allowed_tokens, compose_priors
    from stp_rs.rollout.generate import generate
    from stp_rs.rollout.loop import Batching
    from stp_rs.rollout.params import make_unmasking, sampling_law
    from stp_rs.rollout.rewards import Rewards, completion_token_ids, decode_completions

    model, tokenizer, config, task = load_run(args.model)
    rows = task.rows("test", args.n, args.seed)
    template = config.chat_template_kwargs
    prompts = encode_prompts(rows, tokenizer, uids=range(len(rows)), chat_template_kwargs=template)
    length = config.max_completion_length
    priors = evaluation_priors(config, task, tokenizer, model) if args.prior else []
    with autocast(config.device, config.bf16):
        rollout = generate(
            model,
            prompts,
            make_unmasking(config, prune=False),
            completion_length=length,
            sampling=replace(
                sampling_law(config), temperature=args.temperature, allowed=allowed_tokens(priors, prompts, length)
            ),
            prior=compose_priors(priors, prompts, length),
            seed=args.seed,
            slots=config.stp_slots,
            batching=Batching(config.stp_max_tokens or 0),
        )
    texts = decode_completions(rollout.token_ids, np.full(len(rows), length), tokenizer)
    ids = completion_token_ids(rollout.token_ids, np.full(len(rows), length), tokenizer)
    rewards = Rewards.of(list(task.reward_funcs), config).score(texts, rows, ids).total
    cells = [(str(row["prompt"]), text, f"{r:.3f}") for row, text, r in zip(rows, texts, rewards, strict=True)]
    show(table(("prompt", "completion", "reward"), cells))
    return 0


def _eval(args: argparse.Namespace) -> int:
    from stp_rs.cli.run import TEST_SEED, evaluation_priors, layout_length, load_run
    from stp_rs.eval.evaluate import Decode, default_decode, evaluate_cells
    from stp_rs.priors import Prior

    model, tokenizer, config, task = load_run(args.model)
    rows = task.load(Path(args.data))[: args.n] if args.data else task.rows("test", args.n, TEST_SEED)
    own = default_decode(config)
    lengths, steps = args.lengths or [own.length], args.steps or [0]
    cells: list[tuple[str, list[Prior], Decode]] = []
    for length in lengths:
        for count in steps:
            decode = Decode(
                length,
                count or (own.steps if length == own.length else max(1, length // 2)),
                own.block_length if args.block_length is None else args.block_length,
                temperature=args.temperature,
                samples=args.samples,
                few_shot=args.few_shot,
                prefill=args.prefill,
            )
            cells.append(("free", [], decode))
            if config.model_name_or_path or length >= layout_length(
                task
            ):  # a canvas that the layout does not fit has no priors
                cells.append(("prior", evaluation_priors(config, task, tokenizer, model), decode))
    how = "greedy" if args.temperature == 0 else f"temperature {args.temperature:g}"
    show(f"{len(rows)} problems of {args.data or f'{task.name} test'}, {how}")
    path = Path(args.json) if args.json else None
    hidden = {"priors", "block_length", "temperature", "samples", "few_shot", "prefill", "seed", "n"}
    bar = Bar(len(cells), "eval", "decodes")
    for i, cell in enumerate(bar.over(evaluate_cells(model, tokenizer, task, rows, config, cells, path))):
        shown = {name: value for name, value in cell.items() if name not in hidden}
        if i == 0:
            bar.result("".join(f"{name:>{_column(name)}}" for name in shown))
        bar.result("".join(f"{_shown(value):>{_column(name)}}" for name, value in shown.items()))
    return 0


def _column(name: str) -> int:
    return 18 if name.endswith("_ci") else max(9, len(name) + 2)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(f"{x:.3f}" for x in value) + "]"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, needs positive integers joined by commas")
    return numbers


def _env(_args: argparse.Namespace) -> int:
    from stp_rs.train.environment import environment

    show(json.dumps(environment(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
