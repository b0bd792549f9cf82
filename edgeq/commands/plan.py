"""`edgeq plan`: the options of `edgeq quantize`, and what they will take.

Heavy imports stand inside of the command.
"""

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeq.commands.budget import budget_lines, take_budget
from edgeq.commands.choices import DIRECTORY
from edgeq.commands.fitting import naming_what_fits
from edgeq.commands.formats import FormatCommand
from edgeq.commands.groups import GroupedOption
from edgeq.commands.options import collect_settings
from edgeq.commands.quantize import quantize_command

if TYPE_CHECKING:
    from rich.console import Console

SCHEDULES = {
    "standing": "all batches held at each layer (fast)",
    "recomputing": "batch by batch, recomputed (small)",
}
"""What people see of the schedules of `edgeq.streams.blockwise.Flow`; JSON has their names."""
ONLY_OF_RUNS = ("force", "evaluated", "resume", "log_file", "verbose")
"""Options that a plan takes, so that a command line can stay as it is, and does not look at."""
OUTPUT_OPTION = GroupedOption(
    ["-o", "--output"],
    type=DIRECTORY,
    group="output",
    help="Show the space where the run would write.  [default: here]",
)


def run_plan(  # noqa: PLR0913, PLR0917 (one argument per option)
    model: str,
    revision: str | None,
    exports: tuple[str, ...],
    backend: str,
    as_json: bool,
    recipe: Path | None,
    calibration: tuple[str, ...],
    imatrix: Path | None,
    export_options: Mapping[str, Any],
    max_ram: str | None,
    max_vram: str | None,
    output: Path | None,
    **options: Any,
) -> None:
    """Say what quantizing MODEL takes in memory, disk and time, without running it.

    A directory with config.json and perhaps model.safetensors.index.json is enough; weights are
    not read.

    \b
    Example:
      edgeq plan ./Llama-3.2-1B --max-ram 8GB --export gguf
    """
    from edgeq.commands.screen import print_result  # noqa: PLC0415
    from edgeq.run.asked import Asked, plan_asked  # noqa: PLC0415
    from edgeq.run.spending import Place  # noqa: PLC0415

    planned = {name: value for name, value in options.items() if name not in ONLY_OF_RUNS}
    asked = Asked(
        model,
        Place(output or Path.cwd()),
        budget=take_budget(planned),
        settings=collect_settings(recipe, planned),
        revision=revision,
        backend=backend,
        calibration=calibration,
        imatrix=imatrix,
        exports=exports,
        export_options=export_options,
        max_ram=max_ram,
        max_vram=max_vram,
    )
    with naming_what_fits():
        plan = plan_asked(asked)
    print_result(plan, as_json, show_plan)


def options_of_plan() -> list[click.Parameter]:
    """Copy the options of `quantize`; those that only a run looks at are hidden."""
    options = [
        OUTPUT_OPTION if option.name == "output" else copy(option)
        for option in quantize_command.params
    ]
    for option in options:
        if isinstance(option, click.Option) and option.name in ONLY_OF_RUNS:
            option.hidden = True
    return options


plan_command = FormatCommand(
    "plan",
    params=options_of_plan(),
    callback=run_plan,
    help=run_plan.__doc__,
    short_help="Say what quantizing MODEL takes, without running it.",
)


def show_plan(console: "Console", plan: Mapping[str, Any]) -> None:
    """Print a plan on one screen; sizes in decimal units."""
    from edgeq.commands.screen import facts_table  # noqa: PLC0415
    from edgeq.words import show_counts, show_size, show_time  # noqa: PLC0415

    table = facts_table()
    seconds = plan["seconds"]
    size = show_size(plan["original"])
    table.add_row("model", f"{plan['model']}, {seconds['blocks']} blocks, {size}")
    if plan["grids"]:
        table.add_row("grids", show_counts(plan["grids"]))
    table.add_row("memory", "\n".join(memory_lines(plan["memory"])))
    if plan["device memory"] is not None:
        table.add_row("device memory", "\n".join(device_lines(plan["device memory"])))
    table.add_row("schedule", describe_way(plan["way"]))
    disk = ", ".join(f"{part} {show_size(size)}" for part, size in plan["disk"].items())
    table.add_row("disk", f"{disk}; {show_size(plan['disk free'])} free")
    by_stage = seconds["by stage of a block"]
    stages = ", ".join(f"{stage} {show_time(taken)}" for stage, taken in by_stage.items() if taken)
    shortest, longest = show_time(seconds["total"]), show_time(seconds["at most"])
    takes = f"about {shortest} to {longest} on this machine as busy as it is now"
    table.add_row("time", f"{takes}; a block {show_time(seconds['block'])} ({stages})")
    if plan["tuning"] is not None:
        table.add_row("tuning", "\n".join(tuning_lines(plan["tuning"])))
    if "budget" in plan:
        table.add_row("budget", "\n".join(budget_lines(plan["budget"])))
    for row in plan["formats"] or plan["other formats"]:
        fits = f"does not fit: {row['refused']}" if row["refused"] else f"for {row['read_by']}"
        most = "at most " if "budget" in plan else ""
        table.add_row(row["format"], f"{most}{show_size(row['bytes'])}, {fits}")
        for note in row["notes"]:
            table.add_row("", f"note: {note}")
    for note in plan["notes"]:
        table.add_row("note", note)
    console.print(table, highlight=False, soft_wrap=True)


def tuning_lines(tuning: Mapping[str, Any]) -> list[str]:
    """Say what tuning takes of time and memory, of how much text, and what moves."""
    from edgeq.words import show_size, show_time  # noqa: PLC0415

    tokens = f"{tuning['tokens']:,} tokens, {tuning['passes']} times"
    memory = tuning["memory"]
    taken = f"{show_size(memory['peak'])} of memory, at {memory['at']}"
    if memory["on device"] is not None:
        taken += f", and {show_size(memory['on device'])} of the device's"
    moved = "floats and codes move" if tuning["moves codes"] else "floats move, codes stay"
    return [
        f"about {show_time(tuning['seconds'])} of that, on {tokens}",
        f"{taken}; {tuning['way']}",
        moved,
    ]


def memory_lines(memory: Mapping[str, Any]) -> list[str]:
    """Say what a run takes at most, of what, with how little it could do, and what is there."""
    from edgeq.words import show_size  # noqa: PLC0415

    lines = peak_lines(memory, "--max-ram")
    machine = memory["machine"]
    if machine is not None and machine < memory["peak"]:
        lines.append(f"this machine has {show_size(machine)}: give --max-ram with less than that")
    return lines


def device_lines(memory: Mapping[str, Any]) -> list[str]:
    """Say what a run takes of a device's own memory, and what is there."""
    from edgeq.words import show_size  # noqa: PLC0415

    there = f"of {show_size(memory['total'])} {show_size(memory['free'])} are free"
    return [*peak_lines(memory, "--max-vram"), there]


def peak_lines(memory: Mapping[str, Any], option: str) -> list[str]:
    """Say what a run takes at most, of what, and with how little it could do."""
    from edgeq.words import show_size  # noqa: PLC0415

    lines = [f"{show_size(memory['peak'])} at most, at {memory['at']}"]
    lines += [f"{show_size(size):>8}  {part}" for part, size in memory["parts"].items() if size]
    if memory["least"] < memory["peak"]:
        least = show_size(memory["least"], up=True).replace(" ", "")
        lines.append(f"the least, slower: {option} {least}")
    return lines


def describe_way(way: Mapping[str, Any]) -> str:
    """Say in words in which way a run fits into its memory."""
    rows = "all rows" if way["rows_at_once"] is None else f"{way['rows_at_once']} rows"
    states = "on disk" if way["states_on_disk"] else "in memory"
    if way["states_on_host"]:
        states = "in the machine's memory"
    return (
        f"{SCHEDULES[way['schedule']]}, batches of {way['batch_tokens']} tokens, "
        f"hidden states {states}, {rows} solved at once"
    )
