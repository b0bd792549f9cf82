"""Write numbers for pages, in the units that people use."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

Write = Callable[[Any], str]

NOTHING = "-"
"""What stands for a number that is not known."""
UNBROKEN = "\N{NO-BREAK SPACE}"  # between a number and its unit
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def size(count: float | None) -> str:
    """Write bytes with three digits: "1.23 GB", "98.4 MB"."""
    if count is None:
        return NOTHING
    for unit, name in UNITS:
        if count >= 0.9995 * unit:  # rounds to 1.00 of the unit
            return f"{digits(count / unit)}{UNBROKEN}{name}"
    return f"{count:.0f}{UNBROKEN}bytes"


def digits(number: float) -> str:
    """Write a number with three digits, and all digits before the point."""
    places = next((n for n, limit in ((2, 9.995), (1, 99.95)) if abs(number) < limit), 0)
    return f"{number:.{places}f}"


def nats(number: float | None) -> str:
    """Write a KL divergence: four places, or two digits of what is smaller."""
    if number is None:
        return NOTHING
    return f"{number:.4f}" if abs(number) >= 0.001 or number == 0 else f"{number:.1e}"


def percent(share: float | None, places: int = 1) -> str:
    """Write a share in percent, small ones with two digits."""
    if share is None:
        return NOTHING
    number = 100 * share
    small = 0 < abs(number) < 10.0 ** (1 - places)
    return f"{number:#.2g}%" if small else f"{number:.{places}f}%"


def plain(number: float | None) -> str:
    """Write a number with four digits."""
    return NOTHING if number is None else f"{number:.4g}"


def perplexity(number: float | None) -> str:
    """Write a perplexity with four digits, and all digits before the point."""
    if number is None:
        return NOTHING
    if number >= 1e6:
        return f"{number:.2e}"
    places = next((n for n, limit in ((3, 10), (2, 100), (1, 1000)) if number < limit), 0)
    return f"{number:,.{places}f}"


def seconds(time: float) -> str:
    """Write a time in the unit that leaves few digits."""
    if time < 120:
        number, unit = f"{time:.{int(time < 10)}f}", "s"
    elif time < 2 * 3600:
        number, unit = f"{time / 60:.0f}", "min"
    else:
        number, unit = f"{time / 3600:.1f}", "h"
    return f"{number}{UNBROKEN}{unit}"


def interval(found: Sequence[float] | None, write: Write = nats) -> str:
    """Write an interval; empty where there is none."""
    return "" if found is None else f"{write(found[0])} to {write(found[1])}"


def interval_of(quality: Mapping[str, Any], key: str) -> Sequence[float] | None:
    """Find the interval of a measured number; None where none was measured."""
    found = (quality.get("intervals") or {}).get(key)
    return found if found is None or None not in found else None


def sure(quality: Mapping[str, Any], key: str, write: Write) -> str:
    """Write a measured number, with its interval on a line below where there is one."""
    between = interval(interval_of(quality, key), write)
    return write(quality.get(key)) + (f"\n{between}" if between else "")


def breakable(text: str) -> Markup:
    """Let a path or the name of a layer break behind its dots and slashes."""
    written = escape(text)
    for sign in (".", "/"):
        written = written.replace(sign, Markup(f"{sign}<wbr>"))
    return written
