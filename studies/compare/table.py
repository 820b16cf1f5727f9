"""The tables of a comparison: final and best scores side by side, collapses, every seed, and what they cost. Markdown.

A table must not flatter: the best checkpoint on validation hides a collapse, a mean hides a seed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from studies.compare.curves import Record, aggregate, by_variant, collapsed, holm, paired, summary, t_test

Row = dict[str, Any]


def make_rows(records: Sequence[Record], sums: dict[str, Any]) -> list[Row]:
    """Return a row per variant with every number of the tables, means over seeds.

    Args:
        records: runs of one task.
        sums: their `aggregate`.
    """
    variants = by_variant(records)
    base = variants[sums["baseline"]]

    def scored(which: str, score: str) -> Callable[[Record], float]:
        return lambda run: float(run[which][score])

    rows = []
    for name, runs in variants.items():
        read, final = scored("selected", "solved_free"), scored("test", "solved_free")
        last = [run["curve"][-1] for run in runs]
        axes = sums["axes"]
        rows.append(
            {
                "variant": name,
                "seeds": len(runs),
                "before": summary([run["curve"][0]["solved_free"] for run in runs]),
                "selected_free": summary([read(run) for run in runs]),
                "selected_prior": summary([float(run["selected"]["solved_prior"]) for run in runs]),
                "final_free": summary([final(run) for run in runs]),
                "final_seeds": [final(run) for run in runs],
                "final_versus": paired(runs, base, final),
                "collapsed": sum(collapsed(run) for run in runs),
                "differs": differing(runs[0], base[0]),
                "final_prior": summary([float(run["test"]["solved_prior"]) for run in runs]),
                "versus": paired(runs, base, read),
                "equal": {axis: axes[axis]["end"][name] for axis in axes},
                "to_reach": {axis: axes[axis]["to_reach"][name] for axis in axes},
                "rollout_forwards": mean([point["forwards"]["rollout"] for point in last]),
                "forward_equivalents": mean([point["forward_equivalents"] for point in last]),
                "rollout_cpu_seconds": mean([point["cpu_seconds_rollout"] for point in last]),
                "cpu_seconds": mean([point["cpu_seconds"] for point in last]),
                **{key: mean([p[key] for p in last]) for key in ("distinct", "zero_std_share")},
                # the noise over the whole training: the end has few completions that differ
                **{key: mean([p.get(key) for run in runs for p in run["curve"]]) for key in ("grad_snr", "logp_var")},
            }
        )
    return rows


def differing(run: Record, base: Record) -> str:
    """Return the options in which two variants differ, with the values of the first."""
    mine, other = run["identity"], base["identity"]
    named = ("preset", "seed", "max_steps", "eval_steps")
    changed = [name for name in mine if name not in named and mine[name] != other.get(name)]
    return ", ".join(f"{name}={mine[name]}" for name in changed)


def mean(values: Sequence[Any]) -> float | None:
    """Return the mean of what is there."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def markdown(
    records: Sequence[Record],
    baseline: str = "",
    reference: str = "",
    hypotheses: Sequence[dict[str, str]] = (),
) -> str:
    """Return the tables of all tasks in `records`, those of the hypotheses first."""
    tasks = list(dict.fromkeys(str(record["task"]) for record in records))
    tables = [task_tables(task, [r for r in records if r["task"] == task], baseline, reference) for task in tasks]
    return "\n\n".join([*(["\n".join(tested(records, hypotheses))] if hypotheses else []), *tables])


def tested(records: Sequence[Record], hypotheses: Sequence[dict[str, str]]) -> list[str]:
    """Return the table of the hypotheses that were stated before the runs: final test scores, paired by seed."""
    rows: list[Row] = []
    for hypothesis in hypotheses:
        variants = by_variant([r for r in records if r["task"] == hypothesis["task"]])
        runs, than = (variants.get(hypothesis[name], []) for name in ("variant", "than"))
        other = {run["seed"]: float(run["test"]["solved_free"]) for run in than}
        gaps = [float(r["test"]["solved_free"]) - other[r["seed"]] for r in runs if r["seed"] in other]
        rows.append({**hypothesis, "gaps": gaps, "p": t_test(gaps)})
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["holm"] = adjusted
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("hypothesis", lambda row: row["name"]),
        ("task", lambda row: row["task"]),
        ("difference, final test", lambda row: interval(summary(row["gaps"], share=False)) if row["gaps"] else "-"),
        ("per seed", lambda row: " ".join(f"{gap:+.3f}" for gap in row["gaps"])),
        ("p", lambda row: number(row["p"], 4)),
        ("p, Holm", lambda row: number(row["holm"], 4)),
    ]
    stated = "Stated before the runs; two-sided Student's t over paired seeds. Everything else is exploration."
    return ["### Hypotheses", "", *grid(columns, rows), "", stated]


def task_tables(task: str, records: Sequence[Record], baseline: str = "", reference: str = "") -> str:
    """Return one task's tables with a line on how to read them."""
    sums = aggregate(records, baseline, reference)
    rows = make_rows(records, sums)
    clock = sums["clock"]
    unit = "GPU s" if clock == "gpu_seconds" else "CPU s"
    ends = {axis: entry["grid"][-1] for axis, entry in sums["axes"].items()}
    scores: list[tuple[str, Callable[[Row], str]]] = [
        ("variant", lambda row: row["variant"]),
        ("seeds", lambda row: str(row["seeds"])),
        ("final, free", lambda row: interval(row["final_free"])),
        (f"minus {sums['baseline']}", lambda row: difference(row["final_versus"], row["variant"] == sums["baseline"])),
        ("best on validation, free", lambda row: interval(row["selected_free"])),
        (f"minus {sums['baseline']} ", lambda row: difference(row["versus"], row["variant"] == sums["baseline"])),
        ("collapsed", lambda row: str(row["collapsed"])),
        ("every seed, final", lambda row: " ".join(f"{score:.2f}" for score in row["final_seeds"])),
        ("final, prior", lambda row: number(row["final_prior"]["mean"])),
        *(
            (label, lambda row, axis=axis: interval(row["equal"][axis]))
            for axis, label in (
                (clock, f"at {ends.get(clock, 0):.3g} {unit}"),
                ("forward_equivalents", f"at {thousands(ends.get('forward_equivalents', 0))} forwards"),
            )
            if axis in ends
        ),
    ]
    costs: list[tuple[str, Callable[[Row], str]]] = [
        ("variant", lambda row: row["variant"]),
        ("rollout forwards", lambda row: thousands(row["rollout_forwards"])),
        ("rollout CPU s", lambda row: number(row["rollout_cpu_seconds"], 1)),
        ("forwards (x3 with gradient)", lambda row: thousands(row["forward_equivalents"])),
        ("CPU s", lambda row: number(row["cpu_seconds"], 1)),
        (f"{unit} to {sums['target']:.3f}", lambda row: number(row["to_reach"].get(clock), 1)),
        (f"forwards to {sums['target']:.3f}", lambda row: thousands(row["to_reach"].get("forward_equivalents"))),
        ("distinct", lambda row: number(row["distinct"], 2)),
        ("zero-variance groups", lambda row: number(row["zero_std_share"], 2)),
        *(
            (label, lambda row, key=key: number(row[key], 2))
            for key, label in (("logp_var", "likelihood variance"), ("grad_snr", "gradient SNR"))
            if any(row[key] is not None for row in rows)
        ),
    ]
    apart: list[tuple[str, Callable[[Row], str]]] = [
        ("variant", lambda row: row["variant"]),
        (f"differs from {sums['baseline']} in", lambda row: row["differs"] or "-"),
    ]
    tables = [grid(scores, rows), grid(costs, rows), grid(apart, rows), crossed(rows)]
    return "\n".join([f"### {task}", *(line for table in tables if table for line in ("", *table)), "", notes(sums)])


def crossed(rows: Sequence[Row]) -> list[str]:
    """Return a table of algorithms by prunings: the score, CPU seconds, and gradient SNR where it was measured.

    A variant that is named ALGORITHM/PRUNING stands in the row of its algorithm; one without a slash stands under
    "as preset". No such variant, no table.
    """
    cells: dict[tuple[str, str], Row] = {}
    for row in rows:
        algorithm, _, pruning = row["variant"].partition("/")
        cells[algorithm, pruning] = row
    prunings = sorted({pruning for _, pruning in cells})
    if prunings == [""]:
        return []

    def column(pruning: str) -> Callable[[Row], str]:
        return lambda line: _cell(cells.get((line["algorithm"], pruning)))

    columns: list[tuple[str, Callable[[Row], str]]] = [("algorithm", lambda line: line["algorithm"])]
    columns += [(pruning or "as preset", column(pruning)) for pruning in prunings]
    return grid(columns, [{"algorithm": name} for name in dict.fromkeys(algorithm for algorithm, _ in cells)])


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    noise = "" if row["grad_snr"] is None else f"; SNR {row['grad_snr']:.2f}"
    return f"{interval(row['selected_free'])}; {number(row['cpu_seconds'], 1)} s{noise}"


def notes(sums: dict[str, Any]) -> str:
    """Return how to read the tables."""
    return (
        "Test scores of the last policy and of the checkpoint that validation picked; the test split was read once per "
        "run. Collapsed: runs that end, by validation, below their start or below half of their best. Brackets: 95 %, "
        "Student's t over seeds; after the semicolon of a difference, a percentile bootstrap over paired seeds (too "
        "narrow with few); bold where both leave out 0. Columns 'at' and 'to' are read from validation curves (free "
        f"decode); {sums['target']:.3f} is what {sums['reference']} ends at. Seconds leave out "
        "evaluation and the supervised warm-up, which runs of a seed share."
    )


def grid(columns: Sequence[tuple[str, Callable[[Row], str]]], rows: Sequence[Row]) -> list[str]:
    """Return a markdown table with aligned columns."""
    texts = [[title for title, _ in columns], *([show(row) for _, show in columns] for row in rows)]
    widths = [max(len(line[i]) for line in texts) for i in range(len(columns))]
    lines = ["| " + " | ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)) + " |" for line in texts]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]


def interval(entry: dict[str, Any]) -> str:
    """Return a mean with its interval."""
    if entry["low"] is None:
        return number(entry["mean"])
    return f"{entry['mean']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def difference(entry: dict[str, Any] | None, is_base: bool) -> str:
    """Return a paired difference with both intervals, bold where both leave out 0."""
    if is_base or entry is None:
        return "-"
    text = f"{entry['difference']:+.3f}"
    if entry["t"] is None:
        return text
    both = (entry["t"], entry["bootstrap"])
    shown = "; ".join(f"{low:+.3f}, {high:+.3f}" for low, high in both)
    sure = all(low > 0 or high < 0 for low, high in both)
    return f"**{text}** [{shown}]" if sure else f"{text} [{shown}]"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def thousands(value: float | None) -> str:
    """Return a count, or a dash."""
    return "-" if value is None else f"{value:,.0f}"
