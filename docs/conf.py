"""The documentation site (Sphinx): `make site` builds it into build/site. It fetches nothing."""

import re
from pathlib import Path
from typing import Any

import stp_rs

project = "stp_rs"
author = copyright = "the authors of stp_rs"
version = release = stp_rs.__version__
html_title = f"stp_rs {version}"
html_theme = "furo"
html_copy_source = False
html_theme_options = {
    "source_repository": "https://github.com/stp-rs/stp_rs/",
    "source_branch": "main",
    "source_directory": "docs/",
}
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
# docstrings quote code as Markdown does
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_use_ivar = True


def setup(app: Any) -> None:
    """Read docstrings as they are meant, and list pages that docs/index.md does not name."""

    def as_meant(_app: Any, what: str, *event: Any) -> None:
        lines: list[str] = event[-1]
        # |M| is the size of M, and no name of a text that stands elsewhere
        lines[:] = [re.sub(r"(`[^`]*`)|\|", lambda found: found[1] or r"\|", line) for line in lines]
        if what in ("attribute", "data", "property"):
            lines.insert(0, "")  # napoleon looks for a type before a colon in the first line

    app.connect("autodoc-process-docstring", as_meant, priority=400)

    def add_the_rest(_app: Any, page: str, source: list[str]) -> None:
        if page != "index":
            return
        named = {line.split("<")[-1].rstrip(">") for line in source[0].splitlines()} | {"index"}
        here = Path(__file__).parent
        found = {path.relative_to(here).with_suffix("").as_posix() for path in here.rglob("*.md")}
        rest = sorted(name for name in found - named if not name.startswith(("adr/", "reference/")))
        if rest:
            source[0] += "\n".join(["", "```{toctree}", ":hidden:", ":caption: More", "", *rest, "```", ""])

    app.connect("source-read", add_the_rest)
