"""Draws every seed's last test score as a dot, a panel per task and a column per variant; a line is their mean.

    python -m studies.compare.seeds docs/data/last_scores.json docs/img/results_states.svg

The file holds `{task: {variant: {seed: score}}}`; scores are shares from 0 to 1.
"""

import json
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path

TOP, BOTTOM, LEFT = 30.0, 200.0, 40.0
PANEL, GAP = 210.0, 50.0

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]


def draw(scores: Scores) -> str:
    """Return the figure as SVG."""
    width = LEFT + len(scores) * (PANEL + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} 220" font-family="sans-serif"'
        ' font-size="11" fill="#333">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for k, (task, variants) in enumerate(scores.items()):
        parts += _panel(LEFT + k * (PANEL + GAP), task, variants)
    return "\n".join([*parts, "</svg>", ""])


def _panel(left: float, task: str, variants: Mapping[str, Mapping[str, float]]) -> list[str]:
    parts = [f'<text x="{left:g}" y="16" font-weight="bold">{escape(task)}</text>']
    for tick in (0, 0.25, 0.5, 0.75, 1):
        y = _height(tick)
        parts.append(
            f'<line x1="{left:g}" x2="{left + PANEL:g}" y1="{y:g}" y2="{y:g}" stroke="#ddd"/>'
            f'<text x="{left - 6:g}" y="{y + 4:g}" text-anchor="end">{tick:g}</text>'
        )
    column = PANEL / len(variants)
    for k, (name, seeds) in enumerate(variants.items()):
        middle = left + column * (k + 0.5)
        for place, (seed, score) in enumerate(seeds.items()):
            x = middle + 5 * (place - (len(seeds) - 1) / 2)
            parts.append(
                f'<circle cx="{x:.1f}" cy="{_height(score):.1f}" r="3" fill="#2a6fb0" fill-opacity="0.75">'
                f"<title>{escape(name)}, seed {escape(seed)}: {score:.3f}</title></circle>"
            )
        y = _height(sum(seeds.values()) / len(seeds))
        parts.append(
            f'<line x1="{middle - 16:.1f}" x2="{middle + 16:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#b03a2a"'
            ' stroke-width="1.5"/>'
            f'<text x="{middle:.1f}" y="214" text-anchor="middle" font-size="8.5">{escape(name)}</text>'
        )
    return parts


def _height(score: float) -> float:
    return BOTTOM - score * (BOTTOM - TOP)


def main(argv: list[str]) -> int:
    """Write the figure; return the exit code."""
    if len(argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    source, target = map(Path, argv)
    target.write_text(draw(json.loads(source.read_text(encoding="utf-8"))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
