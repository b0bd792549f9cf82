"""What people see when a command is done: one screen of results, or one JSON object.

What is computed is said elsewhere; here is how it is written. Imports rich, so commands import
this module when they run.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeq.commands.plain_text import visible, visible_line
from edgeq.commands.typed import shell_line
from edgeq.files.json_files import finite
from edgeq.run.allocation import curve_words, gain_words
from edgeq.run.apps import app_lines

MEGABYTE = 1e6


class PlainConsole(Console):
    """A console for text with names of somebody else's: it obeys nothing that stands in it."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


def make_console(*, stderr: bool = False) -> Console:
    """Make a console that prints text as it is, without markup, emoji codes and escapes."""
    return PlainConsole(stderr=stderr, markup=False, emoji=False)


def print_line(console: Console, text: str) -> None:
    """Print one line, however long, also where a name in it has line ends."""
    console.print(visible_line(text), highlight=False, soft_wrap=True)


def print_result(
    result: Mapping[str, Any], as_json: bool, show: Callable[[Console, Mapping[str, Any]], None]
) -> None:
    """Print a result on standard output, for machines or for people."""
    if as_json:
        print_json(result)
    else:
        show(make_console(), result)


def print_json(result: Mapping[str, Any]) -> None:
    """Print one JSON object on standard output."""
    click.echo(json.dumps(finite(result), indent=2, allow_nan=False))


def facts_table() -> Table:
    """Make a table of two columns without lines; long paths wrap instead of being cut."""
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    return table


def show_runtime(console: Console, format_name: str, path: str) -> None:
    """Print the commands that run an exported file, in each app that its format names."""
    for when, command in run_commands(format_name, path):
        print_line(console, f"{when}: {command}")


def run_commands(format_name: str, path: str) -> list[tuple[str, str]]:
    """List the commands that run an exported file, with the app that each needs."""
    found = []
    for label, lines in app_lines(format_name, path):
        is_there = all(shutil.which(line[0]) for line in lines)
        when = f"in {label}" if is_there else f"with {label} installed"
        found.append((when, " && ".join(map(shell_line, lines))))
    return found


def show_allocation(console: Console, found: Mapping[str, Any]) -> None:
    """Print the result of `edgeq allocate`: how a budget is spent, and other sizes."""
    table = facts_table()
    table.add_row("model", found["model"])
    table.add_row("recipe", found["recipe"])
    table.add_row("budget", "\n".join(gain_words(found)))
    table.add_row("predicted KL", "\n".join(curve_words(found)))
    console.print(table, highlight=False, soft_wrap=True)


def show_exported(console: Console, result: Mapping[str, Any]) -> None:
    """Print the result of `edgeq export`."""
    for path, size in result["files"].items():
        print_line(console, f"{path}  {size / MEGABYTE:.1f} MB")
    for note in result["notes"]:
        print_line(console, f"note: {note}")
    show_runtime(console, result["format"], result["result"])


def show_inspection(console: Console, result: Mapping[str, Any]) -> None:
    """Print the result of `edgeq inspect`."""
    facts = (
        f"{result['model']}: {result['kind']}, {result['architecture']}, {result['blocks']} blocks",
        f"{result['parameters'] / 1e6:.1f} M parameters, {result['bytes'] / MEGABYTE:.1f} MB",
        f"{result['bits_per_weight']:.2f} bits per weight",
    )
    print_line(console, ", ".join(facts))
    for row in result["tensors"]:
        shape = " x ".join(map(str, row["shape"]))
        line = f"{row['count']:5}  {row['name']:48} {shape:14} {row['stored_as']}"
        print_line(console, line)
