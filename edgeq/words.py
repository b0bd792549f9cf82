"""Write sizes, times, grids and commands for people, and read sizes that people wrote."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.errors import BadInput

if TYPE_CHECKING:
    from edgeq.types import Grid  # which loads NumPy, and --help reads this module

SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?))?B?\s*", re.IGNORECASE)
BRACKETS = re.compile(r" \([^()]*\)")
LARGEST_SIZE = 2.0**60  # an exabyte: beyond it a typing error is likelier than a machine
FEWEST_BYTES = 10**4  # fewer without a unit were meant in another one
MOST_GIGABYTES = 64  # more without a unit were megabytes
FEW_SECONDS = 120  # up to here times are shown in seconds
FEW_HOURS = 2 * 3600  # up to here in minutes
BY_UV_RUN = "UV_RUN_RECURSION_DEPTH"
"""The variable that `uv run` sets, and `uvx` does not."""
_program = ["edgeq"]  # what starts edgeq in the commands that messages print


def as_text(name: str) -> str:
    """Give the name of a file as text that files can hold: bytes that are no UTF-8 replaced."""
    return name.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def without_brackets(text: str) -> str:
    """Leave out what stands in brackets behind a word: numbers that change while work goes on."""
    return BRACKETS.sub("", text)


def parse_size(text: str, option: str) -> int:
    """Read the bytes of "8GB", "7.5 GiB" or "500MB".

    Raises: BadInput.
    """
    found = SIZE.fullmatch(text)
    size = 0
    if found:
        power = " KMGT".index((found[2] or " ").upper())
        stated = float(found[1]) * (1024 if found[3] else 1000) ** power
        size = int(stated) if stated < LARGEST_SIZE else 0
    expected = f"{option} {text!r}: expected a size such as 8GB, 7.5GiB or 500MB"
    if size <= 0:
        comma = SIZE.fullmatch(text.replace(",", ".", 1)) if "," in text else None
        raise BadInput(
            f"{expected}; did you mean {comma[0].replace(' ', '')}?" if comma else expected
        )
    if found and not found[2] and size < FEWEST_BYTES:
        unit = "GB" if size <= MOST_GIGABYTES else "MB"
        raise BadInput(f"{expected}, and {size} bytes hold no model; did you mean {size}{unit}?")
    return size


def show_size(size: float, *, up: bool = False) -> str:
    """Write bytes in the unit that people use; rounded up where less would not do."""
    if size < 10**5:
        return f"{math.ceil(size)} bytes"
    name, unit = ("GB", 10**9) if size >= 10**9 else ("MB", 10**6)
    digits = 1 if unit == 10**9 else 0
    if up:
        size += unit / 10**digits * 0.999  # not a whole step: what is even already stays
        return f"{int(size / unit * 10**digits) / 10**digits:.{digits}f} {name}".replace(".0 ", " ")
    return f"{size / unit:.{digits}f} {name}"


def show_megabytes(size: float, *, up: bool = False) -> str:
    """Write bytes in MB with two digits, for budgets; rounded up where less would not do."""
    hundredths = -(-(size + 1) // 10_000) if up else size / 10_000
    return f"{hundredths / 100:.2f} MB"


def budget_word(budget: Mapping[str, Any]) -> str | None:
    """Name a budget as files and directories do: 700MB, 3.4bpw, fits-6GB; None where it is none.

    Units: sizes in bytes.
    """
    for name, form in (("file_size", "{}"), ("fits", "fits-{}")):
        size = budget.get(name)
        if isinstance(size, int) and not isinstance(size, bool):
            shown = f"{size / 10**9:.9g}GB" if size >= 10**9 else f"{size / 10**6:.9g}MB"
            return form.format(shown)
    bits = budget.get("bits_per_weight")
    return f"{bits:g}bpw" if isinstance(bits, int | float) else None


def show_time(seconds: float) -> str:
    """Write a time in the unit that leaves few digits."""
    if seconds < FEW_SECONDS:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < FEW_HOURS else f"{seconds / 3600:.1f} h"


def show_counts(by_part: Mapping[str, Mapping[str, int]]) -> str:
    """Write counts by part and name on one line; a part of one thing has its name alone."""
    parts = []
    for part, counts in by_part.items():
        alone = sum(counts.values()) == 1
        named = [name if alone else f"{name}: {count}" for name, count in counts.items()]
        parts.append(f"{part} {'; '.join(named)}")
    return "\n".join(parts)


def describe_grid(grid: "Grid") -> str:
    """Write a grid as reports show it: "4 bits, group 32, symmetric", or "Q4_K" by its type."""
    outliers = f", {100 * grid.outlier_columns:g}% outlier columns" if grid.outlier_columns else ""
    if grid.type:
        return f"{grid.type}{outliers}"
    group = "row" if grid.group_size is None else grid.group_size
    return f"{grid.bits} bits, group {group}, {grid.zeros}{outliers}"


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Write options with the values they were given as words of a command line."""
    words = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(str(value))
    return words


def print_commands_with(program: Sequence[str]) -> None:
    """Let the commands that messages print start as the user started edgeq.

    The command line says it when it starts; without that they start with `edgeq`.
    """
    _program[:] = program


def edgeq_command(*words: object) -> str:
    """Write a command of edgeq that can be pasted into a shell."""
    return shell_line([*_program, *map(str, words)])


def shell_line(words: Sequence[str]) -> str:
    """Quote the words of a command for the shell of this system."""
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)


def install(extra: str = "") -> str:
    """Say what to do about a missing package; without an extra, one that edgeq always needs."""
    if not extra:
        return "install edgeq again (README, Install)"
    return f"install edgeq with its extra '{extra}': {install_command(extra)}"


def install_command(extra: str) -> str:
    """Write the command that brings an extra, with what installed edgeq here."""
    if os.environ.get(BY_UV_RUN):
        return shell_line(["uv", "sync", "--inexact", "--extra", extra])
    wanted = f"{installed_from()}[{extra}]"
    if find_spec("pip") is not None:
        return shell_line([sys.executable, "-m", "pip", "install", wanted])
    return shell_line(["uv", "pip", "install", "--python", sys.executable, wanted])


def installed_from() -> str:
    """Give what edgeq was installed from: a directory, or its name on the package index."""
    from importlib.metadata import PackageNotFoundError, distribution  # noqa: PLC0415
    from urllib.parse import unquote, urlparse  # noqa: PLC0415

    sources = Path(__file__).resolve().parent.parent
    if (sources / "pyproject.toml").is_file():
        return str(sources)
    try:
        stated = distribution("edgeq").read_text("direct_url.json")
        address = urlparse(json.loads(stated or "{}").get("url", ""))
    except (PackageNotFoundError, ValueError):
        return "edgeq"
    return unquote(address.path) if address.scheme == "file" else "edgeq"
