"""`stp-rs estimate`: what a run will compute, need and take, before anything is trained."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stp_rs.errors import ConfigError
from stp_rs.text import show, table

if TYPE_CHECKING:
    from stp_rs.config import TaskConfig
    from stp_rs.eval.forecast import Forecast
    from stp_rs.eval.prices import Network, Rates

_SHAPED = 200


def add_parser(commands: Any, argv: Sequence[str]) -> None:
    """Add the command to the parser of `stp-rs`; the options of a run are added where `argv` is about it."""
    parser = commands.add_parser(
        "estimate",
        help="count what a run will compute, and its memory and seconds, before anything is trained",
        allow_abbrev=False,
        description="Options are those of `train`. The policy is opened and a forward of it is timed here; with "
        "--shape no model is needed, and the time comes from --bench, --card or --tflops.",
    )
    parser.add_argument("--config", default="", help="YAML file of options")
    parser.add_argument(
        "--shape",
        default="",
        help="a network by name (llada-8b, 1b, bert-base, tiny) or sizes: hidden=4096,layers=32,...",
    )
    parser.add_argument(
        "--bench", default="", help="file of `python -m benches.gpu` that holds what the shape measured"
    )
    parser.add_argument("--card", default="", help="a card whose throughput was measured: h100")
    parser.add_argument("--tflops", type=float, default=0.0, help="throughput of a forward, in TFLOP/s")
    parser.add_argument("--prompt_length", type=int, default=_SHAPED, help="tokens of a prompt, with --shape")
    parser.add_argument("--num_processes", type=int, default=1, help="processes that share each rollout batch")
    parser.add_argument("--sharded", action="store_true", help="weights, gradients and moments are sharded (FSDP)")
    parser.add_argument("--json", default="", help="write everything here")
    parser.set_defaults(run=run)
    if "estimate" in argv[:1]:
        from stp_rs.cli.flags import add_option_flags

        add_option_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Print counts, seconds and memory; return the exit code."""
    from stp_rs.cli.flags import given_options
    from stp_rs.config import TaskConfig
    from stp_rs.config.yaml import read_yaml
    from stp_rs.eval.prices import calibrate, memory, network_of, peak, seconds

    if args.num_processes < 1 or args.prompt_length < 1:
        raise ConfigError("num_processes and prompt_length: need at least 1")
    if not 0.0 <= args.tflops < float("inf"):
        raise ConfigError(f"tflops: got {args.tflops:g}, needs a number above 0")
    for name in ("bench", "card", "tflops"):
        if getattr(args, name) and not args.shape:
            raise ConfigError(
                f"{name}: got {getattr(args, name)} without shape: a policy that is opened is timed here; needs --shape"
            )
    flags = given_options(args)
    if args.shape and not {"bf16"} & (flags.keys() | (read_yaml(args.config) if args.config else {}).keys()):
        flags["bf16"] = True
    config = TaskConfig.from_yaml(args.config, **flags) if args.config else TaskConfig(**flags)
    if args.shape:
        found, network, rates, config = _of_shape(args, config)
        cuda = True
    else:
        found, policy, config = _of_policy(args, config)
        network, rates = network_of(policy), calibrate(policy, found, config)
        cuda = config.device.type == "cuda"
    spent = None if rates is None else seconds(found, rates, host=not args.shape)
    parts = memory(network, found, config, sharded=args.sharded or bool(config.fsdp), cuda=cuda)
    _print(found, spent, parts, rates, config)
    if args.json:
        whole = {
            "counts": found.counts(),
            "calls": [asdict(call) for call in found.calls],
            "completions": found.completions,
            "updates": found.updates,
            "rollouts": found.rollouts,
            "processes": found.processes,
            "seconds": spent,
            "memory": parts,
            "peak_bytes": peak(parts),
            "rates": None if rates is None else asdict(rates),
            "notes": list(found.notes),
        }
        Path(args.json).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return 0


def print_cost(config: "TaskConfig") -> None:
    """Print what a configuration will compute, need and take; its policy is opened, a forward of it timed."""
    from stp_rs.eval.prices import calibrate, memory, network_of, seconds

    found, policy, config = _of_policy(argparse.Namespace(num_processes=1), config)
    rates = calibrate(policy, found, config)
    cuda = config.device.type == "cuda"
    parts = memory(network_of(policy), found, config, sharded=False, cuda=cuda)
    _print(found, seconds(found, rates), parts, rates, config)


def _of_policy(args: argparse.Namespace, config: "TaskConfig") -> "tuple[Forecast, Any, TaskConfig]":
    """Return the forecast of a configuration whose policy is opened here."""
    import tempfile

    from stp_rs.cli.run import complete, make_task, prepare_policy, set_threads
    from stp_rs.eval.forecast import forecast
    from stp_rs.train.trainer import open_policy

    set_threads(config)
    task = make_task(config)
    config = complete(config, task)
    with tempfile.TemporaryDirectory() as folder:
        untrained = replace(config, sft_steps=0, output_dir=folder)
        policy, tokenizer = prepare_policy(untrained, task, Path(folder))
    policy, _ = open_policy(policy, tokenizer, None, config, check=False)
    rows = task.rows("train", config.train_size, config.seed)
    found = forecast(config, rows, tokenizer, task=task, policy=policy, processes=args.num_processes)
    return found, policy, config


def _of_shape(args: argparse.Namespace, config: "TaskConfig") -> "tuple[Forecast, Network, Rates | None, TaskConfig]":
    """Return the forecast of a configuration for a network of which only the shape is known."""
    from stp_rs.eval.forecast import forecast
    from stp_rs.eval.prices import TFLOPS, network_named, rates_of_bench, rates_of_card

    network = network_named(args.shape)
    if config.use_peft:
        network = replace(network, rank=config.lora_r)
    if config.max_completion_length is None:
        raise ConfigError("max_completion_length: got none, needs a number with --shape")
    if args.card and args.card not in TFLOPS:
        raise ConfigError(
            f"card: got {args.card!r}, needs one that was measured ({', '.join(TFLOPS)}); give --tflops for others"
        )
    rows = [{"prompt": f"{i}"} for i in range(max(1, min(config.train_size, 4 * config.groups)))]
    stand_in = _Numbers(args.prompt_length, network.vocab)
    found = forecast(config, rows, stand_in, processes=args.num_processes)
    tflops = args.tflops or TFLOPS.get(args.card, 0.0)
    rates = None
    if args.bench:
        rates = rates_of_bench(Path(args.bench), args.shape)
    elif tflops:
        width = args.prompt_length + config.max_completion_length
        rates = rates_of_card(network, tflops=tflops, width=width, recomputed=bool(config.gradient_checkpointing))
    return found, network, rates, config


class _Numbers:
    """A tokenizer of a shape: every prompt has so many tokens."""

    mask_token_id, pad_token_id, eos_token_id, mask_token = 2, 0, 1, "[MASK]"

    def __init__(self, length: int, vocab: int) -> None:
        self._length, self._vocab = length, vocab

    def __len__(self) -> int:
        """Return the tokens of the vocabulary."""
        return self._vocab

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """Return tokens that differ between texts."""
        return {"input_ids": [3 + (int(text) + i) % max(1, min(self._vocab, 60) - 4) for i in range(self._length)]}

    def decode(self, ids: Any, **_: Any) -> str:
        """Return a text of ids."""
        return " ".join(map(str, ids))

    def batch_decode(self, rows: Any, **_: Any) -> list[str]:
        """Return texts of rows."""
        return [self.decode(row) for row in rows]

    def save_pretrained(self, folder: Any) -> None:
        """Write nothing."""


def _print(
    found: "Forecast", spent: dict[str, float] | None, parts: dict[str, float], rates: "Rates | None", config: Any
) -> None:
    from stp_rs.eval.prices import peak

    show(
        f"one rollout batch: {found.completions} completions of {config.max_completion_length} tokens, "
        f"{found.updates} optimiser updates; {found.rollouts or '?'} batches in the run"
    )
    without = {
        "prior": found.cost["prior"],
        "rollout": found.cost["rollout"],
        "update, without gradient": _minus(found.cost["likelihood"], found.cost["backward"]),
        "update, with gradient": found.cost["backward"],
    }
    names = dict(zip(without, ("prior", "rollout", "scoring", "gradient"), strict=True))
    lines = []
    for name, cost in without.items():
        calls = sum(call.phase == names[name] for call in found.calls)
        took = "-" if spent is None else f"{spent[names[name]]:.3g}"
        lines.append((name, f"{cost.forwards:,}", f"{cost.tokens:,}", f"{cost.head_rows:,}", f"{calls:,}", took))
    show(table(("", "canvases", "tokens", "head rows", "calls", "seconds"), lines))
    if found.processes > 1:
        idle = f"; {found.idle} have no group" if found.idle else ""
        show(
            f"{found.processes} processes share a batch; canvases, tokens and head rows are of all, calls and seconds "
            f"of the one that has most to do{idle}; what they send each other is not in the seconds"
        )
    if spent is not None and rates is not None:
        step = sum(seconds for phase, seconds in spent.items() if phase != "prior")
        host = f", {spent['host']:.3g} of them the host's" if "host" in spent else ""
        show(f"seconds of a batch: {step:.3g}{host}; from {rates.source}")
        if found.rollouts:
            show(f"the run: {duration(step * found.rollouts)}, without evaluations and warm-up")
    else:
        show("seconds: no throughput was given; --bench FILE, --card h100 or --tflops N")
    show()
    show(table(("memory of a process", ""), [(name, size_of(size)) for name, size in parts.items()]))
    show(f"at the peak: {size_of(peak(parts))} (activations, head and rollout as a transformer of this size keeps)")
    show()
    for note in found.notes:
        show(f"- {note}")


def duration(seconds: float) -> str:
    """Return seconds in the unit that leaves a number between 1 and 100 where there is one."""
    for unit, size in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"


def size_of(count: float) -> str:
    """Return bytes in the unit that leaves a number between 1 and 1024 where there is one."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def _minus(one: Any, other: Any) -> Any:
    return type(one)(one.forwards - other.forwards, one.tokens - other.tokens, one.head_rows - other.head_rows)
