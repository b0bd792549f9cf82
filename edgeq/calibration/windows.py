"""Read text, and cut it into seeded windows of tokens of one fixed length."""

import json
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edgeq.errors import BadInput, reason_of
from edgeq.protocols import TextModel

CALIBRATION_TEXT = "calibration.txt"


def read_text(path: str | None, *, default: str = CALIBRATION_TEXT) -> str:
    """Read a text file, or JSON lines with a "text" string each.

    None gives a text that ships with edgeq.

    Raises: BadInput when it cannot be read or is empty.
    """
    if path is None:
        return (resources.files("edgeq") / "data" / default).read_text(encoding="utf-8")
    file = Path(path)
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"text {path!r}: not UTF-8 at byte {error.start}; convert it to UTF-8 text"
        ) from error
    except OSError as error:
        found = "it is a directory" if file.is_dir() else reason_of(error).lower()
        raise BadInput(
            f"text {path!r}: {found}; "
            'give a UTF-8 text file or JSON lines (.jsonl) with a "text" field'
        ) from error
    text = _join_json_lines(path, content) if file.suffix in {".jsonl", ".ndjson"} else content
    if not text.strip():
        raise BadInput(f"text {path!r}: it is empty; give some pages of text")
    return text


def _join_json_lines(path: str, content: str) -> str:
    texts = []
    # not splitlines, which would also cut inside strings, at U+2028
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "too deeply nested")
            raise BadInput(
                f"text {path!r}, line {number}: not JSON ({reason}); one object per line"
            ) from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise BadInput(
                f'text {path!r}, line {number}: no "text" string; each line is an object with one'
            )
        if not is_unicode(record["text"]):
            raise BadInput(
                f"text {path!r}, line {number}: half of a surrogate pair, which is no character; "
                "escape whole pairs or write UTF-8"
            )
        texts.append(record["text"])
    return "\n\n".join(texts)


def is_unicode(text: str) -> bool:
    """Say whether a text can be encoded: JSON's escapes also write halves of surrogate pairs."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


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
        return Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception for any malformed file
        raise BadInput(
            f"model {source.record.name!r}: tokenizer.json cannot be read ({reason_of(error)}); "
            "fetch it again"
        ) from error


def tokenize(source: TextModel, text: str) -> npt.NDArray[np.int64]:
    """Turn a text into token ids, without adding special tokens.

    Shapes: (tokens,).
    Raises: BadInput, see `check_ids`.
    """
    encoded = load_tokenizer(source).encode(text, add_special_tokens=False)
    tokens = np.asarray(encoded.ids, dtype=np.int64)
    check_ids(source, tokens)
    return tokens


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
