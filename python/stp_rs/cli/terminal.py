"""Every line that goes to a terminal: text that is shown and never obeyed, tables, and output that may be refused.

Completions, prompts, reward functions and file names are written by others. A terminal obeys control characters in
them: it clears the screen, sets its title, writes from right to left.
"""

import argparse
import contextlib
import os
import sys
import unicodedata
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from io import TextIOWrapper
from itertools import accumulate
from typing import NoReturn, TextIO

from stp_rs.errors import StpError

_MARKS = 4
"""Combining marks that one character may carry; a pile of them covers the lines above."""
_CELL = 36


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


def width(text: str) -> int:
    """Return the columns that inert text takes in a terminal: two for wide characters, none for combining marks."""
    return sum(map(_columns, text))


def clip(text: str, columns: int) -> str:
    """Return inert text of at most `columns` columns, cut in the middle."""
    if width(text) <= columns:
        return text
    half = (columns - 3) // 2
    return f"{_start(text, half)}...{_start(text[::-1], half)[::-1]}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, columns: int = _CELL) -> str:
    """Return a plain table; every cell is inert and clipped."""
    cells = [[clip(inert(cell), columns) for cell in row] for row in [head, *rows]]
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    lines = [
        " " + " | ".join(cell + " " * (w - width(cell)) for cell, w in zip(row, widths, strict=True)) for row in cells
    ]
    return "\n".join([lines[0], "+".join("-" * (w + 2) for w in widths), *lines[1:]])


def show(text: str = "", *, file: TextIO | None = None) -> None:
    """Print lines of our own, in which nothing that others wrote has an effect."""
    print("\n".join(map(inert, text.split("\n"))), file=file or sys.stdout, flush=True)


def guarded(run: Callable[[], int]) -> int:
    """Return the exit code of a command: 2 after an error of ours or of the system, 130 after Ctrl-C.

    Errors are one line on stderr. Characters that a terminal cannot show are escaped; a closed pipe or a full device
    ends the command.
    """
    with _plain_warnings():
        try:
            _streams(lambda stream: stream.reconfigure(errors="backslashreplace"))
            try:
                return run()
            finally:
                _streams(lambda stream: stream.flush())
        except StpError as error:
            return fail(str(error))
        except OSError as error:
            name = "" if error.filename is None else f": {error.filename}"
            return fail(f"{error.strerror or error}{name}")
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):
                show(file=sys.stderr)  # ends the line of a bar
            return fail("stopped; run the same command again to continue from the newest checkpoint", code=130)
        finally:
            _streams(_mute_if_refused)


class Parser(argparse.ArgumentParser):
    """Says in inert text what it was given."""

    def error(self, message: str) -> NoReturn:
        """Print usage and a line; exit with 2."""
        super().error(inert(message))


def fail(message: str, *, code: int = 2) -> int:
    """Print one line on stderr, where there is one; return the exit code."""
    with contextlib.suppress(OSError):
        show(f"stp-rs: {' '.join(message.split())}", file=sys.stderr)
    return code


def _columns(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me") or "\u1160" <= char <= "\u11ff":  # the latter join a Hangul syllable
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _start(text: str, columns: int) -> str:
    return text[: bisect_right(list(accumulate(map(_columns, text))), columns)]


def _streams(act: Callable[[TextIOWrapper], object]) -> None:
    """Act on the standard streams that are open and are files: a notebook's are not."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            with contextlib.suppress(ValueError):
                act(stream)


def _mute_if_refused(stream: TextIOWrapper) -> None:
    """Send what a refused stream still holds nowhere, or the interpreter would complain of it when it ends."""
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings inert, without the source line."""
    before = warnings.formatwarning

    def plain(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        del line  # the source's
        return inert(f"{filename}:{lineno}: {category.__name__}: {message}") + "\n"

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = before
