"""What a report says, as plain values: three answers, curves, kept rollouts, costs, options, environment."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stp_rs.config import STPConfig, TaskConfig
from stp_rs.config.yaml import read_yaml
from stp_rs.errors import CheckpointError, StpError
from stp_rs.rollout.params import make_unmasking
from stp_rs.text import inert
from stp_rs.train.kept import kept_files, read_scenes
from stp_rs.train.metrics import read_metrics

ENVIRONMENT = "environment.json"
"""In a run folder: versions and devices of what ran last."""
POINTS = 400
"""Most points of a curve; of a longer run each is the mean of several lines."""
KEPT = 8
"""Most kept rollouts in the page, spread over the run."""
KEPT_NOTE = (
    "Rollouts of training, as they were; beside each the same prompt and random numbers without pruning, by the policy "
    "after that step's updates."
)
CHARS = 4000
"""Longest text of a prompt or sample in the page."""
_FEW = 3
"""Least readings whose spread says how certain their mean is."""
_TAIL = 0.1
"""Share of the last lines whose mean is called the end of training."""


def collect(run: Path) -> dict[str, Any]:
    """Return what the report of a run folder says, JSON-ready.

    Raises:
        CheckpointError: the folder holds neither metrics nor a summary.
    """
    lines = read_metrics(run / "metrics.jsonl", measured=True)
    summary = _read_json(run / "summary.json")
    if not (lines or summary):
        raise CheckpointError(f"{run}: neither metrics.jsonl nor summary.json in it; give a run folder")
    config = _read_config(run)
    options = {**config.to_flat(), "max_steps": config.max_steps} if config else {}
    names = [inert(str(summary.get(key) or options.get(key) or "")) for key in ("task", "preset")]
    names[0] = names[0] or inert(run.resolve().name)
    steps = int(lines[-1]["step"]) if lines else int(summary.get("steps", 0))
    environment = summary.get("environment") or _read_json(run / ENVIRONMENT)
    return {
        "title": " / ".join(name for name in names if name),
        "about": f"seed {summary.get('seed', options.get('seed', '?'))}, step {steps:,}{_of(steps, options, summary)}",
        "answers": [learned(lines, summary), saved(lines, config), healthy(lines, options)],
        **curves(lines),
        "kept": _kept(run),
        "kept_note": KEPT_NOTE,
        "held_out": [{k: _cut(v) for k, v in s.items()} for s in summary.get("samples", [])],
        "ledger": ledger(lines),
        "options": _options(config),
        "environment": [[inert(str(k)), inert(str(v))] for k, v in environment.items()],
    }


def _of(steps: int, options: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Return how many updates a run was to have, and whether it has not had them; a task's run ends with a summary."""
    planned = int(options.get("max_steps", steps))
    if planned < 0:
        return ""  # a number of epochs
    ended = bool(summary) or ("task" not in options and steps >= planned)
    return f" of {planned:,}{'' if ended else ' (not finished)'}"


def learned(lines: Sequence[Mapping[str, float]], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to "Did it learn?": the held-out score where there is one, else the reward."""
    rewards = [line["reward"] for line in lines if "reward" in line]
    note = ""
    if rewards:
        first, last = _ends(rewards)
        note = f"Mean training reward {first:.3f} at the start, {last:.3f} at the end; the band is one sd over groups."
    before, after = summary.get("solved_before"), summary.get("solved_after")
    if before is None or after is None:
        return _learned_by_reward(lines, rewards, note)
    size = summary.get("eval_size", 0)
    low = summary.get("solved_before_ci") or wilson(before, size)
    high = summary.get("solved_after_ci") or wilson(after, size)
    word, state = ("Yes", "good") if high[0] > low[1] else ("Worse", "bad") if high[1] < low[0] else ("Unclear", "open")
    scores = [(line["eval_solved"], int(line["step"])) for line in lines if "eval_solved" in line]
    best = max(scores, default=None, key=lambda pair: pair[0])
    text = (
        f"Solved of {size} held-out problems, greedy; 95 % intervals {_percent(low[0])} to {_percent(low[1])} before "
        f"and {_percent(high[0])} to {_percent(high[1])} after."
    )
    answer = _answer("Did it learn?", word, f"{_percent(before)} → {_percent(after)}", f"{text} {note}", state)
    if best is None:
        return {**answer, "figure_note": "final; no validation, so no best"}
    return {**answer, "figure_note": f"final; best on validation {_percent(best[0])} at step {best[1]}"}


def _learned_by_reward(lines: Sequence[Mapping[str, float]], rewards: Sequence[float], note: str) -> dict[str, Any]:
    """Return the answer for a run without held-out problems: by its evaluations, else by the rewards of training."""
    for name, what in (
        ("eval_solved", "solved of the validation set"),
        ("eval_reward", "reward of the evaluation set"),
    ):
        scores = [(line[name], int(line["step"])) for line in lines if name in line]
        if len(scores) > 1:
            best = max(scores, key=lambda pair: pair[0])
            found = _answer("Did it learn?", *_change([scores[0][0]], [scores[-1][0]]), note, "open")
            return {**found, "figure_note": f"{what}, final; best {best[0]:.3f} at step {best[1]}"}
    if not rewards:
        return _answer("Did it learn?", "no data yet", "", "", "open")
    n = max(1, round(_TAIL * len(rewards)))
    word, figure = _change(rewards[:n], rewards[-n:])
    state = {"Reward rose": "good", "Reward fell": "bad"}.get(word, "open")
    found = _answer("Did it learn?", word, figure, note, state)
    smooth = [float(np.mean(rewards[i : i + n])) for i in range(len(rewards) - n + 1)]
    return {**found, "figure_note": f"training reward, final; best {max(smooth):.3f}. No held-out problems"}


def _change(before: Sequence[float], after: Sequence[float]) -> tuple[str, str]:
    """Return what became of a score, and both ends: a change counts where it is twice the error of the difference."""
    first, last = float(np.mean(before)), float(np.mean(after))
    figure = f"{first:.3f} → {last:.3f}"
    if min(len(before), len(after)) < _FEW:
        return "Reward so far", figure
    error = math.sqrt(np.var(before, ddof=1) / len(before) + np.var(after, ddof=1) / len(after))
    if abs(last - first) <= 2 * error:
        return "Unclear", figure
    return ("Reward rose" if last > first else "Reward fell"), figure


def saved(lines: Sequence[Mapping[str, float]], config: STPConfig | None) -> dict[str, Any]:
    """Return the answer to "What did pruning save?": forwards and seconds against the unpruned plan."""
    question = "What did pruning save?"
    nfes = [line["diffusion/nfe"] for line in lines if "diffusion/nfe" in line]
    if not nfes or config is None:
        return _answer(question, "no data yet", "", "", "open")
    last = lines[-1]
    plan = _plan_steps(config)
    made, completions = last.get("diffusion/forwards_rollout", 0.0), last.get("diffusion/completions", 0.0)
    nfe = float(np.mean(nfes))
    if plan is None:
        return _answer(question, "not known", f"{nfe:.1f} forwards", "Steps depend on the model's confidence.", "open")
    unpruned = made + completions * (plan - nfe)
    if made < 1:
        text = f"Priors fixed every token: no forward was made; the unpruned plan needs {unpruned:,.0f}."
        return _answer(question, "every forward", f"0 of {plan}", text, "good")
    if unpruned <= made * 1.001:
        text = f"{made:,.0f} forwards in rollouts, {nfe:.1f} per completion: what the unpruned plan needs."
        return _answer(question, "nothing is pruned", f"{nfe:.0f} of {plan}", text, "open")
    rollout = last.get("diffusion/seconds_rollout", 0.0)
    total = last.get("diffusion/seconds", 0.0)
    more = rollout * (unpruned / made - 1)
    text = (
        f"{made:,.0f} forwards in rollouts; the unpruned plan of the same {completions:,.0f} completions needs "
        f"{unpruned:,.0f}. At the measured time of a forward: {_time(more)} saved of {_time(total + more)} of training."
    )
    found = _answer(question, f"{unpruned / made:.1f} times fewer forwards", f"{nfe:.1f} of {plan}", text, "good")
    bars = [["pruned", made, f"{made:,.0f}"], ["unpruned, by plan", unpruned, f"{unpruned:,.0f}"]]
    return {**found, "figure_note": "forwards per completion", "bars": bars}


def healthy(lines: Sequence[Mapping[str, float]], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to "Is it healthy?": readings of the end of training, each marked fine or not."""

    def end(name: str) -> float | None:
        values = [line[name] for line in lines if name in line]
        return _ends(values)[1] if values else None

    group = int(options.get("num_generations", 0))
    rows = [
        _reading("KL to the reference", end("kl"), "{:.3g} nats", lambda v: v < 10, "no KL term"),
        _reading("Share of clipped ratios", end("clip_ratio/region_mean"), "{:.1%}", lambda v: v < 0.3),
        _reading(f"Distinct completions of {group}", end("diffusion/distinct"), "{:.1f}", lambda v: v > 1.2),
        _reading("Groups of equal rewards", end("frac_reward_zero_std"), "{:.0%}", lambda v: v < 0.9),
        _reading("Gradient signal to noise", end("diffusion/grad_snr"), "{:.2f}", lambda v: v > 0.05, "not measured"),
    ]
    scores = [line["eval_solved"] for line in lines if "eval_solved" in line]
    if len(scores) > 1:
        share = scores[-1] / max(*scores, 1e-9)
        rows.append(_reading("Last validation score, of the best", share, "{:.0%}", lambda v: v > 0.8))
    alarms = [name.removeprefix("alarm/") for line in lines for name in line if name.startswith("alarm/")]
    counted = ", ".join(f"{inert(name)} ({alarms.count(name)})" for name in dict.fromkeys(alarms))
    rows.insert(0, {"name": "Alarms", "value": counted or "none", "fine": not alarms})
    bad = [row["name"] for row in rows if row["fine"] is False]
    if not lines:
        return _answer("Is it healthy?", "no data yet", "", "", "open")
    word = "Nothing stands out" if not bad else f"Look at {len(bad)} reading{'s' if len(bad) > 1 else ''}"
    found = _answer("Is it healthy?", word, "", "Means over the last tenth of the log.", "bad" if bad else "good")
    return {**found, "readings": rows}


def curves(lines: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return steps and every logged metric over them; of a long run means of neighbouring lines."""
    each = max(1, math.ceil(len(lines) / POINTS))
    parts = [lines[i : i + each] for i in range(0, len(lines), each)]
    names = sorted({name for line in lines for name in line} - {"step"})
    series = {name: [_mean([line[name] for line in part if name in line]) for part in parts] for name in names}
    return {"each": each, "steps": [part[-1]["step"] for part in parts], "series": series}


def ledger(lines: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return what was computed, by phase, in several units."""
    if not lines:
        return []
    last, found = lines[-1], []
    kinds = (
        ("Seconds", "seconds", ("prior", "rollout", "reward", "scoring", "update", "variance", "eval")),
        ("Forwards", "forwards", ("prior", "rollout", "likelihood", "backward", "eval")),
        ("Tokens", "tokens", ("prior", "rollout", "likelihood", "backward", "eval")),
    )
    for title, unit, phases in kinds:
        values = {phase: last.get(f"diffusion/{unit}_{phase}", 0.0) for phase in phases}
        if unit == "seconds":
            values["update"] -= values["scoring"]  # a part of it
        else:
            values["likelihood"] -= values["backward"]  # those of them with a gradient
        parts = [
            [_PHASES.get((unit, phase), phase), value]
            for phase, value in values.items()
            if value > 5e-4 * sum(values.values())
        ]
        if parts:
            found.append({"title": title, "parts": parts})
    return found


_PHASES = {
    ("seconds", "scoring"): "update, without gradient",
    ("seconds", "update"): "update, with gradient",
    ("forwards", "likelihood"): "likelihood, without gradient",
    ("forwards", "backward"): "likelihood, with gradient",
    ("tokens", "likelihood"): "likelihood, without gradient",
    ("tokens", "backward"): "likelihood, with gradient",
}


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of n problems (Wilson's)."""
    if n < 1:
        return 0.0, 1.0
    z2 = 1.959964**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return middle - half, middle + half


def _answer(question: str, word: str, figure: str, text: str, state: str) -> dict[str, Any]:
    return {"question": question, "word": word, "figure": figure, "text": text.strip(), "state": state}


def _reading(name: str, value: float | None, form: str, fine: Any, missing: str = "not logged") -> dict[str, Any]:
    if value is None:
        return {"name": name, "value": missing, "fine": None}
    return {"name": name, "value": form.format(value).replace("%", " %"), "fine": bool(fine(value))}


def _plan_steps(config: STPConfig) -> int | None:
    """Return the forwards of a completion by the unpruned plan; None where the model decides."""
    length = config.max_completion_length
    plan = make_unmasking(config, prune=False).plan(np.ones(length, dtype=np.uint8)) if length else None
    return None if plan is None else len(plan)


def _options(config: STPConfig | None) -> dict[str, Any]:
    """Return [name, value, the preset's] of options that differ from the preset, and [name, value] of the rest."""
    if config is None:
        return {"changed": [], "rest": []}
    ours, theirs = config.to_flat(), type(config)(preset=config.preset).to_flat()
    shown = {name: inert(str(value)) for name, value in ours.items()}
    other = [name for name in ours if ours[name] != theirs.get(name)]
    changed = [[name, shown[name], inert(str(theirs.get(name)))] for name in other]
    return {"changed": changed, "rest": [[name, shown[name]] for name in ours if name not in other]}


def _kept(run: Path) -> list[dict[str, Any]]:
    files = kept_files(run)
    if len(files) > KEPT:
        files = [files[round(i * (len(files) - 1) / (KEPT - 1))] for i in range(KEPT)]
    return [read_scenes(path) for path in files]


def _read_config(run: Path) -> STPConfig | None:
    """Return the options of a run: a task's, or a trainer's; None where they cannot be read."""
    path = run / "config.yaml"
    try:
        return (TaskConfig if "task" in read_yaml(path) else STPConfig).from_yaml(path)
    except StpError:
        return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of the first and of the last tenth."""
    n = max(1, round(_TAIL * len(values)))
    return float(np.mean(values[:n])), float(np.mean(values[-n:]))


def _mean(values: Sequence[float]) -> float | None:
    return float(f"{np.mean(values):.6g}") if values and np.isfinite(values).all() else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _time(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _cut(text: Any) -> Any:
    if isinstance(text, bool):
        return text
    text = str(text)
    return "\n".join(map(inert, text[:CHARS].split("\n")))
