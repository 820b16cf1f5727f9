"""The run's report: one HTML file with inline SVG, no scripts, nothing fetched."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stp_rs.train.checkpoint import atomic_file
from stp_rs.train.metrics import read_metrics

_STYLE = """
:root { --ink: #1d2733; --soft: #66727f; --line: #dfe4ea; --paper: #fff; --blue: #2f6fde; --gray: #9fb4d6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7ecf2; --soft: #9aa7b5; --line: #303945; --paper: #14191f; --blue: #6ea0ff; --gray: #4d648c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p.sub { color: var(--soft); margin: .2rem 0 1.5rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .8rem; }
.card { border: 1px solid var(--line); border-radius: .6rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.45rem; } .card span { color: var(--soft); font-size: .85rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .3rem .6rem;
  border-bottom: 1px solid var(--line); } td.mono { font-family: ui-monospace, monospace; font-size: .85rem; }
"""

_CHARTS = (
    ("reward", "Mean reward of a rollout batch"),
    ("diffusion/token_elbo", "Token ELBO of scored completions (nats)"),
    ("diffusion/nfe", "Forwards per completion (training)"),
    ("diffusion/distinct", "Distinct completions per group"),
    ("grad_norm", "Gradient norm"),
    ("frac_reward_zero_std", "Share of groups with equal rewards"),
)


def write_report(run: Path) -> Path:
    """Write `report.html` from metrics.jsonl and summary.json of a run folder; return its path."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    lines = read_metrics(run / "metrics.jsonl")
    charts = []
    for name, title in _CHARTS:
        # a step whose groups all had equal rewards has no update, so no loss, norm or estimate
        points = [(line["step"], line[name]) for line in lines if name in line]
        chart = line_chart([x for x, _ in points], [y for _, y in points])
        charts.append(f"<div><h2>{html.escape(title)}</h2>{chart}</div>" if chart else "")
    body = (
        f"<h1>{html.escape(summary['task'])} / {html.escape(summary['preset'])}</h1>"
        f"<p class=sub>seed {summary['seed']}, {summary['steps']} rollout batches, "
        f"{summary['seconds']['total']:.0f} s in all; scores are greedy on {summary['eval_size']} held-out problems</p>"
        f"<div class=cards>{_cards(summary)}</div><div class=charts>{''.join(charts)}</div>"
        f"{_samples(summary['samples'])}"
    )
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>stp_rs: {html.escape(summary['task'])}</title><style>{_STYLE}</style><body>{body}</body></html>\n"
    )
    path = run / "report.html"
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _cards(summary: dict[str, Any]) -> str:
    forwards, nfe = summary["forwards"], summary["nfe_per_completion"]
    cards = (
        (
            f"{summary['solved_before']:.1%} → {summary['solved_after']:.1%}",
            "solved, free decode, before → after RL",
        ),
        (f"{summary['solved_after_prior']:.1%}", "solved with the static priors"),
        (
            f"{nfe['training'] or 0:.1f} of {nfe['free']:.0f}",
            "forwards per completion: training, free decode",
        ),
        (f"{forwards['rollout']:,}", "canvases computed in rollouts"),
        (f"{forwards['likelihood']:,}", f"canvases in likelihoods ({forwards['backward']:,} with gradient)"),
        (f"{summary['seconds']['rl']:.0f} s", f"of RL, {summary['seconds']['rollout']:.0f} s in rollouts"),
    )
    return "".join(
        f"<div class=card><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>" for value, name in cards
    )


def _samples(samples: Sequence[dict[str, str]]) -> str:
    head = "<tr><th>prompt</th><th>before RL</th><th>after RL</th></tr>"
    rows = "".join(
        "<tr>"
        + "".join(f"<td class=mono>{html.escape(sample[key])}</td>" for key in ("prompt", "before", "after"))
        + "</tr>"
        for sample in samples
    )
    return f"<h2>Held-out problems, greedy</h2><table>{head}{rows}</table>"


def line_chart(xs: Sequence[float], ys: Sequence[float], *, width: int = 520, height: int = 220) -> str:
    """Return an SVG of a noisy series: the values in light, their running mean in colour."""
    if not xs:
        return ""
    left, right, top, bottom = 54, 10, 8, 24
    low, high = min(ys), max(ys)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    span_x = max(xs[-1] - xs[0], 1)

    def place(x: float, y: float) -> str:
        px = left + (x - xs[0]) / span_x * (width - left - right)
        py = top + (high - y) / (high - low) * (height - top - bottom)
        return f"{px:.1f},{py:.1f}"

    marks = "".join(
        f"<line x1={left} x2={width - right} y1={y} y2={y} stroke='var(--line)'/>"
        f"<text x={left - 6} y={y + 4} text-anchor=end>{value:.3g}</text>"
        for value in (low, (low + high) / 2, high)
        for y in [float(place(xs[0], value).split(",")[1])]
    )
    labels = (
        f"<text x={left} y={height - 6}>{xs[0]:g}</text>"
        f"<text x={width - right} y={height - 6} text-anchor=end>step {xs[-1]:g}</text>"
    )
    raw = " ".join(place(x, y) for x, y in zip(xs, ys, strict=True))
    smooth = " ".join(place(x, y) for x, y in zip(xs, running_mean(ys, max(1, len(ys) // 20)), strict=True))
    return (
        f"<svg viewBox='0 0 {width} {height}' role=img>{marks}{labels}"
        f"<polyline points='{raw}' fill=none stroke='var(--gray)' stroke-width=1 />"
        f"<polyline points='{smooth}' fill=none stroke='var(--blue)' stroke-width=2 /></svg>"
    )


def running_mean(values: Sequence[float], radius: int) -> list[float]:
    """Return the mean over a window of `radius` on both sides, shorter at the ends."""
    means = []
    for i in range(len(values)):
        window = values[max(0, i - radius) : i + radius + 1]
        means.append(sum(window) / len(window))
    return means
