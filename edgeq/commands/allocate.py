"""`edgeq allocate`: the types that a budget chooses, as a recipe and without quantizing.

Heavy imports stand inside of the command.
"""

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

import click

from edgeq.commands.budget import NAMES, take_budget
from edgeq.commands.choices import PATH
from edgeq.commands.formats import FormatCommand
from edgeq.commands.groups import GroupedOption
from edgeq.commands.options import collect_settings
from edgeq.commands.quantize import quantize_command

ONLY_OF_RUNS = ("evaluated", "resume", "log_file", "verbose")
OUTPUT_OPTION = GroupedOption(
    ["-o", "--output"],
    type=PATH,
    required=True,
    group="everyday",
    help="Write the recipe to this file, such as recipe.toml; must not exist.",
)


def run_allocate(  # noqa: PLR0913, PLR0917 (one argument per option)
    model: str,
    revision: str | None,
    output: Path,
    exports: tuple[str, ...],
    backend: str,
    as_json: bool,
    force: bool,
    recipe: Path | None,
    calibration: tuple[str, ...],
    imatrix: Path | None,
    export_options: Mapping[str, Any],
    max_ram: str | None,
    max_vram: str | None,
    **options: Any,
) -> None:
    """Choose a type for each tensor of MODEL within a budget, and write them as a recipe.

    Read it, change it, and give it to edgeq quantize --recipe.

    \b
    Example:
      edgeq allocate ./Llama-3.2-1B --file-size 600MB --export gguf -o recipe.toml
    """
    from edgeq.commands.progress import watching  # noqa: PLC0415
    from edgeq.commands.screen import make_console, print_result, show_allocation  # noqa: PLC0415
    from edgeq.run.asked import Asked, allocate_asked, prepare_allocation  # noqa: PLC0415
    from edgeq.run.spending import Place  # noqa: PLC0415

    budget = take_budget(options)
    if not any(value is not None for value in budget.values()):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in NAMES[:-1])
        raise click.UsageError(f"give a budget: one of {flags}")
    asked = Asked(
        model,
        Place(output, force),
        budget=budget,
        settings=collect_settings(recipe, options),
        revision=revision,
        backend=backend,
        calibration=calibration,
        imatrix=imatrix,
        exports=exports,
        export_options=export_options,
        max_ram=max_ram,
        max_vram=max_vram,
    )
    job = prepare_allocation(asked)
    console = make_console(stderr=True)
    with watching(console, plain=as_json, log_file=None, output=output) as observer:
        found = allocate_asked(asked, job, observer)
    print_result(found, as_json, show_allocation)


def options_of_allocate() -> list[click.Parameter]:
    """Copy the options of `quantize` but those that only a run looks at: the needed ones first."""
    first = ("model", "output", *NAMES)
    options = [
        OUTPUT_OPTION if option.name == "output" else copy(option)
        for option in quantize_command.params
        if option.name not in ONLY_OF_RUNS
    ]
    known = [option for option in options if option.name in first]
    rest = [option for option in options if option.name not in first]
    return [*sorted(known, key=lambda option: first.index(str(option.name))), *rest]


allocate_command = FormatCommand(
    "allocate",
    params=options_of_allocate(),
    callback=run_allocate,
    help=run_allocate.__doc__,
    short_help="Choose types within a budget, and write them as a recipe.",
)
