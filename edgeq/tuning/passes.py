"""One pass of a batch through the quantized model and back, a block at a time.

Hidden states between blocks are kept. What runs together passes a block before the next one is
filled: all batches of a step where a model does not fit into memory, else one batch at a time.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np

from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput
from edgeq.streams.blockwise import split_windows
from edgeq.streams.hidden_states import HiddenStates
from edgeq.tuning.free import CODES, FreeNumbers, free_of_block, free_outside
from edgeq.tuning.matrices import TunedMatrix, float_parts, matrix_of, tensor_of
from edgeq.tuning.model import Models, Numbers
from edgeq.types import Array, BlockSpec, NumpyArray, QuantizedLinear

Masters = dict[str, Array]
"""What is tuned, by the key of its part."""


class TunedBlocks:
    """The tensors of a checkpoint as functions of what is free in them."""

    def __init__(self, checkpoint: Checkpoint, models: Models, free: Sequence[str]) -> None:
        self.checkpoint, self.models = checkpoint, models
        self._moves_codes = CODES in free
        self.specs = checkpoint.blocks()
        self._kept: dict[int, Mapping[str, TunedMatrix]] = {}
        self._fixed: dict[str, dict[str, Array]] = {}
        numbers = models.numbers
        self.free: dict[str, FreeNumbers] = {}
        self._of_block: dict[int, list[str]] = {}
        for spec in self.specs:
            layers = self._layers(spec)
            parts = list(free_of_block(checkpoint, spec, layers, free))
            self.free |= {part.key: FreeNumbers(part, numbers) for part in parts}
            self._of_block[spec.index] = [part.key for part in parts]
            moved = {(part.tensor, part.part) for part in parts}
            for tensor, layer in layers.items():
                self._fixed[tensor] = {
                    name: numbers.put(floats)
                    for name, floats in float_parts(layer).items()
                    if (tensor, name) not in moved
                }
            if models.resident:
                self._kept[spec.index] = self._make(layers)
        outside = list(free_outside(checkpoint, free))
        self.free |= {part.key: FreeNumbers(part, numbers) for part in outside}
        self._outside = [part.key for part in outside]

    def zeros(self) -> Masters:
        """Give masters that are all 0."""
        return {key: numbers.zeros() for key, numbers in self.free.items()}

    def start(self, seed: int) -> Masters:
        """Give masters at which everything is as it was solved."""
        return {key: numbers.start(seed) for key, numbers in self.free.items()}

    def stored(self, masters: Masters) -> dict[str, Array]:
        """Give the stored numbers at these masters, by key."""
        found = {key: free.value(masters[key]) for key, free in self.free.items()}
        self.models.numbers.finish([*found.values()])
        return found

    def by_tensor(self, stored: Mapping[str, Array]) -> dict[str, dict[str, NumpyArray]]:
        """Give stored numbers by tensor and part, in NumPy."""
        found: dict[str, dict[str, NumpyArray]] = {}
        for key, free in self.free.items():
            value = self.models.numbers.get(stored[key])
            found.setdefault(free.part.tensor, {})[free.part.part] = value
        return found

    def outside(self, masters: Masters) -> dict[str, Array]:
        """Give the tensors outside of the blocks that are tuned."""
        return self._dense(self._outside, masters)

    def matrices(self, spec: BlockSpec) -> Mapping[str, TunedMatrix]:
        """Give the quantized tensors of a block, read again unless they are kept."""
        return self._kept.get(spec.index) or self._make(self._layers(spec))

    def tensors(
        self, spec: BlockSpec, matrices: Mapping[str, TunedMatrix], masters: Masters
    ) -> dict[str, Array]:
        """Compute the tensors of a block that are quantized or tuned, as the model has them."""
        floats = {tensor: dict(self._fixed[tensor]) for tensor in matrices}
        for key in self._of_block[spec.index]:
            part = self.free[key].part
            if part.tensor in matrices:
                floats[part.tensor][part.part] = self.free[key].value(masters[key])
        made = self._dense(self._of_block[spec.index], masters)
        for tensor, matrix in matrices.items():
            linear = self.checkpoint.record.decoder.linear_of(tensor)
            whole = matrix.matrix(floats[tensor])
            made[tensor] = whole if linear is None else tensor_of(linear, whole)
        return made

    def take_back(
        self, gradients: Mapping[str, Array], matrices: Mapping[str, TunedMatrix]
    ) -> Iterator[tuple[str, Array]]:
        """Turn gradients of a model's tensors into those of the masters, by key."""
        for tensor, gradient in gradients.items():
            parts = {"values": gradient}
            if tensor in matrices:
                linear = self.checkpoint.record.decoder.linear_of(tensor)
                whole = gradient if linear is None else matrix_of(linear, gradient)
                parts = matrices[tensor].take_back(whole)
            for part, of_part in parts.items():
                key = f"{tensor}.{part}"
                if key in self.free:
                    yield key, of_part * self.free[key].unit

    def _dense(self, keys: Sequence[str], masters: Masters) -> dict[str, Array]:
        return {
            self.free[key].part.tensor: self.free[key].value(masters[key])
            for key in keys
            if self.free[key].part.part == "values"
        }

    def _layers(self, spec: BlockSpec) -> dict[str, QuantizedLinear]:
        names = dict.fromkeys(linear.tensor for linear in spec.linears)
        return {
            name: self.checkpoint.quantized(name) for name in names if self.checkpoint.grid(name)
        }

    def _make(self, layers: Mapping[str, QuantizedLinear]) -> dict[str, TunedMatrix]:
        numbers, moves = self.models.numbers, self._moves_codes
        return {
            name: TunedMatrix(layer, numbers, moves_codes=moves) for name, layer in layers.items()
        }


def original_states(
    models: Models,
    exact: NumpyArray,
    others: NumpyArray,
    watch: Callable[[int, int], None],
) -> HiddenStates:
    """Run windows through the original's blocks, each of which is read once.

    The first windows are run in float32, the others as training passes are. Gives the hidden states
    behind the last block, an item per window.

    Shapes: exact and others (count, tokens) of token ids.
    """
    original, states = models.original, models.make_states()
    batches = split_windows(np.concatenate([exact, others]), 1)
    for hidden in original.record(batches):
        states.append(hidden)
    count = len(original.places)
    for index in range(count):
        with original.block(index):
            for batch in range(len(batches)):
                with original.exact() if batch < len(exact) else nullcontext():
                    states.replace(batch, original.run_block(index, batch, states.read(batch)))
        watch(index + 1, count)
    return states


def forward(
    blocks: TunedBlocks, batches: Sequence[NumpyArray], masters: Masters
) -> Iterator[HiddenStates]:
    """Run batches through the quantized model; yields the states before each block, then behind."""
    model = blocks.models.quantized
    states = blocks.models.make_states()
    for hidden in model.record(batches):
        states.append(hidden)
    yield states
    for spec in blocks.specs:
        behind = blocks.models.make_states()
        tensors = blocks.tensors(spec, blocks.matrices(spec), masters)
        with model.traced(spec.index, tensors) as block:
            for batch in range(len(batches)):
                behind.append(block.forward(batch, states.read(batch)))
        states = behind
        yield states


def loss_and_gradients(
    blocks: TunedBlocks,
    windows: NumpyArray,
    targets: Callable[[int], Array],
    masters: Masters,
) -> tuple[float, Masters]:
    """Compute the mean KL over windows, and its gradients by the keys of the masters.

    targets gives the original's hidden states of a window.

    Shapes: windows (count, tokens) of token ids; hidden states of a window (1, tokens, hidden).
    """
    kl = 0.0
    found: Masters = {}
    for batches, of_batch in groups(blocks.models, windows, targets):
        kl += _add_gradients(blocks, batches, of_batch, masters, found, 1 / windows.size)
    for key, free in blocks.free.items():
        if key not in found:  # nothing that was run has it
            found[key] = free.zeros()
    return finite_mean(blocks, kl, windows), found


def finite_mean(blocks: TunedBlocks, kl: float, windows: NumpyArray) -> float:
    """Give the mean KL over windows; rounding may take that of equal models below zero.

    Raises: BadInput for one that is not finite.
    """
    mean = kl / windows.size
    if not np.isfinite(mean):
        raise BadInput(
            f"model {blocks.checkpoint.record.name!r} predicts NaN or infinity while it is tuned; "
            "choose a smaller rate, or other text"
        )
    return max(mean, 0.0)


def groups(
    models: Models, windows: NumpyArray, targets: Callable[[int], Array]
) -> Iterator[tuple[list[NumpyArray], Callable[[int], Array]]]:
    """List batches that pass the blocks together, with the targets of each."""
    batches = split_windows(windows, models.batch_tokens)
    starts = np.cumsum([0, *(len(ids) for ids in batches)]).tolist()

    def of_batch(first: int, batch: int) -> Array:
        of_windows = range(starts[first + batch], starts[first + batch + 1])
        return models.numbers.stacked([targets(window) for window in of_windows])

    if not models.resident:
        yield batches, partial(of_batch, 0)
        return
    for first, ids in enumerate(batches):
        yield [ids], partial(of_batch, first)


def _add_gradients(
    blocks: TunedBlocks,
    batches: Sequence[NumpyArray],
    targets: Callable[[int], Array],
    masters: Masters,
    found: Masters,
    weight: float,
) -> float:
    """Run batches forward and back; adds their gradients, and gives the sum of their KL."""
    model, kl = blocks.models.quantized, 0.0
    states = list(forward(blocks, batches, masters))
    outside = blocks.outside(masters)
    gradients = []
    for result in model.divergences(
        blocks.models.original, batches, states.pop(), targets, outside, weight=weight
    ):
        kl += result.kl
        gradients.append(result.hidden)
        _add(blocks.take_back(result.tensors, {}), found, blocks.models.numbers)
    for spec in reversed(blocks.specs):
        before = states.pop()
        matrices = blocks.matrices(spec)
        tensors = None
        if not blocks.models.resident:
            tensors = blocks.tensors(spec, matrices, masters)
        with model.traced(spec.index, tensors) as block:
            for batch, gradient in enumerate(gradients):
                gradients[batch] = block.backward(batch, before.read(batch), gradient)
            _add(blocks.take_back(block.gradients(), matrices), found, blocks.models.numbers)
    return kl


def _add(terms: Iterable[tuple[str, Array]], found: Masters, numbers: Numbers) -> None:
    """Add gradients to those found so far, and let go of what they were computed from."""
    changed = []
    for key, term in terms:
        found[key] = found[key] + term if key in found else term
        changed.append(found[key])
    numbers.finish(changed)


def held_out_kl(
    blocks: TunedBlocks,
    windows: NumpyArray,
    targets: Callable[[int], Array],
    masters: Masters,
) -> float:
    """Measure the mean KL over windows in float32, without gradients. Raises: as above."""
    models, kl = blocks.models, 0.0
    outside = blocks.outside(masters)
    with models.quantized.exact(), models.original.exact():
        for batches, of_batch in groups(models, windows, targets):
            [states] = deque(forward(blocks, batches, masters), maxlen=1)
            results = models.quantized.divergences(
                models.original, batches, states, of_batch, outside, weight=None
            )
            kl += sum(result.kl for result in results)
    return finite_mean(blocks, kl, windows)
