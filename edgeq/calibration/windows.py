"""Cut a text into seeded windows of tokens of one fixed length.

A window begins as the model's tokenizer begins a text, with <bos> or without: a model that was
trained with one predicts badly where it is missing, and the other way round.
Long texts are left to `edgeq.calibration.long_windows`.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from edgeq.architectures.tokenizer_library import encode_text, ids_before, parse_tokenizer
from edgeq.errors import BadInput, reason_of
from edgeq.protocols import TextModel

ADDING = (b"TemplateProcessing", b"BertProcessing", b"RobertaProcessing")
"""Parts of tokenizer.json that put tokens around a text."""


def load_tokenizer(source: TextModel) -> Tokenizer:
    """Load the tokenizer that belongs to a model.

    Raises: BadInput when the model brings none, or a damaged one.
    """
    data = source.companions().get("tokenizer.json")
    if data is None:
        raise BadInput(
            f"model {source.record.name!r} has no tokenizer.json; "
            "edgeq needs it to read calibration text"
        )
    try:
        return parse_tokenizer(data)
    except ValueError as error:
        raise BadInput(
            f"model {source.record.name!r}: tokenizer.json cannot be read ({reason_of(error)}); "
            "fetch it again"
        ) from error


def tokenize(
    source: TextModel, text: str, tokenizer: Tokenizer | None = None
) -> npt.NDArray[np.int64]:
    """Turn a text into token ids, without adding special tokens.

    tokenizer is the model's own, which takes a while to load, where it is at hand.

    Shapes: (tokens,).
    Raises: BadInput, see `check_ids`.
    """
    encoded = encode(source, tokenizer or load_tokenizer(source), text)
    tokens = np.asarray(encoded.ids, dtype=np.int64)
    check_ids(source, tokens)
    return tokens


def encode(source: TextModel, tokenizer: Tokenizer, text: str) -> Encoding:
    """Turn a text into tokens that know their places in it, by the model's tokenizer.

    Raises: BadInput when the tokenizer fails, and for halves of surrogate pairs, which JSON's
    escapes can write.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise BadInput(f"a text holds {half!r}, which is no character; give UTF-8 text") from error
    try:
        return encode_text(tokenizer, text)
    except ValueError as error:
        raise BadInput(
            f"model {source.record.name!r}: its tokenizer fails on the text ({reason_of(error)}); "
            "fetch tokenizer.json again"
        ) from error


def begin_ids(source: TextModel, tokenizer: Tokenizer | None = None) -> tuple[int, ...]:
    """Find the tokens that a model's tokenizer puts before every text: <bos>, or none.

    tokenizer: see `tokenize`.

    Raises: BadInput for a damaged tokenizer, and for a token without a row in the embedding.
    """
    data = source.companions().get("tokenizer.json", b"")
    if not any(name in data for name in ADDING):
        return ()
    try:
        found = ids_before(tokenizer or load_tokenizer(source))
    except ValueError as error:
        raise BadInput(
            f"model {source.record.name!r}: its tokenizer cannot begin a text "
            f"({reason_of(error)}); fetch tokenizer.json again"
        ) from error
    check_ids(source, np.asarray(found, np.int64))
    return found


def begun(windows: npt.NDArray[np.int64], begin: Sequence[int]) -> npt.NDArray[np.int64]:
    """Put the tokens that begin a text before each window.

    Shapes: (count, length) -> (count, len(begin) + length).
    """
    before = np.broadcast_to(np.asarray(begin, np.int64), (len(windows), len(begin)))
    return np.concatenate([before, windows], axis=1)


def length_of_text(sequence_length: int, begin: Sequence[int]) -> int:
    """Count the tokens of text in a sequence that begins with others.

    Raises: BadInput when there are none.
    """
    if sequence_length <= len(begin):
        raise BadInput(
            f"sequence length {sequence_length}: the tokenizer begins a text with {len(begin)} "
            f"tokens of its own; choose --sequence-length of at least {len(begin) + 1}"
        )
    return sequence_length - len(begin)


def check_ids(source: TextModel, tokens: npt.NDArray[np.int64]) -> None:
    """Refuse a token that the model's embedding has no row for.

    Raises: BadInput.
    """
    rows = source.record.vocabulary
    largest = int(tokens.max(initial=0))
    if rows is not None and largest >= rows:
        raise BadInput(
            f"model {source.record.name!r}: the tokenizer gives id {largest}, "
            f"but the embedding has {rows} rows; use the tokenizer.json that belongs to this model"
        )


def sample_windows(
    tokens: npt.NDArray[np.int64],
    *,
    samples: int,
    sequence_length: int,
    seed: int,
    begin: Sequence[int] = (),
) -> npt.NDArray[np.int64]:
    """Cut windows that start at random places, as evenly spread as `samples` allows.

    Each has the tokens of begin before its text.

    The text is cut into `samples` equal stretches and one window starts at a random place of each,
    so no part of a text is missed and windows overlap only when the text is short.

    Shapes: (tokens,) -> (samples, sequence_length).
    Raises: BadInput when the text has fewer than sequence_length tokens, or fewer places to start
    at than samples.
    """
    length = length_of_text(sequence_length, begin)
    last_start = len(tokens) - length
    if last_start < 0:
        raise BadInput(
            f"calibration text: {len(tokens)} tokens; "
            f"at least one sequence of {sequence_length} is needed, "
            "give more text or a smaller --sequence-length"
        )
    if samples > last_start + 1:
        raise BadInput(
            f"calibration text: {len(tokens)} tokens hold only {last_start + 1} "
            f"different sequences of {sequence_length}, not {samples}; "
            f"choose --samples of at most {len(tokens) // length}, "
            "which use each token once, or give more text"
        )
    edges = np.linspace(0, last_start + 1, samples + 1)
    starts = np.random.default_rng(seed).uniform(edges[:-1], edges[1:]).astype(np.int64)
    return begun(np.stack([tokens[start : start + length] for start in starts]), begin)


def separate_windows(
    tokens: npt.NDArray[np.int64],
    *,
    samples: int,
    sequence_length: int,
    seed: int,
    begin: Sequence[int] = (),
) -> npt.NDArray[np.int64]:
    """Cut windows that share no token, at random distances; fewer where the text is short.

    Each has the tokens of begin before its text.

    Shapes: (tokens,) -> (samples or fewer, sequence_length).
    Raises: BadInput when the text is shorter than one window.
    """
    length = length_of_text(sequence_length, begin)
    count = min(samples, len(tokens) // length)
    if count == 0:
        raise BadInput(
            f"{len(tokens)} tokens; at least one sequence of {sequence_length} is needed, "
            "give more text or a smaller --sequence-length"
        )
    left = len(tokens) - count * length  # tokens between the windows and around them
    before = np.sort(np.random.default_rng(seed).integers(0, left + 1, count))
    starts = before + length * np.arange(count)
    return begun(np.stack([tokens[start : start + length] for start in starts]), begin)


def first_windows(
    tokens: npt.NDArray[np.int64], *, windows: int, sequence_length: int, begin: Sequence[int] = ()
) -> npt.NDArray[np.int64]:
    """Cut the first windows of a text, one after the other; fewer when the text is short.

    Each has the tokens of begin before its text.

    Shapes: (windows, length).
    Raises: BadInput when the text is shorter than one window.
    """
    length = length_of_text(sequence_length, begin)
    count = min(windows, len(tokens) // length)
    if count == 0:
        raise BadInput(
            f"evaluation text: {len(tokens)} tokens; one window of {sequence_length} is needed, "
            "give more text or a smaller --sequence-length"
        )
    return begun(tokens[: count * length].reshape(count, length), begin)


def check_length(source: TextModel, sequence_length: int) -> None:
    """Refuse calibration sequences that are longer than the model was made for.

    Raises: BadInput.
    """
    longest = source.record.context
    if longest is not None and sequence_length > longest:
        raise BadInput(
            f"sequence length {sequence_length}: the model reads at most {longest} tokens; "
            f"choose --sequence-length {longest} or less"
        )
