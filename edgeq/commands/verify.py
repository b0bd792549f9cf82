"""`edgeq verify`: an export read back and compared.

Heavy imports stand inside of the command.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeq.commands.choices import CHECKPOINT, PATH
from edgeq.commands.options import BACKEND_OPTION, JSON_OPTION

if TYPE_CHECKING:
    from rich.console import Console


@click.command(name="verify", short_help="Check an EXPORT on disk against its manifest.")
@click.argument("export", type=PATH)
@click.option(
    "--against",
    type=CHECKPOINT,
    metavar="CHECKPOINT",
    help="Compare tensor by tensor with the checkpoint it was made from.",
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
    """Read an EXPORT back from disk and check it against its manifest.

    Every difference is one line, and the exit status is then 1.

    \b
    Example:
      edgeq verify smollm2/gguf --against smollm2 --run
    """
    from edgeq.commands.screen import print_result  # noqa: PLC0415
    from edgeq.measuring.checking import check_export  # noqa: PLC0415

    if running and against is None:
        raise click.UsageError(
            "--run compares with the checkpoint's weights; add --against CHECKPOINT"
        )
    result = check_export(export, against=against, backend=backend, running=running)
    print_result(result, as_json, show_verified)
    if result["differences"]:
        sys.exit(1)


def show_verified(console: "Console", result: Mapping[str, Any]) -> None:
    """Print every difference, then what was compared and the verdict."""
    from edgeq.commands.screen import print_line  # noqa: PLC0415

    for line in result["differences"]:
        print_line(console, line)
    statuses = ", ".join(f"{count} {status}" for status, count in result["statuses"].items())
    text = f"{result['format']}, read with {result['library']}: {statuses}"
    if result["largest_deviation"] is not None:
        text += f"; largest deviation from the checkpoint {result['largest_deviation']:.3g}"
    print_line(console, text)
    if "run" in result:
        for line in describe_run(result["run"]):
            print_line(console, line)
    verdict = "everything as it was written"
    if result["differences"]:
        verdict = f"{len(result['differences'])} differences"
    print_line(console, verdict)


def describe_run(run: Mapping[str, Any]) -> Iterator[str]:
    """Say how an export ran, as users run it and in float32, beside the checkpoint's weights."""
    beside = f"beside its checkpoint in {run['reference']}"
    yield f"{run['runtime']} on {run['tokens']} tokens, {beside}:"
    found = "NaN or infinity"
    if run["kl"] is not None:
        found = (
            f"KL divergence {run['kl']:.2g} (allowed {run['allowed_kl']:.2g}), "
            f"same top token {run['top1_agreement']:.1%}"
        )
    yield f"  as users run it, {run['activations']} activations: {found}"
    exact = "NaN or infinity"
    if run["exact_kl"] is not None:
        exact = f"KL divergence {run['exact_kl']:.2g} (allowed {run['allowed_exact_kl']:.2g})"
    yield f"  in float32: {exact}"
