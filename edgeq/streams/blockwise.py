"""Run a model block by block: streams of calibration tokens, and plain predictions.

Frameworks contribute a `BlockwiseModel`; which flow fits into memory is up to
`edgeq.planning.memory`.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from edgeq.files.storage import write_array
from edgeq.protocols import Site
from edgeq.streams.hidden_states import HiddenStates, StatesInMemory, StatesOnDisk, StatesOnHost
from edgeq.streams.recomputing import RecomputedStreams
from edgeq.streams.routing import Pass, start_pass
from edgeq.streams.schedule import Forward, Streams
from edgeq.types import Array, BlockSpec, NumpyArray

# tokens: wide products run best, and all of a block's batches are in memory anyway
CALIBRATION_BATCH = 8192
# tokens: logits take vocabulary-many floats for each
PREDICTION_BATCH = 2048


class BlockwiseModel(Protocol):
    """A framework's own model code, of which one block has weights at a time.

    Shapes: ids (windows, tokens).
    """

    @property
    def places(self) -> Sequence["Place"]:
        """Give the places of the blocks, in execution order."""

    def record(self, batches: Sequence[NumpyArray]) -> Iterator[Array]:
        """Note what every block gets besides hidden states.

        Yields the hidden states before block 0, per batch.
        """

    def block(self, index: int) -> AbstractContextManager[object]:
        """Fill a block with its weights, and free them on leaving."""

    def halting_block(
        self, block: BlockSpec
    ) -> AbstractContextManager[Callable[[str, Array], Array]]:
        """Fill a block whose forwards halt at each linear layer.

        Gives a function that exchanges a layer's weight.
        """

    def run_block(self, index: int, batch: int, hidden: Array) -> Array:
        """Run one recorded batch through a block that has its weights."""

    def to_numpy(self, hidden: Array) -> NumpyArray:
        """Copy hidden states to NumPy, in the precision that they run in."""

    def from_numpy(self, hidden: NumpyArray) -> Array:
        """Undo `to_numpy`, in memory that the framework allocated."""

    def logits(
        self, batches: Sequence[NumpyArray], hidden: Sequence[Array]
    ) -> Iterator[Iterator[NumpyArray]]:
        """Compute the logits of finished hidden states, per batch and window.

        Shapes: (tokens, vocabulary) float32.
        """


class EndOfRecording(Exception):
    """Ends a pass at the last place: while recording nothing behind the blocks is needed."""


@dataclass(slots=True)
class Call:
    """What a model hands to a block besides hidden states: masks, rotary tables and the like."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(slots=True)
class Place:
    """The place of a block: notes calls while recording, else passes hidden states on."""

    last: bool
    recording: bool = False
    calls: list[Call] = field(default_factory=list)
    inputs: list[Array] = field(default_factory=list)
    result: Array | None = None
    """Hidden states that come out instead of those that went in, where there are any."""

    def pass_on(self, hidden: Array, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Array:
        if self.recording:
            self.calls.append(Call(args, kwargs))
            self.inputs.append(hidden)
            if self.last:
                raise EndOfRecording
        return hidden if self.result is None else self.result


def record_calls(
    places: Sequence[Place], run: Callable[[NumpyArray], object], batches: Sequence[NumpyArray]
) -> Iterator[Array]:
    """Run each batch through a model whose blocks are places.

    Yields the hidden states before block 0, per batch.
    """
    for place in places:
        place.recording, place.calls = True, []
    for ids in batches:
        try:
            run(ids)
        except EndOfRecording:
            pass
        embedded = places[0].inputs[0]
        for place in places:
            place.inputs = []
        yield embedded
    for place in places:
        place.recording = False


def split_windows(windows: NumpyArray, tokens_per_batch: int) -> list[NumpyArray]:
    """Group whole windows into batches of about so many tokens.

    Shapes: windows (windows, length).
    """
    per_batch = max(1, tokens_per_batch // windows.shape[1])
    return [windows[start : start + per_batch] for start in range(0, len(windows), per_batch)]


def share_windows(windows: NumpyArray, share: float) -> tuple[NumpyArray, NumpyArray]:
    """Split off a share of the windows, evenly spread over them, from the others.

    The share has at least one window unless it is 0.
    """
    count = min(len(windows), math.ceil(share * len(windows)))
    chosen = np.zeros(len(windows), bool)
    chosen[np.arange(count) * len(windows) // max(count, 1)] = True
    return windows[chosen], windows[~chosen]


@dataclass(frozen=True, slots=True)
class Flow:
    """How calibration tokens go through a model, as `edgeq.planning.memory` chooses it.

    "standing": hold all batches at each layer (fast), every operation runs once.
    "recomputing": recompute batch by batch (small), a block's layers run about three times.
    Hidden states between blocks lie where passes run, on the host of that device, or on disk in
    states_folder.
    """

    schedule: Literal["standing", "recomputing"] = "standing"
    batch_tokens: int | None = None
    states_folder: Path | None = None
    states_on_host: bool = False


def saved_windows(folder: Path, name: str) -> Iterator[NumpyArray]:
    """Read a stream that was saved in batches of any size, window after window.

    Shapes: (tokens, hidden).
    """
    for path in sorted(folder.glob(f"{name}-*.npy")):
        yield from np.load(path, mmap_mode="r", allow_pickle=False)


class CalibrationStreams:
    """Both streams of hidden states, and blocks whose forwards halt at each linear layer.

    The full-precision stream runs on the share `drift` of the windows, evenly chosen; a run without
    it costs half.

    Shapes: windows (count, tokens) of token ids.
    """

    def __init__(
        self,
        model: BlockwiseModel,
        windows: NumpyArray,
        *,
        drift: float = 1.0,
        flow: Flow | None = None,
    ) -> None:
        self._model, self._flow = model, flow or Flow()
        self._full, self._quantized = self._no_states(), self._no_states()
        tokens = self._flow.batch_tokens or CALIBRATION_BATCH
        paired, single = (split_windows(part, tokens) for part in share_windows(windows, drift))
        self._order = np.concatenate(share_windows(np.arange(len(windows)), drift))
        self._length = windows.shape[1]
        self._first = [0, *itertools.accumulate(ids.size for ids in (*paired, *single))]
        for batch, hidden in enumerate(model.record([*paired, *single])):
            if batch < len(paired):
                self._full.append(hidden)
            self._quantized.append(hidden)

    def sites(self, block: BlockSpec) -> Iterator[Site]:
        """Load a block, halt at each of its sites, then keep the hidden states behind it."""
        schedule = self._stand if self._flow.schedule == "standing" else self._recompute
        with self._model.halting_block(block) as set_weight:
            yield from schedule(block.index, set_weight)

    def save(self, folder: Path) -> None:
        """Write the hidden states of both streams, a file per batch."""
        for name, stream in (("full", self._full), ("quantized", self._quantized)):
            for batch in range(len(stream)):
                path = folder / f"{name}-{batch:05d}.npy"
                write_array(path, self._model.to_numpy(stream.read(batch)))

    def restore(self, folder: Path) -> None:
        """Go on with the states that `save` wrote, in batches of this or another size.

        Another framework may have written them.

        Raises: OSError, ValueError or EOFError.
        """
        for name, stream in (("full", self._full), ("quantized", self._quantized)):
            windows = saved_windows(folder, name)
            for batch in range(len(stream)):
                shape = tuple(stream.read(batch).shape)
                hidden = np.array(list(itertools.islice(windows, shape[0])))
                if hidden.shape != shape or hidden.dtype.kind != "f":
                    found = f"{hidden.dtype} of shape {hidden.shape}"
                    raise ValueError(f"hidden states are {found} instead of numbers of {shape}")
                stream.replace(batch, self._model.from_numpy(hidden))

    def _stand(self, index: int, set_weight: Callable[[str, Array], Array]) -> Iterator[Site]:
        full = [Forward(run) for run in self._runs(index, quantized=False)]
        quantized = [Forward(run) for run in self._runs(index, quantized=True)]
        yield from Streams(full, quantized, set_weight).sites()
        for states, forwards in ((self._full, full), (self._quantized, quantized)):
            for batch, forward in enumerate(forwards):
                states.replace(batch, forward.finished())

    def _recompute(self, index: int, set_weight: Callable[[str, Array], Array]) -> Iterator[Site]:
        def keep(is_quantized: bool, batch: int, hidden: Array) -> None:
            states = self._quantized if is_quantized else self._full
            states.replace(batch, hidden)

        full = self._runs(index, quantized=False)
        passes = self._runs(index, quantized=True)
        yield from RecomputedStreams(full, passes, set_weight, keep, self._no_states).sites()

    def _runs(self, index: int, *, quantized: bool) -> list[Callable[[], Array]]:
        states = self._quantized if quantized else self._full

        def run(batch: int) -> Array:
            first, total = self._first[batch], self._first[-1]
            start_pass(Pass(quantized, batch, first, self._length, total, self._order))
            return self._model.run_block(index, batch, states.read(batch))

        return [partial(run, batch) for batch in range(len(states))]

    def _no_states(self) -> HiddenStates:
        model, folder = self._model, self._flow.states_folder
        if folder is not None:
            return StatesOnDisk(folder, model.to_numpy, model.from_numpy)
        if self._flow.states_on_host:
            return StatesOnHost(model.to_numpy, model.from_numpy)
        return StatesInMemory()


class BlockwiseLogits:
    """Predictions of any ModelSource, block by block: one block has weights at a time.

    watch is told after each block how many of them are done, and how many there are.
    """

    watch: Callable[[int, int], None] | None = None

    def __init__(self, model: BlockwiseModel) -> None:
        self._model = model

    @staticmethod
    def check_installed() -> None:
        """Do nothing: importing the model's module needed everything."""

    def logits(self, windows: NumpyArray) -> Iterator[NumpyArray]:
        batches = split_windows(windows, PREDICTION_BATCH)
        hidden = list(self._model.record(batches))
        for index in range(len(self._model.places)):
            with self._model.block(index):
                hidden = [
                    self._model.run_block(index, batch, states)
                    for batch, states in enumerate(hidden)
                ]
            if self.watch is not None:
                self.watch(index + 1, len(self._model.places))
        for of_batch in self._model.logits(batches, hidden):
            yield from of_batch
