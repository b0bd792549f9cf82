"""Calibration texts mixed by share: files, the text that ships with edgeq, and what the model
writes itself.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeq.calibration.windows import read_text, sample_windows, tokenize
from edgeq.errors import BadInput
from edgeq.protocols import ModelSource

SELF, SHIPPED = "self", "default"
LARGEST_SHARE = 1e6

Windows = npt.NDArray[np.int64]
WriteWindows = Callable[[int, int, int], Windows]
"""Count, length and seed to windows that the model wrote itself. Shapes: (count, length)."""


@dataclass(frozen=True, slots=True)
class Text:
    """One calibration text: a name for the record, its share, and its content; None where the model
    writes it.
    """

    name: str
    share: float
    content: str | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """The windows that a model is calibrated on, and the record of where they come from.

    texts has one entry per text: name, share, samples, tokens (of the whole text), and sha256 of
    the text in UTF-8 or, where the model wrote it, of its tokens as little-endian int32. Shapes:
    windows (samples, length).
    """

    windows: Windows
    texts: Sequence[dict[str, Any]]

    @property
    def tokens(self) -> int:
        return sum(int(text["tokens"]) for text in self.texts)

    def record(self) -> dict[str, Any]:
        """What edgeq.json says of it."""
        return {"sha256": hash_tokens(self.windows), "texts": list(self.texts)}


def hash_tokens(windows: Windows) -> str:
    """SHA-256 of token ids as little-endian int32."""
    return hashlib.sha256(windows.astype("<i4").tobytes()).hexdigest()


def read_texts(values: Sequence[str]) -> tuple[Text, ...]:
    """Texts as `--calibration` names them: TEXT or TEXT=SHARE, where TEXT is a path, "default" or
    "self".

    A share is 1 unless given. What exists as a file under the whole value is that file. Without
    values, "default". Raises: BadInput for a missing or empty file, for shares that are no positive
    numbers, for a text named twice.
    """
    named = [name_and_share(value) for value in values or (SHIPPED,)]
    places = [name if name in (SELF, SHIPPED) else Path(name).resolve() for name, _ in named]
    for position, (name, _) in enumerate(named):
        if places[position] in places[:position]:
            raise BadInput(
                f"--calibration {name!r} is given twice; "
                f"give it once with a larger share ({name}=2)"
            )
    return tuple(read_one(name, share) for name, share in named)


def name_and_share(value: str) -> tuple[str, float]:
    """The two parts of an option's value. Raises: BadInput."""
    if not value:
        raise BadInput(f"--calibration '': expected a file, {SHIPPED!r} or {SELF!r}")
    name, separator, stated = value.rpartition("=")
    if separator and not name and not Path(value).exists():
        raise BadInput(
            f"--calibration {value!r}: no text before the "
            f"share; write TEXT{value}, such as {SELF}{value}"
        )
    if not separator or Path(value).exists():
        return value, 1.0
    try:
        share = float(stated)
    except ValueError:
        share = math.nan
    if not 0 < share <= LARGEST_SHARE:
        raise BadInput(
            f"--calibration {value!r}: no such file, and {stated!r} "
            "is not a share; write TEXT or TEXT=SHARE with a "
            f"number above 0 and up to {LARGEST_SHARE:.0f}, such as {SELF}=0.5"
        )
    return name, share


def read_one(name: str, share: float) -> Text:
    if name == SELF:
        return Text(SELF, share, None)
    if name == SHIPPED:
        return Text(SHIPPED, share, read_text(None))
    return Text(Path(name).name, share, read_text(name))


def make_calibration(
    source: ModelSource,
    texts: Sequence[Text],
    write: WriteWindows,
    *,
    samples: int,
    sequence_length: int,
    seed: int,
) -> Calibration:
    """Windows of all texts, one text after the other in the given order, as many of each as its
    share says.

    Raises: BadInput when a text is too short for its windows, or its share too small for one.
    """
    counts = divide(samples, [text.share for text in texts])
    for text, count in zip(texts, counts, strict=True):
        if count == 0:
            raise BadInput(
                f"--calibration {text.name!r}: with share {text.share:g} "
                f"it gets none of the {samples} sequences; "
                "raise its share or --samples, or leave it out"
            )
    made: dict[int, tuple[Windows, dict[str, Any]]] = {}
    for place in sorted(
        range(len(texts)), key=lambda place: texts[place].content is None
    ):  # the slow one last
        text, count = texts[place], counts[place]
        if text.content is None:
            windows = write(count, sequence_length, seed)
            tokens, sha256 = windows.size, hash_tokens(windows)
        else:
            ids = tokenize(source, text.content)
            windows = windows_of(
                text, ids, samples=count, sequence_length=sequence_length, seed=seed
            )
            tokens, sha256 = len(ids), hashlib.sha256(text.content.encode("utf-8")).hexdigest()
        facts = {"samples": count, "tokens": tokens, "sha256": sha256}
        made[place] = windows, {"name": text.name, "share": text.share, **facts}
    ordered = [made[place] for place in range(len(texts))]
    return Calibration(
        np.concatenate([windows for windows, _ in ordered]), [entry for _, entry in ordered]
    )


def windows_of(text: Text, tokens: Windows, **options: int) -> Windows:
    """`sample_windows`, with the text's name in what it refuses."""
    try:
        return sample_windows(tokens, **options)
    except BadInput as error:
        raise BadInput(f"--calibration {text.name!r}: {error}") from error


def divide(samples: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that add up to samples and follow the shares: each rounded down, the rest by
    largest remainder.

    Equal remainders go to the earlier share.
    """
    total = math.fsum(shares)
    exact = [samples * share / total for share in shares]
    counts = [math.floor(number) for number in exact]
    by_remainder = sorted(range(len(shares)), key=lambda place: counts[place] - exact[place])
    for place in by_remainder[: samples - sum(counts)]:
        counts[place] += 1
    return counts
