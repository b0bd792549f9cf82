"""What `generate` and `chat` share: options, and pieces of text on the screen as they come."""

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from edgeq.commands.choices import RUNTIME
from edgeq.commands.options import BACKEND_OPTION
from edgeq.commands.plain_text import visible_text
from edgeq.registry import SPEAKERS

if TYPE_CHECKING:
    from edgeq.talking import Reply

Command = Callable[..., None]

SYSTEM_OPTION = click.option(
    "--system", metavar="TEXT", help="Begin the conversation with this system message."
)
RUNTIME_OPTION = click.option(
    "--runtime",
    type=RUNTIME,
    metavar="NAME",
    help=f"Run it in one of {', '.join(SPEAKERS)}.  [default: an export's own, else the backend's]",
)


def choosing_options(
    *, most_tokens: int, temperature: float, top_p: float
) -> Callable[..., Command]:
    """Make the options by which tokens are chosen, with a command's own defaults."""
    options = (
        click.option(
            "--max-tokens",
            type=click.IntRange(1),
            default=most_tokens,
            show_default=True,
            help="Write at most this many tokens.",
        ),
        click.option(
            "--temperature",
            type=float,
            default=temperature,
            show_default=True,
            help="Take the likeliest token at 0; the higher, the more freely others are drawn.",
        ),
        click.option(
            "--top-p",
            type=float,
            default=top_p,
            show_default=True,
            help="Draw among the likeliest tokens that have this share of the probability.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Draw by this seed; the same seed writes the same text.",
        ),
        RUNTIME_OPTION,
        BACKEND_OPTION,
    )

    def add(command: Command) -> Command:
        # click shows the one applied last first
        for option in reversed(options):
            command = option(command)
        return command

    return add


def write_pieces(pieces: Iterable[str]) -> str:
    """Write pieces of text as they come, and a line end behind them; gives the whole text.

    Characters that a terminal would obey are written visibly.
    """
    written: list[str] = []
    try:
        for piece in pieces:
            written.append(piece)
            click.echo(visible_text(piece), nl=False)
            sys.stdout.flush()
    finally:
        if written and not written[-1].endswith("\n"):
            click.echo()
    return "".join(written)


def ending_words(reply: "Reply", context: int | None) -> str | None:
    """Say why an answer is not at an end of its own; None where it is."""
    if reply.stopped == "max-tokens":
        return f"stopped after {reply.tokens} tokens; --max-tokens allows more"
    if reply.stopped == "context":
        return f"stopped: the model reads {context} tokens, prompt and answer together"
    return "stopped" if reply.stopped == "interrupted" else None


def speed_words(reply: "Reply", library: str) -> str:
    """Write how fast an answer came, the reading of the prompt included."""
    speed = f"{reply.tokens_per_second:.1f} tokens per second"
    return f"{reply.tokens} tokens in {reply.seconds:.1f} s, {speed}, {library}"
