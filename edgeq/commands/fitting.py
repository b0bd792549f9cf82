"""Print the command that fits into memory where the one that was typed does not."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from edgeq.commands.typed import command_words
from edgeq.errors import TooLittleMemory


@contextmanager
def naming_what_fits() -> Iterator[None]:
    """Note on an error of too little memory the whole command that would fit, as it was typed."""
    try:
        yield
    except TooLittleMemory as error:
        if error.words:
            typed = ["quantize" if word == "plan" else word for word in sys.argv[1:2]]
            command = command_words(*typed, *replaced(sys.argv[2:], error.words))
            error.add_note(f"this fits: {command}")
        raise


def replaced(typed: Sequence[str], words: Sequence[str]) -> list[str]:
    """Put options with their values into a command line, for those of the same names in it."""
    flags = set(words[::2])
    end = typed.index("--") if "--" in typed else len(typed)
    kept: list[str] = []
    rest = iter(typed[:end])
    for word in rest:
        if word in flags:
            next(rest, None)
        elif word.partition("=")[0] not in flags:
            kept.append(word)
    return [*kept, *words, *typed[end:]]
