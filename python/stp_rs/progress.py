"""Progress of long work: a bar in a terminal; in a pipe, a file or a notebook plain lines, without carriage returns."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from stp_rs.text import inert, show

Item = TypeVar("Item")
_FORM = "{desc} |{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"
_LEAST, _GROWTH = 5.0, 0.1
"""Seconds between two lines, and the share of the time so far: lines of a long run are few."""


class Bar:
    """A bar of `total` units of work, with readings at its end; `quiet` shows nothing.

    Args:
        total: units of work.
        label: what is done.
        unit: what one of them is, in the plural.
        quiet: show nothing.
        file: where to; None is stderr as it is when something is shown.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        total: int,
        label: str,
        unit: str = "steps",
        *,
        quiet: bool = False,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.label, self.unit, self.quiet, self.done = total, label, unit, quiet, 0
        self._file, self._clock, self._readings = file, clock, ""
        self._started = self._said = clock()
        self._bar: Any = None
        if not quiet and _has_width(self._stream()):
            self._bar = tqdm(
                total=total, desc=label, file=self._stream(), dynamic_ncols=True, mininterval=0.3, bar_format=_FORM
            )

    def update(self, count: int = 1, readings: Mapping[str, str] | None = None) -> None:
        """Count work as done, below 0 what is to be done again; show readings by name until others are given."""
        self.done += count
        if readings:
            self._readings = " ".join(f"{name} {inert(value)}" for name, value in readings.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._readings, refresh=False)
            self._bar.update(count)
        elif count and not self.quiet:
            now = self._clock()
            if self.done >= self.total or now - self._said >= max(_LEAST, _GROWTH * (now - self._started)):
                self._said = now
                self._line(self._state(now - self._started))

    def note(self, text: str) -> None:
        """Show lines above the bar; control characters in them are shown, not obeyed."""
        if self.quiet:
            return
        shown = "\n".join(map(inert, text.split("\n")))
        if self._bar is not None:
            self._bar.write(shown, file=self._stream())
        else:
            self._line(shown)

    def result(self, text: str) -> None:
        """Print lines to stdout, above a bar that shares its terminal."""
        if self._bar is not None:
            self._bar.clear()
        show(text)
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        """End the bar where it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
            self.quiet = True

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield items, each a unit of work; the bar ends with them."""
        try:
            for item in items:
                yield item
                self.update()
        finally:
            self.close()

    def _stream(self) -> TextIO:
        return sys.stderr if self._file is None else self._file

    def _line(self, text: str) -> None:
        print(text, file=self._stream(), flush=True)

    def _state(self, seconds: float) -> str:
        left = seconds / self.done * (self.total - self.done) if self.done else 0.0
        ended = self.done >= self.total
        times = f"{duration(seconds)}" if ended else f"{duration(seconds)}, {duration(left)} left"
        return f"{self.label}: {self.done} of {self.total} {self.unit}, {times}" + (
            f"; {self._readings}" if self._readings else ""
        )


def _has_width(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that says how wide it is."""
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):
        return False


def duration(seconds: float) -> str:
    """Return seconds as a person says them: 41 s, 1 min 36 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min"
