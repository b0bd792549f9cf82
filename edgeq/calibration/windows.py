"""Cut a text into seeded windows of tokens of one fixed length.

Long texts are left to `edgeq.calibration.long_windows`.
"""

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from edgeq.architectures.tokenizer_library import encode_text, parse_tokenizer
from edgeq.errors import BadInput, reason_of
from edgeq.protocols import TextModel


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


def tokenize(source: TextModel, text: str) -> npt.NDArray[np.int64]:
    """Turn a text into token ids, without adding special tokens.

    Shapes: (tokens,).
    Raises: BadInput, see `check_ids`.
    """
    encoded = encode(source, load_tokenizer(source), text)
    tokens = np.asarray(encoded.ids, dtype=np.int64)
    check_ids(source, tokens)
    return tokens


def encode(source: TextModel, tokenizer: Tokenizer, text: str) -> Encoding:
    """Turn a text into tokens that know their places in it, by the model's tokenizer.

    Raises: BadInput when the tokenizer fails.
    """
    try:
        return encode_text(tokenizer, text)
    except ValueError as error:
        raise BadInput(
            f"model {source.record.name!r}: its tokenizer fails on the text ({reason_of(error)}); "
            "fetch tokenizer.json again"
        ) from error


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
    tokens: npt.NDArray[np.int64], *, samples: int, sequence_length: int, seed: int
) -> npt.NDArray[np.int64]:
    """Cut windows that start at random places, as evenly spread as `samples` allows.

    The text is cut into `samples` equal stretches and one window starts at a random place of each,
    so no part of a text is missed and windows overlap only when the text is short.

    Shapes: (tokens,) -> (samples, sequence_length).
    Raises: BadInput when the text has fewer than sequence_length tokens, or fewer places to start
    at than samples.
    """
    last_start = len(tokens) - sequence_length
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
            f"choose --samples of at most {len(tokens) // sequence_length}, "
            "which use each token once, or give more text"
        )
    edges = np.linspace(0, last_start + 1, samples + 1)
    starts = np.random.default_rng(seed).uniform(edges[:-1], edges[1:]).astype(np.int64)
    return np.stack([tokens[start : start + sequence_length] for start in starts])


def first_windows(
    tokens: npt.NDArray[np.int64], *, windows: int, sequence_length: int
) -> npt.NDArray[np.int64]:
    """Cut the first windows of a text, one after the other; fewer when the text is short.

    Shapes: (windows, length).
    Raises: BadInput when the text is shorter than one window.
    """
    count = min(windows, len(tokens) // sequence_length)
    if count == 0:
        raise BadInput(
            f"evaluation text: {len(tokens)} tokens; one window of {sequence_length} is needed, "
            "give more text or a smaller --sequence-length"
        )
    return tokens[: count * sequence_length].reshape(count, sequence_length)


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
