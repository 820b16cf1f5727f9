"""The figure of every seed: a dot each, higher where the score is, drawn from the file that is beside it."""

import json
import re
from pathlib import Path

from studies.compare.seeds import draw

DOCS = Path(__file__).parents[2] / "docs"


def test_a_dot_for_every_seed_and_higher_is_better():
    figure = draw({"task": {"a": {"0": 0.0, "1": 1.0}, "b <": {"0": 0.5}}})
    heights = [float(y) for y in re.findall(r'<circle cx="[^"]+" cy="([^"]+)"', figure)]
    assert len(heights) == 3
    assert heights[1] < heights[2] < heights[0], "y grows downwards"
    assert "b &lt;, seed 0: 0.500" in figure


def test_the_figure_of_the_docs_is_drawn_from_its_file():
    scores = json.loads((DOCS / "data" / "last_scores.json").read_text(encoding="utf-8"))
    assert (DOCS / "img" / "results_states.svg").read_text(encoding="utf-8") == draw(scores)
