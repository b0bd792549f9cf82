"""`edgeq quantize`: from a model's name and settings to a checkpoint.

Heavy imports stand inside of the command.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeq.commands.budget import budget_options, take_budget
from edgeq.commands.choices import DIRECTORY, FORMAT, MODEL, PATH
from edgeq.commands.fitting import naming_what_fits
from edgeq.commands.formats import FormatCommand, format_options
from edgeq.commands.groups import grouped_option
from edgeq.commands.keeping import keeping
from edgeq.commands.options import (
    BACKEND_OPTION,
    CALIBRATION_OPTION,
    FORCE_OPTION,
    JSON_OPTION,
    MAX_RAM_OPTION,
    MAX_VRAM_OPTION,
    RESUME_OPTION,
    REVISION_OPTION,
    collect_settings,
    in_group,
    setting_options,
    with_flag,
)
from edgeq.commands.plain_text import visible_line
from edgeq.commands.typed import command_words
from edgeq.registry import FORMATS
from edgeq.words import option_words

if TYPE_CHECKING:
    from edgeq.planning.memory import MemoryPlan
    from edgeq.run.asked import Asked
    from edgeq.run.finished import FinishedRun
    from edgeq.run.pipeline import Job


@click.command(
    name="quantize",
    short_help="Make MODEL small: a directory, a .gguf file, or a hub name.",
    cls=FormatCommand,
)
@click.argument("model", type=MODEL)
@setting_options
@grouped_option(
    "--export",
    "exports",
    type=FORMAT,
    multiple=True,
    metavar="FORMAT",
    group="everyday",
    help=f"Also write this format: one of {', '.join(FORMATS)}; may be repeated.",
)
@grouped_option(
    "-o",
    "--output",
    type=DIRECTORY,
    group="everyday",
    help="Write to this directory; must not exist.  [default: MODEL's name, and bits, type or "
    "size, such as NAME-4bit]",
)
@budget_options
@MAX_RAM_OPTION
@MAX_VRAM_OPTION
@grouped_option(
    "--evaluate",
    "evaluated",
    is_flag=True,
    group="everyday",
    help="Measure the result against the original at the end.",
)
@grouped_option(
    "--verbose",
    is_flag=True,
    group="output",
    help="Print grids, the largest errors, times and all notes too.",
)
@RESUME_OPTION
@in_group(FORCE_OPTION, "everyday")
@CALIBRATION_OPTION
@grouped_option(
    "--imatrix",
    type=PATH,
    metavar="FILE",
    group="text",
    help="Round without calibrating, on scales searched by the weights of this importance matrix "
    "of llama.cpp (GGUF or .dat; see edgeq imatrix).",
)
@format_options
@in_group(JSON_OPTION, "output")
@grouped_option(
    "--log-file", type=PATH, group="output", help="Append a line for every layer to this file."
)
@grouped_option(
    "--recipe",
    type=PATH,
    group="expert",
    help="Read settings from a TOML file (docs/reference/settings.md); options win.",
)
@REVISION_OPTION
@in_group(BACKEND_OPTION, "expert")
def quantize_command(  # noqa: PLR0913, PLR0917 (one argument per option)
    model: str,
    revision: str | None,
    output: Path | None,
    exports: tuple[str, ...],
    evaluated: bool,
    verbose: bool,
    backend: str,
    as_json: bool,
    force: bool,
    resume: bool,
    recipe: Path | None,
    calibration: tuple[str, ...],
    imatrix: Path | None,
    export_options: Mapping[str, Any],
    max_ram: str | None,
    max_vram: str | None,
    log_file: Path | None,
    **options: Any,
) -> None:
    """Quantize MODEL: a directory of safetensors, a .gguf file, a hub name, or the word demo.

    \b
    Examples:
      edgeq quantize demo --output smollm2 --export gguf --evaluate
      edgeq quantize ./Llama-3.2-1B --output llama-3bit --type Q3_K --export gguf
      edgeq quantize ./Llama-3.2-1B --output llama-small --file-size 700MB --export gguf
    """
    from edgeq.run.asked import Asked, check_words, prepare_run  # noqa: PLC0415
    from edgeq.run.output_name import default_output  # noqa: PLC0415
    from edgeq.run.spending import Place  # noqa: PLC0415

    budget, settings = take_budget(options), collect_settings(recipe, options)
    output = output or default_output(model, settings, budget)
    asked = Asked(
        model,
        Place(output, force, resume),
        budget=budget,
        settings=settings,
        revision=revision,
        backend=backend,
        calibration=calibration,
        imatrix=imatrix,
        exports=exports,
        export_options=export_options,
        max_ram=max_ram,
        max_vram=max_vram,
        evaluated=evaluated,
    )
    check_words(asked)
    with opening_shown(model, plain=as_json), naming_what_fits():
        asked, job, memory = prepare_run(asked)
    say_annealing(job, memory)
    finished = run_watched(asked, job, plain=as_json, log_file=log_file)
    print_finished(finished, as_json=as_json, verbose=verbose)


@contextmanager
def opening_shown(model: str, *, plain: bool) -> Iterator[None]:
    """Show that a model is opened, and frameworks with it; downloads show themselves."""
    from edgeq.commands.progress import following  # noqa: PLC0415
    from edgeq.commands.screen import make_console  # noqa: PLC0415
    from edgeq.run.observing import OPENING  # noqa: PLC0415

    if model != "demo" and not Path(model).expanduser().exists():
        yield
        return
    with following(make_console(stderr=True), plain=plain) as observer:
        observer.progressed(OPENING)
        yield


def run_watched(asked: "Asked", job: "Job", *, plain: bool, log_file: Path | None) -> "FinishedRun":
    """Quantize, export and measure what was asked for, while people see how far it has come."""
    from edgeq.api.closing import close_run  # noqa: PLC0415
    from edgeq.commands.progress import watching  # noqa: PLC0415
    from edgeq.commands.screen import make_console  # noqa: PLC0415
    from edgeq.registry import options_of  # noqa: PLC0415
    from edgeq.run.asked import run_asked  # noqa: PLC0415
    from edgeq.run.finished import finish_run  # noqa: PLC0415

    again = command_words(*with_flag(sys.argv[1:], "--resume"))
    console, place = make_console(stderr=True), asked.place
    with watching(console, plain=plain, log_file=log_file, output=place.output) as observer:
        job, checkpoint = run_asked(asked, job, observer, again=again)
        flags = {
            name: option_words(options_of(name, asked.export_options)) for name in asked.exports
        }
        against = asked.model if asked.evaluated else None
        with keeping(checkpoint, flags, evaluated_against=against):
            finished = finish_run(job, checkpoint, asked.model, observer.progressed)
            return close_run(
                finished,
                checkpoint,
                observer,
                evaluated=asked.evaluated,
                backend=asked.backend,
            )


def print_finished(finished: "FinishedRun", *, as_json: bool, verbose: bool) -> None:
    """Print a finished run on standard output, for machines or for people."""
    from edgeq.commands.finished_screen import show_finished  # noqa: PLC0415
    from edgeq.commands.screen import make_console, print_json  # noqa: PLC0415

    if as_json:
        print_json(finished.plain())
    else:
        show_finished(make_console(), finished, verbose=verbose)


def say_annealing(job: "Job", memory: "MemoryPlan") -> None:
    """Say what annealing will take before it starts."""
    from edgeq.run.forecast import annealing_note  # noqa: PLC0415

    if note := annealing_note(job, memory):
        click.echo(visible_line(note), err=True)
