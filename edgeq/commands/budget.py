"""The options of a budget, and what a plan says of one.

What is done about a budget is `edgeq.run.spending`. Heavy imports stand inside of functions.
"""

from collections.abc import Callable, Mapping
from typing import Any

import click

from edgeq.commands.groups import grouped_option

Command = Callable[..., None]

OPTIONS = (
    grouped_option(
        "--file-size",
        metavar="SIZE",
        group="everyday",
        help="Choose a type for each tensor so that the export's file stays within SIZE, such as "
        "95MB, with the least predicted loss.",
    ),
    grouped_option(
        "--bits-per-weight",
        type=click.FLOAT,
        metavar="BITS",
        group="quality",
        help="The same within so many bits for each weight in the export's file, such as 3.4.",
    ),
    grouped_option(
        "--fits",
        metavar="SIZE",
        group="quality",
        help="The same within the memory of a device: weights, keys and values of --context "
        "tokens, and the runtime.",
    ),
    grouped_option(
        "--context",
        type=click.INT,
        metavar="TOKENS",
        group="quality",
        help="Length of text for --fits.",
    ),
)
NAMES = ("file_size", "bits_per_weight", "fits", "context")
"""Those options, and the fields of `edgeq.run.budget.Budget`."""


def budget_options(command: Command) -> Command:
    """Add the options of a budget."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def take_budget(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of a budget out of those of settings."""
    return {name: options.pop(name, None) for name in NAMES}


def budget_lines(found: Mapping[str, Any]) -> list[str]:
    """Write what is known of a budget, and what is not."""
    from edgeq.words import show_megabytes, show_size, show_time  # noqa: PLC0415

    beside = "".join(f", {part} {show_megabytes(size)}" for part, size in found["beside"].items())
    sizes = f"{show_megabytes(found['smallest'])} to {show_megabytes(found['largest'])}"
    read = found["read"]
    unread = [] if read is None else [f"the model reads only {read} tokens of that --context"]
    return [
        f"{show_megabytes(found['limit'])}{beside}; in all {sizes} by its types",
        *unread,
        f"chosen for each of {found['items']} parts from {', '.join(found['types'])}",
        f"measuring them takes about {show_time(found['seconds'])} and "
        f"{show_size(found['memory'])} beside the process, before the run",
        "which types it chooses, and what these lose, is known when they are measured",
    ]
