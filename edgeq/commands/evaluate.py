"""`edgeq evaluate`: the options of a measurement.

Heavy imports stand inside of the command.
"""

from pathlib import Path

import click

from edgeq.commands.choices import MODEL, PATH, RUNTIME
from edgeq.commands.options import BACKEND_OPTION, JSON_OPTION, TEXT
from edgeq.measuring.text_kinds import ALL_KINDS, DEFAULT_KIND, KINDS
from edgeq.registry import LOGITS


@click.command(name="evaluate", short_help="Measure how far TARGETs are from the original.")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...", type=MODEL)
@click.option(
    "--reference",
    type=MODEL,
    metavar="MODEL",
    help="Compare with the original model: adds KL divergence and same top token.",
)
@click.option(
    "--text",
    "texts",
    type=TEXT,
    multiple=True,
    metavar="NAME|FILE",
    help=f"Measure on a text that ships with edgeq: {', '.join(KINDS)}, or {ALL_KINDS}; or on a "
    'file of UTF-8 text, or JSON lines or an array with "text" or chat "messages". May be '
    f"repeated.  [default: {DEFAULT_KIND}]",
)
@click.option(
    "--windows",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Use this many windows of each text; more make intervals narrower.",
)
@click.option(
    "--sequence-length",
    type=click.IntRange(8),
    help="Read this many tokens per window.  [default: 512, or fewer if a model does]",
)
@click.option(
    "--tasks",
    type=TEXT,
    multiple=True,
    metavar="FILE|NAME",
    help='Answer questions of JSON lines with "question" or "context", "choices" and "answer", or '
    "a task of lm-eval by its name (extra tasks). May be repeated.",
)
@click.option(
    "--html", "page", type=PATH, metavar="FILE", help="Write the comparison as a web page too."
)
@click.option("--force", is_flag=True, help="Replace a page that edgeq wrote before.")
@click.option(
    "--runtime",
    type=RUNTIME,
    metavar="NAME",
    help=f"Run it in one of {', '.join(LOGITS)}.  [default: an export's own, else the backend's]",
)
@BACKEND_OPTION
@JSON_OPTION
def evaluate_command(  # noqa: PLR0913, PLR0917 (one argument per option)
    targets: tuple[str, ...],
    reference: str | None,
    texts: tuple[str, ...],
    windows: int,
    sequence_length: int | None,
    tasks: tuple[str, ...],
    page: Path | None,
    force: bool,
    runtime: str | None,
    backend: str,
    as_json: bool,
) -> None:
    """Measure the perplexity of TARGETs, and how far they are from the original.

    A TARGET is a checkpoint, a model, a GGUF or ONNX file, or a directory of an export: MLX, ONNX,
    GPTQ or compressed-tensors, of any maker. Each runs in its own runtime. Several are compared on
    the same windows of text.

    \b
    Examples:
      edgeq evaluate smollm2/gguf --reference demo
      edgeq evaluate smollm2 theirs-Q4_K_M.gguf --reference demo --text all --html compare.html
    """
    from edgeq.commands.evaluation_screen import (  # noqa: PLC0415
        show_comparison,
        show_measurement,
    )
    from edgeq.commands.progress import following  # noqa: PLC0415
    from edgeq.commands.screen import make_console, print_line, print_result  # noqa: PLC0415
    from edgeq.measuring.evaluate import evaluate_all  # noqa: PLC0415
    from edgeq.pages.compare_page import write_compare_page  # noqa: PLC0415
    from edgeq.pages.places import check_page_file  # noqa: PLC0415

    if page is not None:
        check_page_file(page, "--html", force=force)
    console = make_console(stderr=True)
    with following(console, plain=as_json) as observer:
        result = evaluate_all(
            targets,
            reference=reference,
            text=texts,
            windows=windows,
            sequence_length=sequence_length,
            runtime=runtime,
            backend=backend,
            tasks=tasks,
            progress=observer.evaluated,
        )
    if page is not None:
        write_compare_page(result, page)
    if len(targets) == 1:
        print_result(result["targets"][0], as_json, show_measurement)
    else:
        print_result(result, as_json, show_comparison)
    if page is not None:
        print_line(console, f"written: {page}")
