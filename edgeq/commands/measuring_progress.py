"""What people see while models run over windows: a bar in a terminal, else a line now and then.

Imports rich, so commands import this module when they run.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edgeq.commands.screen import print_line
from edgeq.measuring import watching

SECONDS_BETWEEN_LINES = 10.0  # in a log or pipe; a short measurement prints none


class WindowLines:
    """A plain line now and then, with the time left."""

    def __init__(self, console: Console, *, every: float = SECONDS_BETWEEN_LINES) -> None:
        self._console, self._every = console, every
        self._begun: tuple[float, int] | None = None  # models are loaded by then
        self._last = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._begun is None:
            self._begun = now, done
        start, before = self._begun
        if now - self._last < self._every or done in (before, total):
            return
        self._last = now
        left = (now - start) / (done - before) * (total - done)
        print_line(self._console, f"measuring, window {done}/{total}, about {left:.0f} s left")


class WindowBar:
    """A bar with an estimate; it fits 80 columns."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("measuring, window"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> "WindowBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)


@contextmanager
def watching_windows(console: Console, *, plain: bool) -> Iterator[watching.Progress]:
    """Watch a measurement: a bar in a terminal unless plain lines are wanted."""
    if plain or not console.is_terminal:
        yield WindowLines(console)
        return
    with WindowBar(console) as bar:
        yield bar
