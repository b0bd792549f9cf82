"""The options of a budget, and how a job gets the types that keep it.

Heavy imports stand inside of functions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeq.run.pipeline import Job, Observer

Command = Callable[..., None]

OPTIONS = (
    click.option(
        "--file-size",
        metavar="SIZE",
        help="Choose a type for each tensor so that the export's file stays within SIZE, such as "
        "95MB, with the least predicted loss.",
    ),
    click.option(
        "--bits-per-weight",
        type=click.FLOAT,
        metavar="BITS",
        help="The same within so many bits for each weight in the export's file, such as 3.4.",
    ),
    click.option(
        "--fits",
        metavar="SIZE",
        help="The same within the memory of a device: weights, keys and values of --context "
        "tokens, and the runtime.",
    ),
    click.option("--context", type=click.INT, metavar="TOKENS", help="Length of text for --fits."),
)
NAMES = ("file_size", "bits_per_weight", "fits", "context")
"""Those options, and the fields of `edgeq.run.budget.Budget`."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run writes, and whether it replaces or continues what is there."""

    output: Path
    force: bool
    resume: bool


def budget_options(command: Command) -> Command:
    """Add the options of a budget."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def take_budget(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of a budget out of those of settings."""
    return {name: options.pop(name, None) for name in NAMES}


def within_budget(
    job: "Job",
    options: Mapping[str, Any],
    observer: "Observer",
    *,
    place: Place | None = None,
) -> "Job":
    """Give a job the types that a budget chooses; the job itself where none is asked for.

    A run to continue at a place keeps what it has chosen.

    Raises: BadInput.
    """
    from edgeq.run.allocation import pose, spend, stored_allocation, with_allocation  # noqa: PLC0415
    from edgeq.run.assembly import check_gradients  # noqa: PLC0415
    from edgeq.run.budget import read_budget  # noqa: PLC0415
    from edgeq.run.resume import Ask, refuse_other  # noqa: PLC0415

    budget = read_budget(options)
    if budget is None:
        return job
    question = pose(job, budget)
    if place is not None:
        refuse_other(place.output, Ask(place.force, place.resume))
        stored = stored_allocation(place.output, question) if place.resume else None
        if stored is not None:
            return with_allocation(job, stored)
    check_gradients()
    return spend(job, question, observer)


def describe_budget(job: "Job", options: Mapping[str, Any]) -> dict[str, Any]:
    """Say what a budget is known to lead to before anything is measured; nothing without one.

    Units: bytes, seconds.
    Raises: BadInput.
    """
    from edgeq.run.allocation import pose  # noqa: PLC0415
    from edgeq.run.budget import read_budget  # noqa: PLC0415
    from edgeq.run.forecast import measuring_takes  # noqa: PLC0415

    budget = read_budget(options)
    if budget is None:
        return {}
    question = pose(job, budget)
    beside = sum(question.beside.values())
    labels = dict.fromkeys(o.label for item in question.items for o in item.options)
    return {
        "budget": {
            "asked": budget.asked,
            "limit": question.limit + beside,
            "beside": question.beside,
            "smallest": question.smallest + beside,
            "largest": question.largest + beside,
            "types": list(labels),
            "items": len(question.items),
            **measuring_takes(job, question.items),
        }
    }


def budget_lines(found: Mapping[str, Any]) -> list[str]:
    """Write what is known of a budget, and what is not."""
    from edgeq.words import show_megabytes, show_size, show_time  # noqa: PLC0415

    beside = "".join(f", {part} {show_megabytes(size)}" for part, size in found["beside"].items())
    sizes = f"{show_megabytes(found['smallest'])} to {show_megabytes(found['largest'])}"
    return [
        f"{show_megabytes(found['limit'])}{beside}; its types take {sizes}",
        f"chosen for each of {found['items']} parts from {', '.join(found['types'])}",
        f"measuring them takes about {show_time(found['seconds'])} and "
        f"{show_size(found['memory'])} beside the process, before the run",
        "which types it chooses, and what these lose, is known when they are measured",
    ]
