"""Describe charts in plain data that no chart library is in: axes, views, series, and a table.

page.js draws them. Each chart brings its numbers as a table too, for who sees no chart.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

DIGITS = 5  # of a number in a chart: more are not seen, and take room
MOST_ROWS = 400  # of a table: a page stays small, report.json has all

Point = Sequence[Any]
"""x, y, and where there is one the interval of y and a label: [x, y, low, high, label]."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text; the first column names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    more: str = ""
    """A sentence about rows that are left out."""


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis: its name with the unit, how numbers are written on it, and its scale.

    format is one of the names in FORMATS of page.js.
    """

    name: str
    format: str = "number"
    log: bool = False
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Points with one name; kind is "line" (with points), "points" or "labels" (named points)."""

    name: str
    points: Sequence[Point]
    kind: str = "line"
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """Something that a chart can show, one at a time; y replaces the chart's own axis."""

    name: str
    series: Sequence[Series]
    y: Axis | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart: its title, a sentence on how to read it, its axes, views and table."""

    id: str
    title: str
    how: str
    x: Axis
    y: Axis
    views: Sequence[View]
    table: Table = field(default_factory=lambda: Table((), ()))

    def plain(self) -> dict[str, Any]:
        """Return what page.js draws, with numbers of few digits."""
        drawn = {"id": self.id, "title": self.title, "x": asdict(self.x), "y": asdict(self.y)}
        views = [rounded(asdict(view)) for view in self.views]
        return drawn | {"views": views}


def rounded(value: Any) -> Any:
    """Return the same data with numbers of few digits."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def spans_decades(values: Iterable[float | None]) -> bool:
    """Say whether numbers need a logarithmic scale: all above 0, and the largest far larger."""
    known = [float(value) for value in values if value is not None]  # NumPy's compare to its own
    return bool(known) and min(known) > 0 and max(known) > 10 * min(known)


def shortened(header: Sequence[str], rows: Sequence[Sequence[str]], what: str) -> Table:
    """Make a table of at most so many rows, and say how many there are."""
    more = ""
    if len(rows) > MOST_ROWS:
        more = f"{len(rows) - MOST_ROWS} more {what} are left out here."
    return Table(header, rows[:MOST_ROWS], more)
