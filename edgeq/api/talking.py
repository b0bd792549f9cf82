"""Have a model answer a prompt, in the runtime that it is for."""

from collections.abc import Iterator

from edgeq.api.arguments import (
    PathLike,
    number_of,
    path_text,
    python_words,
    switch_of,
    text_of,
    whole_of,
)
from edgeq.errors import BadInput
from edgeq.talking import Reply, Talker, open_talker
from edgeq.talking.choosing import check_choice

MOST_TOKENS = 256  # as the command has it


@python_words()
def generate(  # noqa: PLR0913 (one argument per option)
    target: PathLike,
    prompt: str,
    *,
    raw: bool = False,
    system: str | None = None,
    max_tokens: int = MOST_TOKENS,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    runtime: str | None = None,
    backend: str = "auto",
) -> Iterator[str]:
    """Have a model answer a prompt, or continue it where the model has no chat template.

    Example:
        for piece in edgeq.generate("llama-4bit/gguf", "Why is the sky blue?"):
            print(piece, end="", flush=True)

    Args:
        target: A checkpoint, a model, a GGUF file, the directory of an export, or a result of
            `quantize` or `export`.
        prompt: What to answer, or to go on from.
        raw: Continue the text as it is, without the chat template.
        system: Begin the conversation with this system message.
        max_tokens: Write at most this many tokens.
        temperature: Take the likeliest token at 0; the higher, the more freely others are drawn.
        top_p: Draw among the likeliest tokens that have this share of the probability.
        seed: Draw by this seed; the same seed writes the same text.
        runtime: Run it in this runtime; without it an export in its own, else in the backend's.
        backend: Compute with "auto", "cuda", "cpu", "mps", "mlx" or "reference".

    Returns:
        The text in pieces, as they are written; "".join(...) is the whole. The model is let go of
        at the end.

    Raises:
        BadInput: A target, prompt or number that cannot be worked with; before the first piece.
        UnsupportedModel: A kind of model that this version does not handle.
        NotInstalled: A runtime whose extra is missing.
    """
    name = path_text("target", target)
    text = text_of("prompt", prompt)
    most = whole_of("max_tokens", max_tokens, 1)
    heat, share = number_of("temperature", temperature), number_of("top_p", top_p)
    heat, share = (0.0 if heat is None else heat), (1.0 if share is None else share)
    check_choice(temperature=heat, top_p=share)
    drawn = whole_of("seed", seed, 0)
    chosen = None if runtime is None else text_of("runtime", runtime)
    first = [] if system is None else [{"role": "system", "content": text_of("system", system)}]
    if switch_of("raw", raw) and first:
        raise BadInput("system with raw=True: continued text has no messages; leave one out")
    talker = open_talker(
        name, runtime=chosen, backend=text_of("backend", backend), chat=bool(first)
    )
    try:
        messages = [*first, {"role": "user", "content": text}]
        asked = text if raw or not talker.has_template else messages
        reply = talker.reply(asked, most_tokens=most, temperature=heat, top_p=share, seed=drawn)
    except BaseException:
        talker.__exit__(None, None, None)
        raise
    return pieces(talker, reply)


def pieces(talker: Talker, reply: Reply) -> Iterator[str]:
    """Give the pieces of an answer, and let go of the model at its end."""
    with talker, python_words():
        yield from reply
