"""`edgeq imatrix`: the importance matrix of a model, in llama.cpp's file format.

Heavy imports stand inside of the command.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeq.commands.choices import MODEL, PATH, SettingValue
from edgeq.commands.options import (
    BACKEND_OPTION,
    CALIBRATION_OPTION,
    FORCE_OPTION,
    JSON_OPTION,
    MAX_RAM_OPTION,
    MAX_VRAM_OPTION,
    REVISION_OPTION,
    Command,
    collect_settings,
    metavar_of,
)
from edgeq.recipe.setting_rows import PLAIN
from edgeq.recipe.settings import TABLE

if TYPE_CHECKING:
    from rich.console import Console

    from edgeq.run.imatrix import Measured
    from edgeq.run.pipeline import Job


def of_setting(name: str) -> Callable[[Command], Command]:
    """Make the option of a setting, without the defaults of presets."""
    row = TABLE[name]
    text = f"{row.help}  [default: {row.defaults[PLAIN]}]"
    value = SettingValue(row.rule)
    return click.option(row.flag, row.name, type=value, metavar=metavar_of(row.rule), help=text)


@click.command(name="imatrix", short_help="Measure the importance matrix of MODEL.")
@click.argument("model", type=MODEL)
@REVISION_OPTION
@click.option(
    "-o", "--output", required=True, type=PATH, help="Write to this .gguf file; must not exist."
)
@CALIBRATION_OPTION
@of_setting("samples")
@of_setting("sequence_length")
@of_setting("seed")
@MAX_RAM_OPTION
@MAX_VRAM_OPTION
@BACKEND_OPTION
@JSON_OPTION
@FORCE_OPTION
def imatrix_command(  # noqa: PLR0913, PLR0917 (one argument per option)
    model: str,
    revision: str | None,
    output: Path,
    calibration: tuple[str, ...],
    max_ram: str | None,
    max_vram: str | None,
    backend: str,
    as_json: bool,
    force: bool,
    **options: Any,
) -> None:
    """Measure the importance matrix of MODEL, for llama-quantize or edgeq quantize --imatrix.

    The original model runs over calibration text. The file has the mean squares of what each of its
    linear layers gets, as llama-imatrix writes them.

    \b
    Example:
      edgeq imatrix demo --output demo.imatrix.gguf --samples 16
    """
    from edgeq.commands.progress import watching  # noqa: PLC0415
    from edgeq.commands.screen import make_console, print_result  # noqa: PLC0415
    from edgeq.files.storage import check_output_file  # noqa: PLC0415
    from edgeq.run.assembly import make_job  # noqa: PLC0415
    from edgeq.run.fitting import Sizes, fit_job  # noqa: PLC0415
    from edgeq.sources import at_revision, needing_gguf, open_source  # noqa: PLC0415

    with needing_gguf("writing an importance matrix"):
        from edgeq.run.imatrix import (  # noqa: PLC0415
            RUNNING,
            check_names,
            measure_importance,
            write_importance,
        )
        from edgeq.sources.imatrix_file import is_imatrix  # noqa: PLC0415

    check_output_file(output, force=force, is_own=is_imatrix)
    source = open_source(at_revision(model, revision))
    check_names(source)
    settings = {**RUNNING, **collect_settings(None, options)}
    job = make_job(source, settings, backend=backend, calibration=calibration)
    job, _ = fit_job(job, Sizes(max_ram, max_vram), output.parent)
    console = make_console(stderr=True)
    with watching(console, plain=as_json, log_file=None, output=output) as observer:
        with job.backend.working():
            measured = measure_importance(job, observer)
    write_importance(measured, output)
    print_result(describe_matrix(job, measured, output), as_json, show_imatrix)


def describe_matrix(job: "Job", measured: "Measured", output: Path) -> dict[str, Any]:
    """Say what was measured, on what, and what is not in it.

    Units: bytes, seconds.
    """
    from edgeq.run.assembly import length_notes  # noqa: PLC0415
    from edgeq.run.finished import short_texts  # noqa: PLC0415

    calibration, record = measured.calibration, job.source.record
    short = short_texts(job.recipe, calibration.record())
    return {
        "model": record.name,
        "output": str(output),
        "bytes": output.stat().st_size,
        "entries": len(measured.entries),
        "tokens": calibration.windows.size,
        "texts": list(calibration.texts),
        "notes": [
            *record.notes,
            *length_notes(job.recipe, job.source),
            *job.text_notes,
            *measured.notes(),
            *short,
        ],
        "seconds": dict(job.clock.seconds),
    }


def show_imatrix(console: "Console", result: Mapping[str, Any]) -> None:
    """Print what was measured, and what to do with it."""
    from edgeq.commands.screen import facts_table  # noqa: PLC0415
    from edgeq.words import show_size, show_time  # noqa: PLC0415

    table = facts_table()
    table.add_row("model", result["model"])
    table.add_row("written to", f"{result['output']}, {show_size(result['bytes'])}")
    table.add_row("entries", f"{result['entries']}, of {result['tokens']} tokens")
    table.add_row("time", show_time(sum(result["seconds"].values())))
    for note in result["notes"]:
        table.add_row("note", note)
    console.print(table, highlight=False, soft_wrap=True)
