"""Have a model answer a prompt, in the runtime that it is for."""

from collections.abc import Iterator, Mapping
from typing import Any, TypedDict, Unpack

from edgeq.api.arguments import (
    PathLike,
    check_names,
    number_of,
    path_text,
    python_words,
    switch_of,
    text_of,
    whole_of,
)
from edgeq.api.documenting import documented
from edgeq.api.request import Argument
from edgeq.errors import BadInput
from edgeq.talking import Reply, Talker, open_talker
from edgeq.talking.choosing import check_choice


class GenerateArguments(TypedDict, total=False):
    """Keyword arguments of `edgeq.generate`, named like the options of the command."""

    raw: bool
    system: str | None
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    runtime: str | None
    backend: str


ARGUMENTS: Mapping[str, Argument] = {
    "raw": Argument(False, "Continue the text as it is, without the chat template."),
    "system": Argument(None, "Begin the conversation with this system message."),
    "max_tokens": Argument(256, "Write at most this many tokens."),
    "temperature": Argument(
        0.0, "Take the likeliest token at 0; the higher, the more freely others are drawn."
    ),
    "top_p": Argument(
        1.0, "Draw among the likeliest tokens that have this share of the probability."
    ),
    "seed": Argument(0, "Draw by this seed; the same seed writes the same text."),
    "runtime": Argument(
        None, "Run it in this runtime; without it an export in its own, else in the backend's."
    ),
    "backend": Argument("auto", 'Compute with "auto", "cuda", "cpu", "mps", "mlx" or "reference".'),
}


@documented(GenerateArguments, (), ARGUMENTS)
@python_words()
def generate(
    target: PathLike, prompt: str, **arguments: Unpack[GenerateArguments]
) -> Iterator[str]:
    """Have a model answer a prompt, or continue it where the model has no chat template.

    Example:
        for piece in edgeq.generate("llama-4bit/gguf", "Why is the sky blue?"):
            print(piece, end="", flush=True)

    Args:
        target: A checkpoint, a model, a GGUF file, the directory of an export, or a result of
            `quantize` or `export`.
        prompt: What to answer, or to go on from.
        KEYWORDS

    Returns:
        The text in pieces, as they are written; "".join(...) is the whole. The model is let go of
        at the end.

    Raises:
        BadInput: A target, prompt or number that cannot be worked with; before the first piece.
        UnsupportedModel: A kind of model that this version does not handle.
        NotInstalled: A runtime whose extra is missing.
        TypeError: An argument that is not known, with the nearest name.
    """
    check_names("generate", arguments, {"target", "prompt", *ARGUMENTS})
    given = {name: arguments.get(name, row.default) for name, row in ARGUMENTS.items()}
    name, text, system = path_text("target", target), text_of("prompt", prompt), given["system"]
    choosing: dict[str, Any] = {
        "most_tokens": whole_of("max_tokens", given["max_tokens"], 1),
        "temperature": number_of("temperature", given["temperature"]),
        "top_p": number_of("top_p", given["top_p"]),
        "seed": whole_of("seed", given["seed"], 0),
    }
    check_choice(temperature=choosing["temperature"], top_p=choosing["top_p"])
    first = [] if system is None else [{"role": "system", "content": text_of("system", system)}]
    if switch_of("raw", given["raw"]) and first:
        raise BadInput("system with raw=True: continued text has no messages; leave one out")
    runtime = None if given["runtime"] is None else text_of("runtime", given["runtime"])
    backend = text_of("backend", given["backend"])
    talker = open_talker(name, runtime=runtime, backend=backend, chat=bool(first))
    try:
        messages = [*first, {"role": "user", "content": text}]
        is_text = given["raw"] or not talker.has_template
        reply = talker.reply(text if is_text else messages, **choosing)
    except BaseException:
        talker.__exit__(None, None, None)
        raise
    return pieces(talker, reply)


def pieces(talker: Talker, reply: Reply) -> Iterator[str]:
    """Give the pieces of an answer, and let go of the model at its end."""
    with talker, python_words():
        yield from reply
