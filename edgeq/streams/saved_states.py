"""Save hidden states in files, a file per batch, and read them back.

A .npy file has no word for bfloat16: such numbers lie in it as their bits, and its name says so.
When they are saved is up to `edgeq.run.commits`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import ml_dtypes
import numpy as np

from edgeq.files.storage import write_array
from edgeq.types import NumpyArray

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BITS = np.dtype(np.uint16)
"""What numbers in bfloat16 are read as where a library has no type for them."""
ENDING = "-bfloat16.npy"

Fetch = Callable[[], NumpyArray]
"""Waits for hidden states that are on their way to NumPy."""


class HeldBatches:
    """Hidden states of all batches, by names of files; each is let go of once it is written.

    fetches bring them to NumPy, copies says whether in memory of their own.
    """

    def __init__(self, fetches: Iterable[tuple[str, Callable[[], Fetch]]], *, copies: bool) -> None:
        self._fetches = list(fetches)
        self._copies = copies
        self._states = deque[tuple[str, Fetch]]()

    def begin(self) -> bool:
        """Start to bring them to the host, without waiting; say whether they may change then."""
        self._states.extend((name, fetch()) for name, fetch in self._fetches)
        self._fetches.clear()
        return self._copies

    def save(self, folder: Path) -> Iterator[tuple[str, str]]:
        """Write them into an empty directory, once; give name and SHA-256 of each flushed file.

        `begin` comes before it, in the thread that computes; this may run in another one.
        """
        while self._states:
            name, fetch = self._states.popleft()
            values = as_floats(fetch())
            ending = ".npy"
            if values.dtype == BFLOAT16:
                values, ending = values.view(BITS), ENDING
            yield f"{name}{ending}", write_array(folder / f"{name}{ending}", values)


def batch_name(stream: str, batch: int) -> str:
    """Name the file of a batch, without its ending."""
    return f"{stream}-{batch:05d}"


def as_floats(values: NumpyArray) -> NumpyArray:
    """Take bits of bfloat16 for the numbers that they are, without a copy."""
    return values.view(BFLOAT16) if values.dtype == BITS else values


class SavedStream:
    """A stream as it was saved, in batches of any size."""

    def __init__(self, folder: Path, stream: str) -> None:
        self._windows = saved_windows(folder, stream)

    def read(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NumpyArray:
        """Read a batch of the windows that come next, as floats or bits of another type.

        Shapes: (windows, tokens, hidden).
        Raises: OSError, ValueError or EOFError.
        """
        windows = list(islice(self._windows, shape[0]))
        hidden = np.stack(windows) if windows else np.empty(0)
        if hidden.shape != shape:
            raise ValueError(f"hidden states are of shape {hidden.shape} instead of {shape}")
        if dtype == BITS:
            return hidden.astype(BFLOAT16, copy=False).view(BITS)
        return hidden.astype(dtype, copy=False)


def saved_windows(folder: Path, stream: str) -> Iterator[NumpyArray]:
    """Read a stream window after window.

    Shapes: (tokens, hidden).
    Raises: ValueError for what is no floats.
    """
    for path in sorted(folder.glob(f"{stream}-*.npy")):
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        is_bits = path.name.endswith(ENDING)
        if values.dtype != BITS if is_bits else values.dtype.kind != "f":
            raise ValueError(f"hidden states are {values.dtype} instead of numbers")
        yield from as_floats(values)
