"""The command line. Everything heavy is imported inside the commands, so that --help answers at
once.
"""

import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeq.commands.export import export_command, verify_command
from edgeq.commands.failures import report_failure
from edgeq.commands.options import (
    BACKEND_OPTION,
    FORCE_OPTION,
    JSON_OPTION,
    PATH,
    RESUME_OPTION,
    STRENGTH,
    TEXT,
    collect_settings,
    format_options,
    option_words,
    with_flag,
)
from edgeq.commands.plan import plan_command
from edgeq.commands.signals import stopping_on_signals
from edgeq.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from edgeq.run.pipeline import Job


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edgeq")
def cli() -> None:
    """Make language models small enough for laptops and phones: solve once, export everywhere.

    \b
    Example:
      edgeq quantize demo --output smollm2 --export gguf --evaluate
    """


@cli.command(name="quantize")
@click.argument("model")
@click.option(
    "-o", "--output", required=True, type=PATH, help="Directory to write; must not exist."
)
@click.option(
    "--quality",
    help="fast (one stream, no propagation: about the time of "
    "plain GPTQ), balanced (propagation and sweeps: about "
    "1.7 times that) or best (twice the sequences, "
    "both streams on all of them: about four times).  "
    "[default: balanced]",
)
@click.option(
    "--bits",
    type=int,
    help="Bits per weight of the linear layers, 2 to 8; 16 keeps them.  [default: 4]",
)
@click.option("--group-size", help="Columns that share a scale, or 'row' for all.  [default: 32]")
@click.option(
    "--symmetric/--asymmetric",
    default=None,
    help="Whether zero lies in the middle of the grid.  [default: symmetric]",
)
@click.option("--solver", help="gptq, quantease or rtn (round to nearest).  [default: gptq]")
@click.option(
    "--scales",
    help="Stages of scale fitting: none (min-max), first, both.  [default: both; fast: first]",
)
@click.option(
    "--outlier-columns",
    type=float,
    metavar="SHARE",
    help="Share of a layer's input columns kept in 16 bits "
    "beside the codes, such as 0.01.  [default: 0]",
)
@click.option(
    "--propagation-strength",
    type=STRENGTH,
    help="How far a layer makes up for earlier layers' "
    "errors, 0 to 1, or auto.  [default: 0.5; fast: 0]",
)
@click.option(
    "--propagation-damping",
    type=float,
    help="Damping of that correction, as a share of the mean input energy.  [default: 0.1]",
)
@click.option(
    "--damping",
    type=float,
    help="Damping of the solver, as a share of the mean input energy.  [default: 0.01]",
)
@click.option(
    "--activation-order/--no-activation-order",
    default=None,
    help="Solve the columns with the largest inputs first.  [default: activation-order]",
)
@click.option(
    "--embedding-bits",
    type=int,
    help="Bits of embedding and head; 16 keeps them dense.  [default: 8]",
)
@click.option(
    "--keep-dense",
    multiple=True,
    metavar="PATTERN",
    help="Leave layers that match as they are, such as '*.down_proj'.",
)
@click.option(
    "--calibration",
    type=TEXT,
    multiple=True,
    metavar="TEXT[=SHARE]",
    help='UTF-8 text or JSON lines with "text"; default, the '
    "text that ships with edgeq; self, text that the model "
    "writes first. May be repeated, mixed by share.  [default: default]",
)
@click.option("--samples", type=int, help="Calibration sequences.  [default: 64; best: 128]")
@click.option("--sequence-length", type=int, help="Tokens per sequence.  [default: 512]")
@click.option(
    "--seed",
    type=int,
    help="Where calibration sequences and annealing start, and what self writes.  [default: 0]",
)
@click.option(
    "--recipe", type=PATH, help="TOML file with the settings of docs/cli.md; options win."
)
@click.option(
    "--export",
    "exports",
    multiple=True,
    metavar="FORMAT",
    help="Also write this format (see edgeq export --list); may be repeated.",
)
@format_options
@click.option(
    "--max-ram",
    metavar="SIZE",
    help="Stay within this much memory, such as 8GB: slower where it must be.",
)
@click.option("--log-file", type=PATH, help="Append a line for every layer to this file.")
@click.option(
    "--evaluate",
    "evaluated",
    is_flag=True,
    help="Measure the result against the original at the end.",
)
@BACKEND_OPTION
@JSON_OPTION
@FORCE_OPTION
@RESUME_OPTION
def quantize_command(  # noqa: PLR0913, PLR0917 (one argument per option)
    model: str,
    output: Path,
    exports: tuple[str, ...],
    evaluated: bool,
    backend: str,
    as_json: bool,
    force: bool,
    resume: bool,
    recipe: Path | None,
    calibration: tuple[str, ...],
    accuracy_level: int | None,
    qdq: bool | None,
    max_ram: str | None,
    log_file: Path | None,
    **options: Any,
) -> None:
    """Quantize MODEL: a directory of safetensors, a .gguf file, a hub name, or the word demo.

    \b
    Examples:
      edgeq quantize demo --output smollm2 --export gguf --evaluate
      edgeq quantize ./Llama-3.2-1B --output llama-3bit --bits 3 --asymmetric --export gguf
    """
    from edgeq.commands.progress import watching  # noqa: PLC0415
    from edgeq.commands.screen import show_finished  # noqa: PLC0415
    from edgeq.commands.summary import finish_run, keeping  # noqa: PLC0415
    from edgeq.files.storage import check_destination  # noqa: PLC0415
    from edgeq.measuring.evaluate import check_evaluation, evaluate  # noqa: PLC0415
    from edgeq.registry import options_of  # noqa: PLC0415
    from edgeq.run.assembly import make_job  # noqa: PLC0415
    from edgeq.run.pipeline import quantize  # noqa: PLC0415
    from edgeq.sources import open_source  # noqa: PLC0415

    check_destination(
        output, force=force or resume, source=Path(model).expanduser() if model != "demo" else None
    )
    of_formats = {"accuracy_level": accuracy_level, "qdq": qdq}
    job = make_job(
        open_source(model),
        collect_settings(recipe, options),
        backend=backend,
        calibration=calibration,
        exports=exports,
        export_options=of_formats,
    )
    if evaluated:
        check_evaluation(job.source, exports, backend)
    job = planned(job, max_ram, output.parent)
    again = shlex.join(["edgeq", *with_flag(sys.argv[1:], "--resume")])
    with watching(
        make_console(stderr=True), plain=as_json, log_file=log_file, output=output
    ) as observer:
        checkpoint = quantize(job, output, observer, force=force, resume=resume, again=again)
    flags = {name: option_words(options_of(name, of_formats)) for name in exports}
    with keeping(checkpoint, flags, evaluated_against=model if evaluated else None):
        summary = finish_run(job, checkpoint, model)
        if evaluated:
            summary["quality"] = evaluate(summary["result"], reference=model, backend=backend)
    report(summary, as_json, show_finished)


cli.add_command(plan_command(quantize_command))
cli.add_command(export_command)
cli.add_command(verify_command)


@cli.command(name="evaluate")
@click.argument("target")
@click.option("--reference", help="The original model: adds KL divergence and top-1 agreement.")
@click.option(
    "--text", type=PATH, help="UTF-8 text or JSON lines.  [default: a text that ships with edgeq]"
)
@click.option(
    "--windows",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Windows of the text to use.",
)
@click.option(
    "--sequence-length",
    type=click.IntRange(8),
    help="Tokens per window.  [default: 512, or fewer if the model does]",
)
@click.option(
    "--runtime",
    help="torch, mlx, llama.cpp, mlx-lm, onnxruntime.  "
    "[default: an export's own, else the backend's]",
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
    """Perplexity of TARGET (checkpoint, model, GGUF file or export), and how far it is from the
    original.

    \b
    Example:
      edgeq evaluate smollm2/gguf/model.gguf --reference demo
    """
    from edgeq.commands.screen import show_quality  # noqa: PLC0415
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
    report(quality, as_json, show_quality)


@cli.command(name="inspect")
@click.argument("path")
@JSON_OPTION
def inspect_command(path: str, as_json: bool) -> None:
    """What a model or quantized checkpoint holds: tensors, shapes, bits per weight, size.

    \b
    Example:
      edgeq inspect smollm2
    """
    from edgeq.commands.screen import show_inspection  # noqa: PLC0415
    from edgeq.measuring.inspection import inspect_model  # noqa: PLC0415

    report(inspect_model(path), as_json, show_inspection)


def planned(job: "Job", max_ram: str | None, folder: Path) -> "Job":
    """The job run the way that fits into max_ram; what annealing will take is said before it
    starts.
    """
    from edgeq.run.assembly import fit_job  # noqa: PLC0415
    from edgeq.run.forecast import annealing_note  # noqa: PLC0415

    job, memory = fit_job(job, max_ram, folder)
    if note := annealing_note(job, memory):
        click.echo(note, err=True)
    return job


def report(
    result: Mapping[str, Any], as_json: bool, show: Callable[["Console", Mapping[str, Any]], None]
) -> None:
    """The result on standard output, for machines or for people."""
    if as_json:
        click.echo(json.dumps(finite(result), indent=2, allow_nan=False))
    else:
        show(make_console(), result)


def finite(value: Any) -> Any:
    """The same data with null for infinity and NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def make_console(*, stderr: bool = False) -> "Console":
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=stderr, markup=False)


def main() -> None:
    """Run the command line: 0 when done, 1 with one line for errors, 2 for usage, 128 + N when
    signal N stopped it.
    """
    try:
        with stopping_on_signals():
            sys.exit(cli.main(standalone_mode=False))
    except SystemExit:
        raise
    except BaseException as error:  # also Ctrl-C and other signals
        sys.exit(report_failure(error))
