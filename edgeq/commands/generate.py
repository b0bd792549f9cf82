"""`edgeq generate`: have a model answer one prompt, or continue a text.

Heavy imports stand inside of the command.
"""

import sys
from typing import TYPE_CHECKING, Any

import click

from edgeq.commands.choices import MODEL
from edgeq.commands.options import JSON_OPTION
from edgeq.commands.writing import (
    SYSTEM_OPTION,
    choosing_options,
    ending_words,
    speed_words,
    write_pieces,
)
from edgeq.errors import BadInput, reason_of

if TYPE_CHECKING:
    from edgeq.talking import Reply, Talker

STANDARD_INPUT = "-"


@click.command(name="generate", short_help="Have TARGET answer PROMPT.")
@click.argument("target", type=MODEL)
@click.argument("prompt")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without the chat template.")
@SYSTEM_OPTION
@choosing_options(most_tokens=256, temperature=0.0, top_p=1.0)
@JSON_OPTION
def generate_command(
    target: str,
    prompt: str,
    raw: bool,
    system: str | None,
    runtime: str | None,
    backend: str,
    as_json: bool,
    **choosing: Any,
) -> None:
    """Have TARGET answer PROMPT, in the runtime that it is for.

    TARGET is a checkpoint, a model, a GGUF file or the directory of an export. A model with a chat
    template answers; one without continues the text, as --raw has every model do. PROMPT - is read
    from standard input.

    \b
    Example:
      edgeq generate smollm2/gguf "Why is the sky blue?"
    """
    from edgeq.commands.screen import print_json  # noqa: PLC0415
    from edgeq.talking import open_talker  # noqa: PLC0415
    from edgeq.talking.choosing import check_choice  # noqa: PLC0415

    if raw and system is not None:
        raise BadInput("--system with --raw: text that is continued has no messages; leave one out")
    check_choice(temperature=choosing["temperature"], top_p=choosing["top_p"])
    text = read_prompt() if prompt == STANDARD_INPUT else prompt
    with open_talker(target, runtime=runtime, backend=backend, chat=system is not None) as talker:
        reply = start_reply(talker, text, raw=raw, system=system, **choosing)
        if as_json:
            print_json({"prompt": text, **result_of(reply, "".join(reply), talker.library)})
            return
        write_pieces(reply)
        for line in (ending_words(reply, talker.context), speed_words(reply, talker.library)):
            if line is not None:
                click.echo(line, err=True)


def read_prompt() -> str:
    """Read the prompt from standard input, without the line end behind it.

    Raises: BadInput for what is no UTF-8 text, and where there is none.
    """
    if sys.stdin is None:  # it was closed before edgeq started
        raise BadInput("standard input is closed; give the prompt as text, or pipe it in")
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"standard input is no UTF-8 text ({reason_of(error)}); save the prompt as UTF-8"
        ) from error


def start_reply(
    talker: "Talker", text: str, *, raw: bool, system: str | None, max_tokens: int, **choosing: Any
) -> "Reply":
    """Start the answer to a prompt, or its continuation."""
    if raw or not talker.has_template:
        return talker.reply(text, most_tokens=max_tokens, **choosing)
    first = [] if system is None else [{"role": "system", "content": system}]
    messages = [*first, {"role": "user", "content": text}]
    return talker.reply(messages, most_tokens=max_tokens, **choosing)


def result_of(reply: "Reply", text: str, library: str) -> dict[str, Any]:
    """Gather what --json prints of an answer."""
    return {
        "text": text,
        "tokens": reply.tokens,
        "prompt_tokens": reply.prompt_tokens,
        "seconds": reply.seconds,
        "tokens_per_second": reply.tokens_per_second,
        "runtime": library,
        "stopped": reply.stopped,
    }
