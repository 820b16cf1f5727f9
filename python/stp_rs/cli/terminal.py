"""Output to a terminal: control characters are shown, not obeyed, and a closed pipe or full device ends a command."""

import argparse
import contextlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from typing import Any, NoReturn

from stp_rs.errors import StpError
from stp_rs.text import inert, show


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
    """An argument parser whose errors are one line, and which takes `-1e-4` for a number."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        """Print a line; exit with 2."""
        self.exit(2, f"{self.prog}: {inert(message)}; {self.prog} --help lists everything\n")


def fail(message: str, *, code: int = 2) -> int:
    """Print one line on stderr, where there is one; return the exit code."""
    with contextlib.suppress(OSError):
        show(f"stp-rs: {' '.join(message.split())}", file=sys.stderr)
    return code


def _streams(act: Callable[[TextIOWrapper], object]) -> None:
    """Return the standard streams that are open and are files; those of a notebook are not."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            with contextlib.suppress(ValueError):
                act(stream)


def _mute_if_refused(stream: TextIOWrapper) -> None:
    """Discard what a stream that refused its output still holds: the interpreter would report it at its end."""
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
