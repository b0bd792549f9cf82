"""`edgeq inspect`: what lies in a model or a checkpoint.

Heavy imports stand inside of the command.
"""

import click

from edgeq.commands.choices import MODEL
from edgeq.commands.options import JSON_OPTION, REVISION_OPTION


@click.command(name="inspect", short_help="Show what a model or checkpoint holds.")
@click.argument("path", type=MODEL)
@REVISION_OPTION
@JSON_OPTION
def inspect_command(path: str, revision: str | None, as_json: bool) -> None:
    """Show what a model or quantized checkpoint holds: tensors, shapes, bits per weight, size.

    \b
    Example:
      edgeq inspect smollm2
    """
    from edgeq.commands.screen import print_result, show_inspection  # noqa: PLC0415
    from edgeq.measuring.inspection import inspect_model  # noqa: PLC0415
    from edgeq.sources import at_revision  # noqa: PLC0415

    print_result(inspect_model(at_revision(path, revision)), as_json, show_inspection)
