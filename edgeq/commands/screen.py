"""What people see when a command is done: one screen of results, or one JSON object.

What is computed is said elsewhere; here is how it is written. Imports rich, so commands import
this module when they run.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeq.commands.plain_text import visible, visible_line
from edgeq.commands.typed import command_words, shell_line
from edgeq.files.json_files import finite
from edgeq.registry import find_format
from edgeq.run.allocation import curve_words, gain_words
from edgeq.run.apps import app_lines
from edgeq.run.finished import FinishedRun
from edgeq.words import show_counts

MEGABYTE = 1e6
MOST_NOTES = 10  # on one screen
LEAST_SHOWN = 0.5  # seconds of a stage: less would be written as 0


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


def show_run(console: Console, finished: FinishedRun) -> None:
    """Print the result of `edgeq quantize`: sizes, errors, times and what was unusual."""
    table = facts_table()
    table.add_row("model", finished.model)
    table.add_row("written to", str(finished.output))
    for name, path in finished.exports.items():
        table.add_row(name, path)
    table.add_row("size", _size_row(finished.sizes))
    table.add_row("grids", show_counts(finished.grids))
    bits = finished.report.bits_per_weight
    table.add_row("bits per weight", ", ".join(f"{part} {bits[part]:.2f}" for part in bits))
    if finished.report.budget is not None:
        table.add_row("budget", "\n".join(gain_words(finished.report.budget)))
        table.add_row("predicted KL", "\n".join(curve_words(finished.report.budget)))
    experts = finished.report.experts
    if experts:
        reached = [expert.tokens for expert in experts]
        table.add_row(
            "experts", f"{len(experts)}, reached by {min(reached)} to {max(reached)} tokens"
        )
    worst = "\n".join(f"{layer.final_loss:7.2%}  {layer.name}" for layer in finished.worst_layers)
    if worst:
        unit = "in % of the layer's squared output on the calibration text"
        table.add_row("largest errors", f"{unit}\n{worst}")
    table.add_row("seconds", _seconds_row(finished))
    for note in finished.notes[:MOST_NOTES]:
        table.add_row("note", note)
    if len(finished.notes) > MOST_NOTES:
        table.add_row("note", f"... and {len(finished.notes) - MOST_NOTES} more, see report.json")
    console.print(table, highlight=False, soft_wrap=True)


def show_finished(console: Console, finished: FinishedRun) -> None:
    """Print a finished run, its quality where it was measured, and what to do next."""
    show_run(console, finished)
    if finished.quality is not None:
        show_quality(console, finished.quality)
    else:
        command = command_words("evaluate", finished.result, "--reference", finished.original)
        print_line(console, f"next: {command}")
    for name, path in finished.exports.items():
        show_runtime(console, name, path)
    if finished.next_format is not None:
        command = command_words("export", finished.output, "--format", finished.next_format)
        print_line(console, f"for {find_format(finished.next_format).read_by}: {command}")


def show_runtime(console: Console, format_name: str, path: str) -> None:
    """Print the commands that run an exported file, in each app that its format names."""
    for number, (label, lines) in enumerate(app_lines(format_name, path)):
        when = f"in {label}" if number else "run it with"
        print_line(console, f"{when}: {' && '.join(map(shell_line, lines))}")


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


def _seconds_row(finished: FinishedRun) -> str:
    """Write the time of a run with those stages that took some of it."""
    noticed = [(stage, taken) for stage, taken in finished.seconds.items() if taken >= LEAST_SHOWN]
    if not noticed:
        return "less than 1"
    stages = ", ".join(f"{stage} {taken:.0f}" for stage, taken in noticed)
    return f"{finished.total_seconds:.0f} ({stages})"


def _size_row(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {size / MEGABYTE:.1f} MB" for what, size in sizes.items())


def show_quality(console: Console, quality: Mapping[str, Any]) -> None:
    """Print the result of `edgeq evaluate`."""
    table = facts_table()
    table.add_row("runtime", f"{quality['runtime']}, {quality['tokens']} tokens")
    if quality["reference"] is not None:
        table.add_row("reference", quality["reference"])
    original = quality["reference_perplexity"]
    beside = f" (original {original:.3f})" if original else ""
    table.add_row("perplexity", f"{quality['perplexity']:.3f}{beside}")
    if quality["kl"] is not None:
        divergence = f"{quality['kl']:.4f} nats per token (0 is equal, lower is better)"
        table.add_row("KL divergence", divergence)
        table.add_row("same top token", f"{quality['top1_agreement']:.1%}")
    console.print(table, highlight=False)


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
