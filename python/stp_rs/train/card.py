"""The model card of a run: README.md with data, method, metrics and citation, as the hub reads it."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stp_rs._core import __version__
from stp_rs.text import inert
from stp_rs.train.checkpoint import atomic_file

if TYPE_CHECKING:
    from stp_rs.train.trainer import STPTrainer

CARD = "README.md"
SOURCES: Mapping[str, str] = {
    **{"egspo": "2603.12554", "egspo_sa": "2603.12554", "gdsd": "2605.29398", "d2_stepmerge": "2509.21474"},
    **{"rldf": "2605.25638", "grpo": "2402.03300", "diffu_grpo": "2504.12216", "unigrpo": "2505.15809"},
    **{"espo": "2512.03759", "coupled_grpo": "2506.20639", "spg": "2510.09541", "wd1": "2507.08838"},
    **{"cj_grpo": "2509.23924", "trace": "2509.06949", "stable_drl": "2603.06743", "bgpo": "2510.11683"},
    **{"gdpo": "2510.08554", "igpo": "2509.10396"},
}
"""The paper of a preset on arXiv (docs/presets.md); that of pruning, below, is cited in any case."""
PRUNING = "2602.08905"
_METRICS = (
    ("reward", "mean reward of a training batch", ".3f"),
    ("eval_reward", "mean reward of the evaluation set", ".3f"),
    ("eval_solved", "solved of the validation set, greedy", ".3f"),
    ("kl", "KL to the reference, nats", ".3g"),
    ("diffusion/nfe", "forwards per completion", ".1f"),
)
_METHOD: tuple[str, ...] = (
    "preset",
    "pruning",
    "stp_design",
    "num_mc",
    "stp_spatial",
    "stp_temporal",
    "num_generations",
    "beta",
)
_METHOD += ("learning_rate", "max_completion_length", "seed")


def model_card(trainer: "STPTrainer", summary: Mapping[str, Any] | None = None, name: str | None = None) -> str:
    """Return the card of a trainer's policy as it is; `summary` has a task's scores before and after."""
    args, state = trainer.args, trainer.state
    config = getattr(trainer.model, "config", None)
    base = getattr(args, "model_name_or_path", None) or getattr(config, "_name_or_path", "") or ""
    base = "" if Path(base).exists() else inert(base)  # a folder of this machine says nothing to others
    name = inert(name or args.hub_model_id or Path(str(args.output_dir)).name)
    library = "transformers" if config is not None else "stp_rs"
    library = "peft" if hasattr(trainer.model, "peft_config") else library
    head = ["---", f"library_name: {library}", *([f"base_model: {json.dumps(base)}"] if base else [])]
    tags = ("stp_rs", "masked-diffusion", "reinforcement-learning", args.preset)
    head += ["tags:", *(f"- {tag}" for tag in tags), "---"]
    on = f", {base}," if base else ""
    ledger = trainer.ledger
    parts = [
        [*head, f"# {name}", ""],
        [f"A masked-diffusion language model{on} trained by reinforcement learning with stp_rs."],
        ["", "## Data", "", _data(trainer)],
        ["", "## Method", "", _method(trainer), "", *_table(("option", "value"), _options(trainer))],
        ["", "## Metrics", "", *_table(("metric", "first", "last"), _metrics(state.log_history, summary))],
        [
            "",
            f"After {state.global_step:,} optimiser updates on {ledger.completions:,} completions: "
            f"{ledger.forwards['rollout']:,} forwards in rollouts, {ledger.forwards['likelihood']:,} in likelihoods.",
        ],
        ["", "## Use", "", "```python", "import stp_rs", "", f'model, tokenizer = stp_rs.load("{name}")', "```"],
        ["", "## Citation", "", "```bibtex", *_citations(args.preset), "```", ""],
    ]
    return "\n".join(line for part in parts for line in part)


def write_card(folder: Path, text: str) -> Path:
    """Write README.md of a folder; return its path."""
    with atomic_file(folder / CARD) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / CARD


def _data(trainer: "STPTrainer") -> str:
    rewards = ", ".join(f"`{inert(name)}`" for name in trainer.rewards.names)
    size = trainer.rows.size
    rows = "A stream of prompts" if size is None else f"{size:,} prompts"
    task = f" of the task `{inert(trainer.task.name)}`" if trainer.task is not None else ""
    return f"{rows}{task}, {trainer.args.num_generations} completions each, scored by {rewards}."


def _method(trainer: "STPTrainer") -> str:
    args = trainer.args
    paper = SOURCES.get(args.preset)
    source = f" ([arXiv {paper}](https://arxiv.org/abs/{paper}))" if paper else ""
    pruning = (
        "without pruning"
        if args.pruning == "none"
        else (f"with spatio-temporal pruning `{args.pruning}` ([arXiv {PRUNING}](https://arxiv.org/abs/{PRUNING}))")
    )
    return f"Preset `{args.preset}`{source}, {pruning}."


def _options(trainer: "STPTrainer") -> list[tuple[str, ...]]:
    flat = trainer.args.to_flat()
    default = type(trainer.args)(preset=trainer.args.preset).to_flat()
    named = [name for name in _METHOD if name in flat]
    hidden = {"output_dir", "hub_token", "hub_model_id", "run_name", "model_name_or_path", "data", *named}
    changed = [name for name in flat if name not in hidden and flat[name] != default.get(name)]
    return [(f"`{name}`", f"`{_cell(flat[name])}`") for name in (*named, *changed)]


def _metrics(log: Sequence[Mapping[str, Any]], summary: Mapping[str, Any] | None) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    if summary:
        ends = [f"{summary[f'solved_{when}']:.3f}" for when in ("before", "after")]
        found.append((f"solved of {summary['eval_size']} held-out problems, greedy", *ends))
    for name, text, form in _METRICS:
        values = [line[name] for line in log if isinstance(line.get(name), float) and math.isfinite(line[name])]
        if values:
            found.append((text, format(values[0], form), format(values[-1], form)))
    return found or [("nothing was logged", "", "")]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _cell(value: Any) -> str:
    return inert(str(value)).replace("|", "\\|").replace("`", "'")


def _citations(preset: str) -> list[str]:
    lines = []
    for paper in dict.fromkeys(p for p in (PRUNING, SOURCES.get(preset)) if p):
        lines += [f"@misc{{arxiv{paper.replace('.', '')},", f"  eprint = {{{paper}}}, archivePrefix = {{arXiv}},"]
        lines += [f"  year = {{20{paper[:2]}}}, url = {{https://arxiv.org/abs/{paper}}}", "}"]
    return [*lines, "@software{stp_rs,", f"  title = {{stp_rs}}, version = {{{__version__}}}", "}"]
