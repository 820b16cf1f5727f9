"""Text that others wrote, made safe to show: no effects on a terminal, known widths, plain tables.

Completions, prompts, reward functions and file names are written by others. A terminal obeys control characters in
them: it clears the screen, sets its title, writes from right to left.
"""

import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TextIO

_MARKS = 4
"""Combining marks that one character may carry; a pile of them covers the lines above."""
_CELL = 36
_NARROW = 9
"""Columns of a cell of a table, and those that are left of one that must give way."""


def inert(text: str) -> str:
    r"""Return text as one line without effects: what is not printable stands there as its escape.

    That is every control, format (direction marks, joiners), surrogate, private or unassigned character, and every
    separator but the space. Applied twice it changes nothing more.

    Example:
        >>> print(inert("a\n\x1b[2J\u202e\ud800"))
        a\n\x1b[2J\u202e\ud800
    """
    shown, marks = [], 0
    for char in text:
        marks = marks + 1 if _columns(char) == 0 else 0
        plain = char.isprintable() and marks <= _MARKS
        shown.append(char if plain else char.encode("unicode_escape").decode("ascii"))
    return "".join(shown)


def show(text: str = "", *, file: TextIO | None = None) -> None:
    """Print lines; control characters in them, whoever wrote them, are shown as escapes."""
    print("\n".join(map(inert, text.split("\n"))), file=file or sys.stdout, flush=True)


def width(text: str) -> int:
    """Return the columns that inert text takes in a terminal: two for wide characters, none for combining marks."""
    return sum(map(_columns, text))


def clip(text: str, columns: int) -> str:
    """Return inert text of at most `columns` columns, cut in the middle."""
    if width(text) <= columns:
        return text
    half = (columns - 3) // 2
    return f"{_start(text, half)}...{_start(text[::-1], half)[::-1]}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, columns: int = _CELL, total: int | None = None) -> str:
    """Return a plain table; every cell is inert and clipped to `columns`, and the widest further, to `total` in all."""
    cells = [[inert(cell) for cell in row] for row in [head, *rows]]
    widths = [min(columns, max(map(width, column))) for column in zip(*cells, strict=True)]
    while total is not None and sum(w + 3 for w in widths) - 1 > total and max(widths) > _NARROW:
        widths[widths.index(max(widths))] -= 1
    cells = [[clip(cell, w) for cell, w in zip(row, widths, strict=True)] for row in cells]
    lines = [
        " " + " | ".join(cell + " " * (w - width(cell)) for cell, w in zip(row, widths, strict=True)) for row in cells
    ]
    lines = [line.rstrip() for line in lines]
    return "\n".join([lines[0], "+".join("-" * (w + 2) for w in widths), *lines[1:]])


def _columns(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me") or "\u1160" <= char <= "\u11ff":  # the latter join a Hangul syllable
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _start(text: str, columns: int) -> str:
    return text[: bisect_right(list(accumulate(map(_columns, text))), columns)]
