"""Calibration texts mixed by share: files, the text that ships with edgeq, and what the model writes itself."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeq.calibration import read_text, sample_windows, tokenize
from edgeq.errors import BadInput
from edgeq.protocols import ModelSource
from edgeq.storage import write_bytes

SELF, SHIPPED = "self", "default"

Windows = npt.NDArray[np.int64]
WriteWindows = Callable[[int, int, int], Windows]
"""Count, length and seed to windows that the model wrote itself. Shapes: (count, length)."""


@dataclass(frozen=True, slots=True)
class Text:
    """Where calibration text comes from: a path, "default" or "self". content is what was read, None for "self"."""

    name: str
    share: float
    content: str | None


def read_texts(values: Sequence[str]) -> tuple[Text, ...]:
    """Texts as options name them, "NAME" or "NAME=SHARE"; shares are equal unless given, and are scaled to add up to 1.

    Raises: BadInput for a missing or empty file and for shares that are not positive numbers.
    """
    named = [_name_and_share(value) for value in values or (SHIPPED,)]
    total = sum(share for _, share in named)
    return tuple(Text(name, share / total, _content(name)) for name, share in named)


def _name_and_share(value: str) -> tuple[str, float]:
    name, separator, share = value.rpartition("=")
    if not separator or Path(value).exists():
        return value, 1.0
    try:
        number = float(share)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise BadInput(f"calibration {value!r}: expected a share above 0 after the =, such as self=0.5")
    return name, number


def _content(name: str) -> str | None:
    if name == SELF and not Path(name).exists():
        return None
    return read_text(None if name == SHIPPED and not Path(name).exists() else name)


def mix_windows(
    source: ModelSource, texts: Sequence[Text], write: WriteWindows, *, samples: int, sequence_length: int, seed: int
) -> Windows:
    """Windows of all texts one after the other, as many of each as its share says. Shapes: (samples, length).

    Raises: BadInput when a text has fewer tokens than one window.
    """
    parts = []
    for place, (text, count) in enumerate(zip(texts, counts_of(texts, samples), strict=True)):
        if not count:
            continue
        if text.content is None:
            parts.append(cached_windows(source, write, count, sequence_length, seed))
        else:
            tokens = tokenize(source, text.content)
            windows = sample_windows(tokens, samples=count, sequence_length=sequence_length, seed=seed + place)
            parts.append(windows)
    return np.concatenate(parts)


def counts_of(texts: Sequence[Text], samples: int) -> list[int]:
    """How many windows each text gets; they add up to samples."""
    edges = np.rint(np.cumsum([0.0, *(text.share for text in texts)]) * samples).astype(int)
    return [int(count) for count in np.diff(edges)]


def cached_windows(source: ModelSource, write: WriteWindows, count: int, length: int, seed: int) -> Windows:
    """What the model wrote before under the same conditions, else what it writes now."""
    key = hashlib.sha256(f"{source.fingerprint()} {count} {length} {seed}".encode()).hexdigest()[:32]
    file = cache_directory() / f"self-{key}.tokens"
    if file.is_file() and file.stat().st_size == 4 * count * length:
        return np.frombuffer(file.read_bytes(), "<i4").reshape(count, length).astype(np.int64)
    windows = write(count, length, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, windows.astype("<i4").tobytes())
    return windows


def cache_directory() -> Path:
    """EDGEQ_CACHE, else edgeq in the user's cache directory."""
    own = os.environ.get("EDGEQ_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeq"
