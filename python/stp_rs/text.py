"""Text that others wrote, made safe to show: no effects on a terminal, known widths, plain tables.

Completions, prompts, reward functions and file names are written by others. A terminal obeys control characters in
them: it clears the screen, sets its title, writes from right to left.
"""

import re
import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from itertools import accumulate
from typing import TextIO

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character: Python's text may hold it (JSON can say it), and no encoding of Unicode can."""
_MARKS = 4
"""Combining marks that one character may carry; a pile of them covers the lines above."""
_NEAR = 0.72
"""Least likeness of a name that is worth a hint."""
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


def shown(value: object, most: int = 200) -> str:
    """Return how Python shows a value, cut to `most` characters; of one that cannot be shown, its class."""
    try:
        return repr(value)[:most]
    except Exception:  # its own code
        return f"a {type(value).__name__} that cannot be shown"


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


def nearest(word: str, known: Iterable[str], other: Iterable[str] = ()) -> str | None:
    """Return the known name that a misspelt one most likely stands for, or None where nothing is near.

    Compared are the letters, the words in any order, and whether the word is a part of the name; `stp_` and the
    difference of `-` and `_` do not count. Of `other` names the letters alone are compared.
    """
    asked, plain = _bare(word), _plain(word)
    scored = [(max(_likeness(asked, _bare(n)), _letters(plain, _plain(n))), -len(n), n) for n in known]
    scored += [(_letters(plain, _plain(n)), -len(n), n) for n in other]
    score, _, name = max(scored, default=(0.0, 0, ""))
    return name if score >= _NEAR else None


def one_of(word: object, known: Iterable[object]) -> str:
    """Return the end of an error: what a value needs to be, and which of those is near."""
    names = [str(name) for name in known]
    near = nearest(str(word), names)
    return f"needs one of {', '.join(names)}" + (f"; did you mean {near}?" if near else "")


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").strip("_")


def _bare(name: str) -> str:
    return _plain(name).removeprefix("stp_")


def _letters(asked: str, name: str) -> float:
    letters = SequenceMatcher(None, asked, name, autojunk=False)
    return letters.ratio() if letters.real_quick_ratio() >= _NEAR and letters.quick_ratio() >= _NEAR else 0.0


def _likeness(asked: str, name: str) -> float:
    """Return 0 to 1: how alike two names are."""
    if asked == name:
        return 1.0
    if len(asked) > 2 and sorted(asked) == sorted(name):  # letters in another order
        return 0.95
    best = _letters(asked, name)
    ours, theirs = sorted(asked.split("_")), sorted(name.split("_"))
    if len(ours) > 1:
        best = max(best, 0.99 * _letters("_".join(ours), "_".join(theirs)))
    if len(asked) > 2 and (set(ours) <= set(theirs) or name.startswith(asked)):
        # words of it: one may be of many names, several are of few
        least = 0.84 if len(ours) == 1 else 0.9
        best = max(best, least + (0.95 - least) * len(asked) / len(name))
    return best


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
