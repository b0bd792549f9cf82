"""Keep the hidden states of a stream between two blocks: in memory, or in an unnamed file.

Which memory, or whether a file, is up to `edgeq.planning.memory`.
"""

import tempfile
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np

from edgeq.errors import BadInput, reason_of
from edgeq.streams.saved_states import Fetch
from edgeq.types import Array, NumpyArray


class HiddenStates(Protocol):
    """Hidden states of a stream: one array per batch, in the batches' order."""

    def __len__(self) -> int: ...

    def append(self, hidden: Array) -> None: ...

    def read(self, batch: int) -> Array: ...

    def replace(self, batch: int, hidden: Array) -> None:
        """Put the states behind a block in the place of those before it; their shapes are equal."""

    def behind(self, hidden: Sequence[Array]) -> "HiddenStates":
        """Give the states behind a block for all batches; these here may be replaced by them."""

    def lend(self, batch: int, fetch: Callable[[Array], Fetch]) -> Fetch:
        """Give what brings a batch to NumPy, in any thread and before it is replaced.

        `fetch` starts that for arrays of the framework.
        """


class StatesInMemory:
    """Hidden states as arrays of the framework, kept as they are."""

    def __init__(self) -> None:
        self._states: list[Array] = []

    def __len__(self) -> int:
        return len(self._states)

    def append(self, hidden: Array) -> None:
        self._states.append(hidden)

    def read(self, batch: int) -> Array:
        return self._states[batch]

    def replace(self, batch: int, hidden: Array) -> None:
        self._states[batch] = hidden

    def behind(self, hidden: Sequence[Array]) -> HiddenStates:
        states = StatesInMemory()
        states._states = list(hidden)
        return states

    def lend(self, batch: int, fetch: Callable[[Array], Fetch]) -> Fetch:
        return fetch(self._states[batch])


class StatesOnHost:
    """Hidden states in the machine's memory, where those in use lie on a device."""

    def __init__(
        self,
        to_numpy: Callable[[Array], NumpyArray],
        from_numpy: Callable[[NumpyArray], Array],
    ) -> None:
        self._to_numpy, self._from_numpy = to_numpy, from_numpy
        self._states: list[NumpyArray] = []

    def __len__(self) -> int:
        return len(self._states)

    def append(self, hidden: Array) -> None:
        self._states.append(self._to_numpy(hidden))

    def read(self, batch: int) -> Array:
        return self._from_numpy(self._states[batch])

    def replace(self, batch: int, hidden: Array) -> None:
        self._states[batch] = self._to_numpy(hidden)

    def behind(self, hidden: Sequence[Array]) -> HiddenStates:
        states = StatesOnHost(self._to_numpy, self._from_numpy)
        for each in hidden:
            states.append(each)
        return states

    def lend(self, batch: int, fetch: Callable[[Array], Fetch]) -> Fetch:
        values = self._states[batch]
        return lambda: values


class StatesOnDisk:
    """Hidden states in one file without a name, which the system removes however the process ends.

    The file is read and written, not mapped: pages of a map count as resident memory of the
    process.
    """

    def __init__(
        self,
        folder: Path,
        to_numpy: Callable[[Array], NumpyArray],
        from_numpy: Callable[[NumpyArray], Array],
    ) -> None:
        self._folder = folder
        try:
            # no buffer: it would be written once more, and fail again, when the file is closed
            self._file = tempfile.TemporaryFile(dir=folder, prefix=".edgeq-states-", buffering=0)
        except OSError as error:
            raise self._not_written(error) from error
        weakref.finalize(self, self._file.close)
        self._to_numpy, self._from_numpy = to_numpy, from_numpy
        self._places: list[tuple[int, tuple[int, ...], np.dtype[np.generic]]] = []
        self._end = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._places)

    def append(self, hidden: Array) -> None:
        values = np.ascontiguousarray(self._to_numpy(hidden))
        self._write(self._end, values)
        self._places.append((self._end, values.shape, values.dtype))
        self._end += values.nbytes

    def read(self, batch: int) -> Array:
        return self._from_numpy(self._values(batch))

    def behind(self, hidden: Sequence[Array]) -> HiddenStates:
        for batch, states in enumerate(hidden):
            self.replace(batch, states)
        return self

    def lend(self, batch: int, fetch: Callable[[Array], Fetch]) -> Fetch:
        return partial(self._values, batch)

    def _values(self, batch: int) -> NumpyArray:
        offset, shape, dtype = self._places[batch]
        values = np.empty(shape, dtype)
        left = values.reshape(-1).view(np.uint8).data
        with self._lock:  # the file has one place at which it is read
            self._file.seek(offset)
            while left:
                count = self._file.readinto(left)
                if not count:
                    raise BadInput(
                        "the temporary file of hidden states became shorter while in use; "
                        "run the command again"
                    )
                left = left[count:]
        return values

    def replace(self, batch: int, hidden: Array) -> None:
        offset, shape, dtype = self._places[batch]
        values = np.ascontiguousarray(self._to_numpy(hidden))
        is_alike = (values.shape, values.dtype) == (shape, dtype)
        assert is_alike, "a block gives back the shape that it got"
        self._write(offset, values)

    def _write(self, offset: int, values: NumpyArray) -> None:
        left = values.reshape(-1).view(np.uint8).data
        try:
            with self._lock:
                self._file.seek(offset)
                while left:  # a disk that is nearly full takes a part before it refuses
                    left = left[self._file.write(left) :]
        except OSError as error:
            raise self._not_written(error) from error

    def _not_written(self, error: OSError) -> BadInput:
        return BadInput(
            f"hidden states cannot be written in {str(self._folder)!r} ({reason_of(error)}); "
            "make room there, or raise --max-ram so that they stay in memory"
        )
