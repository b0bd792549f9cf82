"""`edgeq formats` and the options that formats bring; `edgeq export --list` shows the same rows.

Descriptions of formats are loaded when a command's options are needed, not to name the command.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeq.commands.choices import CHECKPOINT
from edgeq.commands.groups import GroupedCommand, GroupedOption
from edgeq.commands.options import JSON_OPTION

if TYPE_CHECKING:
    from rich.console import Console

    from edgeq.format_parts import FormatOption

COLLECTED = "export_options"  # the argument of a command that gets all of them
FITS = {
    "no": "does not fit",
    "without loss": "fits without loss",
    "with loss": "fits with loss",
}


class OptionsOfFormats(click.Option):
    """The place where a `FormatCommand` takes the options of all formats."""


format_options = click.option("--export-options", COLLECTED, cls=OptionsOfFormats, hidden=True)
"""Put the options of all formats here; the command must be made with cls=FormatCommand."""


class FormatCommand(GroupedCommand):
    """A command that takes the options formats describe, and passes them on as one mapping."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """List the options with those of the formats, whose values are None where not given."""
        params: list[click.Parameter] = []
        for param in super().get_params(ctx):
            params += _format_params() if isinstance(param, OptionsOfFormats) else [param]
        return params

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words of the command line, and gather what formats take."""
        rest = super().parse_args(ctx, args)
        names = [str(param.name) for param in _format_params()]
        ctx.params[COLLECTED] = {name: ctx.params.pop(name, None) for name in names}
        return rest


def _format_params() -> Sequence[click.Parameter]:
    from edgeq.registry import FORMATS  # noqa: PLC0415

    return _params_of(tuple(FORMATS.items()))


@cache
def _params_of(table: Sequence[tuple[str, str]]) -> Sequence[click.Parameter]:
    """Make an option of everything that one of the formats takes; the same one each time."""
    from edgeq.registry import find_format  # noqa: PLC0415

    takers: dict[FormatOption, list[str]] = {}
    for name, _ in table:
        for option in find_format(name).options:
            takers.setdefault(option, []).append(name)
    return [_param_of(option, ", ".join(having)) for option, having in takers.items()]


def _param_of(option: "FormatOption", having: str) -> click.Option:
    flag = f"--{option.name.replace('_', '-')}"
    text = f"{having}: {option.help}"
    if option.values is None:
        return GroupedOption([flag], is_flag=True, default=None, help=text, group="output")
    kind: click.ParamType[Any]
    if isinstance(option.values, range):
        low, high = option.values[0], option.values[-1]
        kind, shown = click.IntRange(low, high), f"{low}-{high}"
    else:
        kind = click.Choice(option.values, case_sensitive=False)
        shown = "|".join(option.values)
    return GroupedOption([flag], type=kind, metavar=shown, help=text, group="output")


@click.command(name="formats", short_help="Show all export formats, and which fit CHECKPOINT.")
@click.argument("checkpoint", type=CHECKPOINT, required=False)
@JSON_OPTION
def formats_command(checkpoint: Path | None, as_json: bool) -> None:
    """Show all export formats, and whether CHECKPOINT fits each without loss.

    \b
    Example:
      edgeq formats smollm2
    """
    from edgeq.commands.screen import print_result  # noqa: PLC0415

    print_result(list_formats(checkpoint), as_json, show_formats)


def list_formats(checkpoint: Path | None) -> dict[str, Any]:
    """List what each format holds and takes, as plain data."""
    from edgeq.checkpoint.reader import Checkpoint  # noqa: PLC0415
    from edgeq.measuring.formats import formats  # noqa: PLC0415

    named = None if checkpoint is None else str(checkpoint)
    rows = formats(None if checkpoint is None else Checkpoint(checkpoint))
    return {"checkpoint": named, "formats": rows}


def show_formats(console: "Console", result: Mapping[str, Any]) -> None:
    """Print a line for each format, and one that says whether a checkpoint fits it."""
    from edgeq.commands.screen import print_line  # noqa: PLC0415

    for row in result["formats"]:
        print_line(console, f"{row['name']}: {_held_text(row)}")
        if "missing" in row:
            print_line(console, f"  {row['missing']}")
        if "fits" in row:
            reason = f": {row['reason']}" if row["reason"] else ""
            print_line(console, f"  {FITS[row['fits']]}{reason}")
            for note in row["notes"]:
                print_line(console, f"  note: {note}")


def _held_text(row: Mapping[str, Any]) -> str:
    from edgeq.measuring.formats import types_of  # noqa: PLC0415

    lossless = row["zeros_without_loss"]
    zeros = [kind if kind in lossless else f"{kind} (rounded)" for kind in row["zeros"]]
    parts = [
        f"bits {' '.join(map(str, row['bits']))}",
        f"groups {' '.join(row['groups'])}",
        f"zero points {' '.join(zeros)}",
        *([f"types {' '.join(types_of(row))}"] if row["types"] else []),
        f"embedding and head {row['embedding']}",
        *(["outlier columns"] if row["outlier_columns"] else []),
    ]
    return "; ".join(parts)
