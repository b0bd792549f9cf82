"""`edgeq export`. Heavy imports stand inside of the command."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeq.commands.options import (
    FORCE_OPTION,
    JSON_OPTION,
    PATH,
    format_options,
    option_words,
)

if TYPE_CHECKING:
    from rich.console import Console


@click.command(name="export")
@click.argument("checkpoint", type=PATH, required=False)
@click.option("--format", "format_name", help="Write this format, one of those that --list shows.")
@click.option(
    "--list",
    "listed",
    is_flag=True,
    help="Show all formats, and whether CHECKPOINT fits each without loss.",
)
@click.option(
    "-o", "--output", type=PATH, help="Write to this directory.  [default: CHECKPOINT/FORMAT]"
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
    **options: Any,
) -> None:
    """Write a quantized CHECKPOINT in the format of a runtime.

    \b
    Examples:
      edgeq export smollm2 --format gguf
      edgeq export --list smollm2
    """
    from edgeq.commands.screen import print_result, show_exported  # noqa: PLC0415

    if listed and option_words(options):
        raise click.UsageError(
            f"--list shows all formats; leave out {' '.join(option_words(options))}"
        )
    if listed:
        print_result(list_formats(checkpoint), as_json, show_formats)
        return
    if checkpoint is None or format_name is None:
        raise click.UsageError("give CHECKPOINT and --format, or --list")
    written = write_export(checkpoint, format_name, options, output, force=force)
    print_result(written, as_json, show_exported)


def write_export(
    checkpoint: Path,
    format_name: str,
    options: Mapping[str, Any],
    output: Path | None,
    *,
    force: bool,
) -> dict[str, Any]:
    """Write a format and say what was written. Units: bytes."""
    from edgeq.checkpoint.reader import Checkpoint  # noqa: PLC0415
    from edgeq.files.storage import size_of  # noqa: PLC0415
    from edgeq.registry import load_exporter  # noqa: PLC0415
    from edgeq.run.pipeline import export  # noqa: PLC0415

    exporter = load_exporter(format_name, options)
    destination = output if output is not None else checkpoint / format_name
    written = export(Checkpoint(checkpoint), exporter, destination, force=force)
    files = {str(path): size_of(path) for path in written}
    return {"format": exporter.name, "result": str(written[0]), "files": files}


def list_formats(checkpoint: Path | None) -> dict[str, Any]:
    from edgeq.checkpoint.reader import Checkpoint  # noqa: PLC0415
    from edgeq.measuring.formats import formats  # noqa: PLC0415

    named = None if checkpoint is None else str(checkpoint)
    return {
        "checkpoint": named,
        "formats": formats(None if checkpoint is None else Checkpoint(checkpoint)),
    }


def show_formats(console: "Console", result: Mapping[str, Any]) -> None:
    for row in result["formats"]:
        if "missing" in row:
            console.print(f"{row['name']}: {row['missing']}", highlight=False, soft_wrap=True)
            continue
        held = (
            f"bits {' '.join(map(str, row['bits']))}; "
            f"groups {' '.join(row['groups'])}; zero points "
        )
        held += " ".join(
            kind + ("" if kind in row["zeros_without_loss"] else " (rounded)")
            for kind in row["zeros"]
        )
        held += f"; embedding and head {row['embedding']}" + (
            "; outlier columns" if row["outlier_columns"] else ""
        )
        console.print(f"{row['name']}: {held}", highlight=False, soft_wrap=True)
        if "fits" in row:
            fits = {
                "no": "does not fit",
                "without loss": "fits without loss",
                "with loss": "fits with loss",
            }
            reason = f": {row['reason']}" if row["reason"] else ""
            console.print(f"  {fits[row['fits']]}{reason}", highlight=False, soft_wrap=True)
