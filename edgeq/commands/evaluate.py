"""`edgeq evaluate`: the options of a measurement.

Heavy imports stand inside of the command.
"""

from pathlib import Path

import click

from edgeq.commands.choices import MODEL, PATH, RUNTIME
from edgeq.commands.options import BACKEND_OPTION, JSON_OPTION
from edgeq.registry import LOGITS


@click.command(name="evaluate")
@click.argument("target", type=MODEL)
@click.option(
    "--reference",
    type=MODEL,
    metavar="MODEL",
    help="Compare with the original model: adds KL divergence and top-1 agreement.",
)
@click.option(
    "--text",
    type=PATH,
    help='Measure on UTF-8 text, or JSON lines or an array with "text" or chat "messages".  '
    "[default: a text that ships with edgeq]",
)
@click.option(
    "--windows",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Use this many windows of the text.",
)
@click.option(
    "--sequence-length",
    type=click.IntRange(8),
    help="Read this many tokens per window.  [default: 512, or fewer if the model does]",
)
@click.option(
    "--runtime",
    type=RUNTIME,
    metavar="NAME",
    help=f"Run it in one of {', '.join(LOGITS)}.  [default: an export's own, else the backend's]",
)
@BACKEND_OPTION
@JSON_OPTION
def evaluate_command(
    target: str,
    reference: str | None,
    text: Path | None,
    windows: int,
    sequence_length: int | None,
    runtime: str | None,
    backend: str,
    as_json: bool,
) -> None:
    """Measure the perplexity of TARGET, and how far it is from the original.

    TARGET is a checkpoint, a model, a GGUF file or the directory of an export.

    \b
    Example:
      edgeq evaluate smollm2/gguf --reference demo
    """
    from edgeq.commands.screen import print_result, show_quality  # noqa: PLC0415
    from edgeq.measuring.evaluate import evaluate  # noqa: PLC0415

    quality = evaluate(
        target,
        reference=reference,
        backend=backend,
        text=None if text is None else str(text),
        windows=windows,
        sequence_length=sequence_length,
        runtime=runtime,
    )
    print_result(quality, as_json, show_quality)
