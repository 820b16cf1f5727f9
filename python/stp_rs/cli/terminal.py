"""Output to a terminal: control characters are shown, not obeyed, and a closed pipe or full device ends a command."""

import argparse
import contextlib
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from io import TextIOWrapper
from types import FrameType
from typing import Any, NoReturn

from stp_rs.config.listing import unknown_option
from stp_rs.errors import ConfigError, LostRankError, StpError, memory_asked
from stp_rs.text import inert, nearest, one_of, show


def guarded(run: Callable[[], int]) -> int:
    """Return the exit code of a command: 2 after an error of ours or of the system, 128 + n after a signal n.

    Errors are one line on stderr. Characters that a terminal cannot show are escaped; a closed pipe or a full device
    ends the command.
    """
    with _plain_warnings(), _signals_heard():
        try:
            _streams(lambda stream: stream.reconfigure(errors="backslashreplace"))
            try:
                return run()
            finally:
                _streams(lambda stream: stream.flush())
        except StpError as error:
            return fail(str(error)) if _speaks(error) else 2
        except OSError as error:
            name = "" if error.filename is None else f": {error.filename}"
            return fail(f"{error.strerror or error}{name}")
        except (MemoryError, RuntimeError) as error:
            asked = memory_asked(error)
            if asked is None:
                raise
            return fail(f"out of memory: {asked}")
        except KeyboardInterrupt as stopped:
            with contextlib.suppress(OSError):
                show(file=sys.stderr)  # ends the line of a bar
            number = stopped.number if isinstance(stopped, _Ended) else signal.SIGINT
            by = f" by {number.name}" if isinstance(stopped, _Ended) else ""
            how = "a run that is trained again goes on from its newest checkpoint, or begins anew where it has none"
            return fail(f"stopped{by}; {how}", code=128 + number)
        finally:
            _streams(_mute_if_refused)


class _Ended(KeyboardInterrupt):
    """A signal asked the command to end: what was done has its report, as after Ctrl-C."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


@contextlib.contextmanager
def _signals_heard() -> Iterator[None]:
    """End the command as Ctrl-C does at SIGTERM and SIGHUP; a second one ends the process at once.

    Those that are ignored (nohup) or handled stay so. Of several processes none is deaf while it waits for another:
    there the signals keep their way.
    """
    alone = os.environ.get("WORLD_SIZE", "1") == "1" and threading.current_thread() is threading.main_thread()
    owner = os.getpid()
    ending = False

    def heard(number: int, _frame: FrameType | None) -> None:
        nonlocal ending
        if ending or os.getpid() != owner:  # the second one, or a forked child, which is no run
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        ending = True
        raise _Ended(signal.Signals(number))

    wanted = [signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if alone and hasattr(signal, name)]
    taken = [number for number in wanted if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, heard)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _speaks(error: StpError) -> bool:
    """Return whether this process says an error: the main one, which hears of all; another only of what it cannot."""
    number = int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0
    lost = isinstance(error, LostRankError) and number == 1 and str(error).startswith("rank 0")
    return number == 0 or lost or str(error).startswith(("LOCAL_RANK", "WORLD_SIZE"))


def at_least(low: int) -> Callable[[str], int]:
    """Return what reads a flag's whole number of at least `low`, and of at most 2^53: what an array holds."""

    def whole(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= 1 << 53:
            raise argparse.ArgumentTypeError(f"got {text!r}, needs a whole number of at least {low}")
        return number

    return whole


def not_negative(text: str) -> float:
    """Read a flag's number of at least 0."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, needs a number of at least 0")
    return number


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line with the nearest right word; `-1e-4` is a number, `-` means `_`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})  # a shortened flag is a misspelt one
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        """Print a line; exit with 2."""
        self.exit(2, f"{self.prog}: {inert(message)}; {self.prog} --help lists everything\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the namespace, and nothing that is left over.

        Raises:
            ConfigError: an argument that is no flag; it says why, or what is near.
        """
        given = [self._spelt(str(arg)) for arg in (sys.argv[1:] if args is None else args)]
        found, unknown = super().parse_known_args(given, namespace)
        if unknown and self._subparsers is None:
            raise self._refusal(unknown)
        return found, unknown

    def _spelt(self, argument: str) -> str:
        """Return a flag with `-` for `_` as it is here, and other arguments as they are."""
        name, equals, value = argument.partition("=")
        other = "--" + name[2:].replace("-", "_")
        known = self._option_string_actions
        return f"{other}{equals}{value}" if name.startswith("--") and name not in known and other in known else argument

    def _refusal(self, unknown: Sequence[str]) -> ConfigError:
        flags = [flag.removeprefix("--") for flag in self._option_string_actions if flag.startswith("--")]
        argument = next((arg for arg in unknown if arg.startswith("-")), None)
        if argument is None:
            return ConfigError(f"got the argument {unknown[0]!r}, needs flags; `{self.prog} --help` lists them")
        name = argument.lstrip("-").partition("=")[0]
        if "learning_rate" in flags:
            return unknown_option(name, flags)
        near = nearest(name, flags)
        hint = f"; did you mean --{near}?" if near else f"; `{self.prog} --help` lists all"
        return ConfigError(f"unknown flag {argument.partition('=')[0]!r} of {self.prog}{hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = action.choices
        if choices is not None and value not in choices:
            raise argparse.ArgumentError(action, f"got {value!r}, {one_of(value, choices)}")


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
