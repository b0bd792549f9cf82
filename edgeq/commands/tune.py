"""`edgeq tune`: a finished checkpoint, tuned on what its original predicts.

Heavy imports stand inside of the command.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeq.commands.choices import CHECKPOINT, DIRECTORY, MODEL, SettingValue
from edgeq.commands.fitting import naming_what_fits
from edgeq.commands.groups import GroupedCommand, grouped_option
from edgeq.commands.options import (
    BACKEND_OPTION,
    CALIBRATION_OPTION,
    FORCE_OPTION,
    JSON_OPTION,
    MAX_RAM_OPTION,
    MAX_VRAM_OPTION,
    RESUME_OPTION,
    Command,
    in_group,
    metavar_of,
    with_flag,
)
from edgeq.commands.typed import command_words
from edgeq.recipe.setting_rows import DEFAULT_QUALITY
from edgeq.recipe.settings import OF_TUNING, TABLE

if TYPE_CHECKING:
    from rich.console import Console

    from edgeq.run.tune_run import TunedRun


def tuning_options(command: Command) -> Command:
    """Add the options that set what a recipe says of tuning; None means that one was not given."""
    for name, of_recipe in reversed(list(OF_TUNING.items())):
        row = TABLE[of_recipe]
        if row.rule.kind is bool:
            command = grouped_option(
                f"{flag_of(name)}/--no-{flag_of(name)[2:]}",
                name,
                default=None,
                group="everyday",
                help=f"{row.help}  [default: as CHECKPOINT's recipe, or no-codes]",
            )(command)
            continue
        add = grouped_option(
            flag_of(name),
            name,
            type=SettingValue(row.rule),
            metavar=(row.option.metavar if row.option else None) or metavar_of(row.rule),
            group="text" if name == "sequence_length" else "everyday",
            help=f"{row.help}  [default: as CHECKPOINT's recipe, or {default_of(of_recipe)}]",
        )
        command = add(command)
    return command


def flag_of(name: str) -> str:
    """Write the option of a name."""
    return f"--{name.replace('_', '-')}"


def default_of(name: str) -> str:
    """Write the default of a setting."""
    return f"{TABLE[name].defaults[DEFAULT_QUALITY]:g}"


@click.command(
    name="tune",
    cls=GroupedCommand,
    short_help="Tune CHECKPOINT on what its original predicts, at no byte.",
)
@click.argument("checkpoint", type=CHECKPOINT)
@grouped_option(
    "--reference",
    type=MODEL,
    required=True,
    metavar="MODEL",
    group="everyday",
    help="The original that CHECKPOINT was made from: a directory, a .gguf file, a hub name.",
)
@grouped_option(
    "-o",
    "--output",
    type=DIRECTORY,
    group="everyday",
    help="Write to this directory; must not exist.  [default: CHECKPOINT-tuned]",
)
@tuning_options
@MAX_RAM_OPTION
@MAX_VRAM_OPTION
@RESUME_OPTION
@in_group(FORCE_OPTION, "everyday")
@CALIBRATION_OPTION
@grouped_option(
    "--exact",
    is_flag=True,
    group="expert",
    help="Pass in float32 throughout, also where the processor multiplies faster in bfloat16.",
)
@in_group(JSON_OPTION, "output")
@in_group(BACKEND_OPTION, "expert")
def tune_command(  # noqa: PLR0913, PLR0917 (one argument per option)
    checkpoint: Path,
    reference: str,
    output: Path | None,
    force: bool,
    resume: bool,
    calibration: tuple[str, ...],
    max_ram: str | None,
    max_vram: str | None,
    exact: bool,
    as_json: bool,
    backend: str,
    **options: Any,
) -> None:
    """Tune CHECKPOINT so that it predicts what MODEL predicts.

    Scales, offsets and norms move, with --codes a few codes too; sizes stay. Windows of text that
    are held out decide what is kept; where nothing was gained, nothing changes.

    \b
    Example:
      edgeq tune smollm2-3bit --reference demo --output smollm2-3bit-tuned
    """
    from edgeq.api.closing import close_tuning  # noqa: PLC0415
    from edgeq.commands.progress import watching  # noqa: PLC0415
    from edgeq.commands.quantize import opening_shown  # noqa: PLC0415
    from edgeq.commands.screen import make_console, print_json, print_line  # noqa: PLC0415
    from edgeq.run.fitting import Sizes  # noqa: PLC0415
    from edgeq.run.spending import Place  # noqa: PLC0415
    from edgeq.run.tune_run import (  # noqa: PLC0415
        TuneAsked,
        default_tuned,
        prepare_tuning,
        run_tuning,
    )

    given = {}
    for name, of_recipe in OF_TUNING.items():
        if options[name] is not None:
            TABLE[of_recipe].rule.check(flag_of(name), options[name])
            given[of_recipe] = options[name]
    place = Place(output or default_tuned(checkpoint), force, resume)
    sizes = Sizes(max_ram, max_vram)
    asked = TuneAsked(checkpoint, reference, place, given, calibration, backend, sizes, exact)
    with opening_shown(reference, plain=as_json), naming_what_fits():
        job = prepare_tuning(asked)
    again = command_words(*with_flag(sys.argv[1:], "--resume"))
    console = make_console(stderr=True)
    for note in job.notes:  # before hours of work, too: another reference may have been meant
        print_line(console, f"note: {note}")
    with watching(console, plain=as_json, log_file=None, output=place.output) as observer:
        found = close_tuning(run_tuning(job, observer, again=again))
    if as_json:
        print_json(found.plain())
    else:
        show_tuned(make_console(), found)


def show_tuned(console: "Console", found: "TunedRun") -> None:
    """Print what tuning gained, and what to do with the result."""
    from edgeq.commands.finished_screen import megabytes, tuning_lines  # noqa: PLC0415
    from edgeq.commands.plain_text import visible_line  # noqa: PLC0415
    from edgeq.commands.screen import facts_table, print_line  # noqa: PLC0415
    from edgeq.registry import find_format  # noqa: PLC0415
    from edgeq.run.finished import first_format  # noqa: PLC0415
    from edgeq.words import show_time  # noqa: PLC0415

    checkpoint = found.checkpoint
    print_line(console, f"{visible_line(checkpoint.record.name)}: {found.report.line()}")
    console.print()
    table = facts_table()
    table.add_row("checkpoint", f"{checkpoint.path}, {megabytes(found.sizes['checkpoint'])}")
    table.add_row("tuning", "\n".join(tuning_lines(found.report)))
    table.add_row("time", show_time(sum(found.seconds.values())))
    if found.page is not None:
        table.add_row("report", str(found.page))
    for note in found.notes:
        table.add_row("note", note)
    console.print(table, highlight=False, soft_wrap=not console.is_terminal)
    console.print()
    words = ("evaluate", checkpoint.path, "--reference", found.original)
    print_line(console, f"measure it: {command_words(*words)}")
    suggested = first_format(checkpoint)
    if suggested is not None:
        words = ("export", checkpoint.path, "--format", suggested)
        print_line(console, f"for {find_format(suggested).read_by}: {command_words(*words)}")
