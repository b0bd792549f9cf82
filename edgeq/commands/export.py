"""The commands around exports. Heavy imports stand inside of the commands."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeq.commands.options import (
    BACKEND_OPTION,
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
@click.option(
    "--format", "format_name", help="The format to write, one of those that --list shows."
)
@click.option(
    "--list",
    "listed",
    is_flag=True,
    help="Show all formats, and whether CHECKPOINT fits each without loss.",
)
@click.option("-o", "--output", type=PATH, help="Directory to write.  [default: CHECKPOINT/FORMAT]")
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
    from edgeq.commands.main import report  # noqa: PLC0415
    from edgeq.commands.screen import show_exported  # noqa: PLC0415

    if listed and option_words(options):
        raise click.UsageError(
            f"--list shows all formats; leave out {' '.join(option_words(options))}"
        )
    if listed:
        report(list_formats(checkpoint), as_json, show_formats)
        return
    if checkpoint is None or format_name is None:
        raise click.UsageError("give CHECKPOINT and --format, or --list")
    report(
        write_export(checkpoint, format_name, options, output, force=force), as_json, show_exported
    )


def write_export(
    checkpoint: Path,
    format_name: str,
    options: Mapping[str, Any],
    output: Path | None,
    *,
    force: bool,
) -> dict[str, Any]:
    """What was written. Units: bytes."""
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


@click.command(name="verify")
@click.argument("export", type=PATH)
@click.option(
    "--against", type=PATH, help="The checkpoint it was made from: compares tensor by tensor."
)
@click.option(
    "--run",
    "running",
    is_flag=True,
    help="Also run it in its runtime and compare logits; needs --against.",
)
@BACKEND_OPTION
@JSON_OPTION
def verify_command(
    export: Path, against: Path | None, running: bool, backend: str, as_json: bool
) -> None:
    """Read an EXPORT back from disk and check it against its manifest; exit status 1 and one line
    per difference.

    \b
    Example:
      edgeq verify smollm2/gguf --against smollm2 --run
    """
    from edgeq.commands.main import report  # noqa: PLC0415
    from edgeq.measuring.verify import run_export, verify  # noqa: PLC0415

    if running and against is None:
        raise click.UsageError(
            "--run compares with the checkpoint's weights; add --against CHECKPOINT"
        )
    result = verify(export, against=against)
    if running and against is not None and not result["differences"]:
        run = run_export(export, against=against, backend=backend)
        result |= {"run": run, "differences": run.pop("differences")}
    report(result, as_json, show_verified)
    if result["differences"]:
        sys.exit(1)


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


def show_verified(console: "Console", result: Mapping[str, Any]) -> None:
    for line in result["differences"]:
        console.print(line, highlight=False, soft_wrap=True)
    statuses = ", ".join(f"{count} {status}" for status, count in result["statuses"].items())
    text = f"{result['format']}, read with {result['library']}: {statuses}"
    if result["largest_deviation"] is not None:
        text += f"; largest deviation from the checkpoint {result['largest_deviation']:.3g}"
    console.print(text, highlight=False, soft_wrap=True)
    if "run" in result:
        run = result["run"]
        console.print(
            f"{run['runtime']}, {run['tokens']} tokens: KL "
            f"divergence {run['kl']:.5f}, same top token "
            f"{run['top1_agreement']:.1%}, largest logit difference "
            f"{run['logit_difference']:.2g} of the largest logit",
            highlight=False,
            soft_wrap=True,
        )
    verdict = (
        f"{len(result['differences'])} differences"
        if result["differences"]
        else "everything as it was written"
    )
    console.print(verdict, highlight=False, soft_wrap=True)
