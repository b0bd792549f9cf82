"""`edgeq export`: one format written from a checkpoint.

Heavy imports stand inside of the command.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgeq.commands.choices import CHECKPOINT, DIRECTORY, FORMAT
from edgeq.commands.formats import FormatCommand, format_options, list_formats, show_formats
from edgeq.commands.options import FORCE_OPTION, JSON_OPTION
from edgeq.registry import FORMATS
from edgeq.words import option_words


@click.command(name="export", cls=FormatCommand)
@click.argument("checkpoint", type=CHECKPOINT, required=False)
@click.option(
    "--format",
    "format_name",
    type=FORMAT,
    metavar="FORMAT",
    help=f"Write this format: one of {', '.join(FORMATS)}.",
)
@click.option(
    "--list",
    "listed",
    is_flag=True,
    help="Show all formats, and whether CHECKPOINT fits each without loss.",
)
@click.option(
    "-o", "--output", type=DIRECTORY, help="Write to this directory.  [default: CHECKPOINT/FORMAT]"
)
@format_options
@JSON_OPTION
@FORCE_OPTION
def export_command(
    checkpoint: Path | None,
    format_name: str | None,
    listed: bool,
    output: Path | None,
    as_json: bool,
    force: bool,
    export_options: Mapping[str, Any],
) -> None:
    """Write a quantized CHECKPOINT in the format of a runtime.

    \b
    Examples:
      edgeq export smollm2 --format gguf
      edgeq export --list smollm2
    """
    from edgeq.commands.screen import print_result, show_exported  # noqa: PLC0415
    from edgeq.run.exporting import write_export  # noqa: PLC0415

    words = option_words(export_options)
    if listed and words:
        raise click.UsageError(f"--list shows all formats; leave out {' '.join(words)}")
    if listed:
        print_result(list_formats(checkpoint), as_json, show_formats)
        return
    if checkpoint is None or format_name is None:
        raise click.UsageError("give CHECKPOINT and --format, or --list")
    written = write_export(checkpoint, format_name, export_options, output, force=force)
    print_result(written, as_json, show_exported)
