"""Draw benches/results.json as docs/img/performance.svg: how many times faster, with the target beside it."""

import json
import math
from pathlib import Path

BAR, LEFT, WIDE = 22, 520, 360


def svg(rows: list[dict[str, object]]) -> str:
    """Return the plot: one bar per ratio on a logarithmic axis, a tick where the target is."""
    shown = [row for row in rows if isinstance(row["ratio"], float)]
    top = max(math.log10(max(float(str(row["ratio"])), float(str(row["target_ratio"] or 1)))) for row in shown)

    def x(ratio: float) -> float:
        return LEFT + WIDE * max(0.0, math.log10(max(ratio, 1.0))) / top

    height = BAR * len(shown) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDE + 70}" height="{height}" '
        'font-family="sans-serif" font-size="10">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for i, row in enumerate(shown):
        y, ratio, target = 8 + BAR * i, float(str(row["ratio"])), row["target_ratio"]
        label = f"{row['name']}: {row['shape']} / {row['baseline']}".replace("&", "&amp;").replace("<", "&lt;")
        met = target is None or ratio >= float(str(target))
        colour = "#3b76af" if met else "#c9803a"
        parts.append(f'<text x="{LEFT - 6}" y="{y + 11}" text-anchor="end">{label}</text>')
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{x(ratio) - LEFT:.1f}" height="14" fill="{colour}"/>')
        parts.append(f'<text x="{x(ratio) + 4:.1f}" y="{y + 11}">{ratio:.1f}x</text>')
        if target is not None:
            at = x(float(str(target)))
            parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y - 3}" y2="{y + 17}" stroke="black"/>')
    caption = "times faster than the published loop, log scale; black: target; orange: below it"
    parts.append(f'<text x="{LEFT}" y="{height - 10}">{caption}</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    """Read the results and write the plot."""
    rows = json.loads(Path("benches/results.json").read_text(encoding="utf-8"))
    target = Path("docs/img/performance.svg")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(svg(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
