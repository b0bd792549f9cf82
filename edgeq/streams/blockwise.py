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

from edgeq.protocols import Site
from edgeq.streams.hidden_states import HiddenStates, StatesInMemory, StatesOnDisk, StatesOnHost
from edgeq.streams.recomputing import RecomputedStreams
from edgeq.streams.routing import Pass, start_pass
from edgeq.streams.saved_states import HeldBatches, SavedStream, batch_name
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
        """Give hidden states as NumPy's, in the precision that they run in.

        bfloat16 is that of ml_dtypes, or its bits as uint16.
        """

    def from_numpy(self, hidden: NumpyArray) -> Array:
        """Undo `to_numpy`, in memory that the framework allocated."""

    def fetch(self, hidden: Array) -> Callable[[], NumpyArray]:
        """Start to bring hidden states to the memory of the host, without waiting.

        Gives what waits for them and gives what `to_numpy` does, for one call in any thread.
        """

    @property
    def fetches_copies(self) -> bool:
        """Say whether what is fetched is a copy, so that hidden states need not be kept for it."""

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
        self._let_go: Callable[[], None] | None = None
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

    def hold(self, let_go: Callable[[], None]) -> HeldBatches:
        """Give both streams' hidden states as they are now, to be saved while work goes on.

        `let_go` is called where they would be overwritten, or be in memory twice.
        """
        self._let_go = let_go
        on_device = self._flow.states_folder is None and not self._flow.states_on_host
        return HeldBatches(
            [
                (batch_name(name, batch), partial(stream.lend, batch, self._model.fetch))
                for name, stream in self._streams()
                for batch in range(len(stream))
            ],
            copies=on_device and self._model.fetches_copies,
        )

    def restore(self, folder: Path) -> None:
        """Go on with the states that were saved, in batches of this or another size.

        Another framework may have written them, in another precision.

        Raises: OSError, ValueError or EOFError.
        """
        for name, stream in self._streams():
            saved = SavedStream(folder, name)
            for batch in range(len(stream)):
                now = self._model.to_numpy(stream.read(batch))
                stream.replace(batch, self._model.from_numpy(saved.read(now.shape, now.dtype)))

    def _streams(self) -> tuple[tuple[str, HiddenStates], ...]:
        return (("full", self._full), ("quantized", self._quantized))

    def _start_overwriting(self) -> None:
        """Have whoever still holds the hidden states before a block let go of them."""
        let_go, self._let_go = self._let_go, None
        if let_go is not None:
            let_go()

    def _stand(self, index: int, set_weight: Callable[[str, Array], Array]) -> Iterator[Site]:
        full = [Forward(run) for run in self._runs(index, quantized=False)]
        quantized = [Forward(run) for run in self._runs(index, quantized=True)]
        yield from Streams(full, quantized, set_weight).sites()
        if self._flow.states_folder is not None:
            self._start_overwriting()
        # in memory both are there until all batches are through, so the states before may stay
        self._full = self._full.behind([forward.finished() for forward in full])
        self._quantized = self._quantized.behind([forward.finished() for forward in quantized])

    def _recompute(self, index: int, set_weight: Callable[[str, Array], Array]) -> Iterator[Site]:
        def keep(is_quantized: bool, batch: int, hidden: Array) -> None:
            self._start_overwriting()
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
