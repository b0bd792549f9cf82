"""Load tokenizer.json and encode with it, whatever the file holds.

Everything that the tokenizers library raises becomes one kind of error here, panics of its Rust
code included.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from tokenizers import Encoding, Tokenizer

from edgeq.errors import reason_of

# a prefix that is not empty, or a key that hides behind escapes, which no tokenizer writes
RANDOM = ("dropout", "nbest_size", "alpha")  # what has a model cut words at random
ANY_TEXT = "a"
HAS_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]|\\u00[4-7]')


def load_tokenizer_file(data: bytes) -> Tokenizer:
    """Load a tokenizer from its file, with all that the file states.

    Raises: ValueError with the library's reason.
    """
    text = data.decode("utf-8")
    if HAS_PREFIX.search(data):
        _check_prefix(text)
    with tamed():
        return Tokenizer.from_str(text)


def parse_tokenizer(data: bytes) -> Tokenizer:
    """Load a tokenizer from its file, so that it gives all tokens of a text and no others.

    What the file states for training is switched off: a length to cut texts at, one to fill them up
    to, and cuts of words at random.

    Raises: ValueError with the library's reason.
    """
    tokenizer = load_tokenizer_file(data)
    with tamed():
        tokenizer.no_truncation()
        tokenizer.no_padding()
        for name in RANDOM:
            if getattr(tokenizer.model, name, None) is not None:
                setattr(tokenizer.model, name, None)
    return tokenizer


def encode_text(tokenizer: Tokenizer, text: str) -> Encoding:
    """Turn a text into tokens, without adding special ones.

    Raises: ValueError with the library's reason.
    """
    with tamed():
        return tokenizer.encode(text, add_special_tokens=False)


def ids_before(tokenizer: Tokenizer) -> tuple[int, ...]:
    """List the ids that a tokenizer puts before every text.

    Raises: ValueError with the library's reason.
    """
    with tamed():
        whole = tokenizer.encode(ANY_TEXT).ids
        text = tokenizer.encode(ANY_TEXT, add_special_tokens=False).ids
    places = range(len(whole) - len(text) + 1)
    found = (place for place in places if whole[place : place + len(text)] == text)
    return tuple(whole[: next(found, 0)])


def _check_prefix(text: str) -> None:
    """Refuse merges onto tokens without the prefix of their model.

    The library cuts so many bytes off without a look, and ends the process where they are half of a
    character.

    Raises: ValueError.
    """
    try:
        model = json.loads(text).get("model") or {}
        prefix = model.get("continuing_subword_prefix") or ""
        pairs = [each.split(" ") if isinstance(each, str) else each for each in model["merges"]]
        bare = next((pair[1] for pair in pairs if not pair[1].startswith(prefix)), None)
    except (AttributeError, IndexError, KeyError, TypeError, RecursionError):
        return  # no merges, or none that the library reads
    if bare is not None:
        raise ValueError(f"merge onto {bare!r}, which lacks the prefix {prefix!r}")


@contextmanager
def tamed() -> Iterator[None]:
    """Turn whatever the library raises inside into a ValueError.

    A panic of its Rust code is a BaseException of no public type.
    """
    try:
        with silent_standard_error():
            yield
    except Exception as error:  # the library raises bare Exception for any malformed file
        raise ValueError(reason_of(error)) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(reason_of(error)) from error


@contextmanager
def silent_standard_error() -> Iterator[None]:
    """Hold back what is written to standard error inside: a panic writes pages there."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        kept = -1
    try:
        if kept >= 0:
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), 2)
        yield
    finally:
        if kept >= 0:
            os.dup2(kept, 2)
            os.close(kept)
