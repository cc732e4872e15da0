"""Progress of long work: bars on a terminal, lines elsewhere, nothing in tests and with --json.

Work reports to whatever `Progress` its context carries. Logging and output are separate things.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """Receives the state of named pieces of work."""

    def update(self, name: str, done: float, total: float) -> None:
        """`done` of `total` units of the work called `name`; done == total ends it."""
        ...


class NoProgress:
    """Swallows everything."""

    def update(self, name: str, done: float, total: float) -> None:
        """Do nothing."""


class Relay:
    """Hands updates to a function: how worker processes reach the parent. At most ten a second a name."""

    def __init__(self, send: Callable[[tuple[str, float, float]], Any]) -> None:
        self._send, self._last = send, dict[str, float]()

    def update(self, name: str, done: float, total: float) -> None:
        """Send unless this name was sent a moment ago; the last update always goes."""
        now = time.monotonic()
        if done >= total or now - self._last.get(name, 0.0) > 0.1:
            self._last[name] = now
            self._send((name, done, total))


class PlainProgress:
    """A line when a piece of work that took over two seconds passes each quarter. For logs."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._start, self._quarter = dict[str, float](), dict[str, int]()

    def update(self, name: str, done: float, total: float) -> None:
        """Write a line at each quarter."""
        started = self._start.setdefault(name, time.monotonic())
        quarter = int(4 * done / total) if total else 4
        elapsed = time.monotonic() - started
        if quarter > self._quarter.get(name, 0) and elapsed > 2:
            self._stream.write(f"{name}: {25 * quarter}% after {elapsed:.0f} s\n")
            self._stream.flush()
        self._quarter[name] = quarter
        if done >= total:
            self._start.pop(name, None)
            self._quarter.pop(name, None)


class RichProgress:
    """Bars on a terminal, one for each running piece of work."""

    def __init__(self) -> None:
        from rich import progress as rp
        from rich.console import Console

        self._bars = rp.Progress(
            rp.TextColumn("{task.description}"), rp.BarColumn(), rp.TaskProgressColumn(),
            rp.TimeElapsedColumn(), rp.TimeRemainingColumn(),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> RichProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, name: str, done: float, total: float) -> None:
        """Move, add or remove the bar called `name`."""
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
        self._bars.update(self._tasks[name], completed=done, total=total)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(name))


@contextmanager
def for_terminal(quiet: bool) -> Iterator[Progress]:
    """Bars if standard error is a terminal, lines if not, nothing if `quiet`."""
    if quiet:
        yield NoProgress()
    elif sys.stderr.isatty():
        with RichProgress() as bars:
            yield bars
    else:
        yield PlainProgress()
