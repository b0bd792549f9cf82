"""Run a model backward block by block, to see how much each linear layer's output decides.

For budgets it is summed up over tokens, by output; for weights of tokens over outputs, by token.

The gradient is that of log p(y), of tokens y that the model itself draws at every place: its second
moment is what small errors are multiplied by in the KL divergence that they cause (the Fisher
information). One block has weights at a time; hidden states between blocks are kept. Frameworks
contribute a `GradientModel`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edgeq.streams.blockwise import BlockwiseModel, split_windows
from edgeq.streams.hidden_states import HiddenStates
from edgeq.types import Array, BlockSpec, NumpyArray

HEAD_NUMBERS = 1 << 22  # predictions that are taken back at once: 16 MB in float32
HEAD_COPIES = 7  # of them while they are taken back

Noted = Mapping[str, NumpyArray]
"""What was measured of the gradients of outputs, by the names of linear layers."""
Measure = Callable[[Array, Array | None, int], NumpyArray]
"""Measures the gradient of a layer's outputs: of all tokens of a window, or of those given.

Gets the gradient, the numbers of its tokens in the window or None, and the window's length. What it
gives of several runs of a layer is added up. Shapes: gradient (..., out), numbers (tokens,).
"""


def head_tokens(vocabulary: int) -> int:
    """Count the tokens whose predictions are taken back at once, so that these take little."""
    return max(1, HEAD_NUMBERS // max(1, vocabulary))


@dataclass(slots=True)
class HeadMoments:
    """What the head decides: sums over tokens.

    Shapes: squares of gradients of its outputs (vocabulary,); inputs X.T @ X (in, in).
    """

    squares: NumpyArray | None = None
    inputs: NumpyArray | None = None


@dataclass(slots=True)
class Sensitivities:
    """How much errors in the outputs of each layer matter: means over all tokens.

    outputs has, by the name of a linear layer, the mean squared gradient of each output; a token
    that does not reach an expert counts with none. embedding is that of each column of the hidden
    states before block 0, tokens how often each token occurs there. head is that of the logits,
    head_inputs the second moment of what the head reads.

    Shapes: outputs (out,); embedding (hidden,); tokens and head (vocabulary,); head_inputs
    (in, in).
    """

    outputs: dict[str, NumpyArray] = field(default_factory=dict)
    embedding: NumpyArray = field(default_factory=lambda: np.zeros(0))
    tokens: NumpyArray = field(default_factory=lambda: np.zeros(0))
    head: NumpyArray = field(default_factory=lambda: np.zeros(0))
    head_inputs: NumpyArray = field(default_factory=lambda: np.zeros((0, 0)))


class GradientModel(BlockwiseModel, Protocol):
    """A framework's own model code that also runs backward."""

    def traced_block(
        self, block: BlockSpec, measure: Measure
    ) -> AbstractContextManager[Callable[[int, Array, Array], tuple[Array, Noted]]]:
        """Fill a block with its weights.

        Gives what takes the gradient behind the block back through it: a function of the batch,
        the hidden states before the block, and the gradient. It also gives what was measured at
        each linear layer that some token of the batch reached.
        """

    @staticmethod
    def squares(gradient: Array, numbers: Array | None, length: int) -> NumpyArray:
        """Measure the squares of each output, summed over tokens. Shapes: (out,)."""

    @staticmethod
    def magnitudes(gradient: Array, numbers: Array | None, length: int) -> NumpyArray:
        """Measure the mean magnitude over outputs of each token of a window. Shapes: (length,)."""

    @staticmethod
    def mean_squares(gradient: Array, numbers: Array | None, length: int) -> NumpyArray:
        """Measure the mean square over outputs of each token of a window. Shapes: (length,)."""

    def head_gradients(
        self,
        batches: Sequence[NumpyArray],
        hidden: HiddenStates,
        draws: Sequence[NumpyArray],
        *,
        moments: bool,
    ) -> Iterator[tuple[Array, HeadMoments]]:
        """Draw a token at each place of every batch and take log p(y) back to the hidden states.

        draws are numbers in [0, 1) that choose the tokens. Moments are empty unless asked for.

        Shapes: draws (windows, length).
        """


def measure_sensitivities(
    model: GradientModel,
    specs: Sequence[BlockSpec],
    windows: NumpyArray,
    *,
    seed: int,
    make_states: Callable[[], HiddenStates],
) -> Sensitivities:
    """Run windows forward through all blocks and their gradients back again.

    make_states makes the places where hidden states lie, one for each block.

    Shapes: windows (count, tokens) of token ids.
    """
    batches = split_windows(windows, 1)  # window by window: a block's graph is what takes memory
    total = windows.size
    found = Sensitivities()
    states = list(run_forward(model, specs, batches, make_states))
    rng = np.random.default_rng(seed)
    draws = [rng.random(ids.shape) for ids in batches]
    gradients = []
    for gradient, moments in model.head_gradients(batches, states.pop(), draws, moments=True):
        gradients.append(gradient)
        assert moments.squares is not None and moments.inputs is not None
        found.head = _plus(found.head, moments.squares / total)
        found.head_inputs = _plus(found.head_inputs, moments.inputs / total)
    for spec in reversed(specs):
        before = states.pop()
        found.outputs |= {linear.name: np.zeros(linear.shape[0]) for linear in spec.linears}
        with model.traced_block(spec, model.squares) as take_back:
            for batch, gradient in enumerate(gradients):
                gradients[batch], squares = take_back(batch, before.read(batch), gradient)
                for name, of_layer in squares.items():
                    found.outputs[name] = found.outputs[name] + of_layer / total
    for gradient in gradients:
        values = model.to_numpy(gradient).astype(np.float64)
        squares_of_columns = (values**2).reshape(-1, values.shape[-1]).sum(axis=0)
        found.embedding = _plus(found.embedding, squares_of_columns / total)
    found.tokens = np.bincount(windows.reshape(-1), minlength=found.head.size) / total
    return found


def measure_tokens(
    model: GradientModel,
    specs: Sequence[BlockSpec],
    windows: NumpyArray,
    measure: Measure,
    *,
    seed: int,
    at_once: int,
    make_states: Callable[[], HiddenStates],
) -> Iterator[tuple[int, int, Noted]]:
    """Measure the tokens of each window at every linear layer.

    Yields the number of a block and of a window with what was measured there, 0 for tokens that do
    not reach a layer. So many windows as at_once says are taken forward and back together; what is
    found does not depend on it.

    Shapes: windows (count, tokens) of token ids; what is yielded has (tokens,).
    """
    draws = np.random.default_rng(seed).random(windows.shape)
    for first in range(0, len(windows), at_once):
        batches = split_windows(windows[first : first + at_once], 1)
        states = list(run_forward(model, specs, batches, make_states))
        of_batches = [draws[first + batch, None] for batch in range(len(batches))]
        gradients = make_states()
        behind = states.pop()
        for gradient, _ in model.head_gradients(batches, behind, of_batches, moments=False):
            gradients.append(gradient)
        for spec in reversed(specs):
            before = states.pop()
            nothing = {linear.name: np.zeros(windows.shape[1]) for linear in spec.linears}
            with model.traced_block(spec, measure) as take_back:
                for batch in range(len(batches)):
                    gradient, noted = take_back(batch, before.read(batch), gradients.read(batch))
                    gradients.replace(batch, gradient)
                    yield spec.index, first + batch, {**nothing, **noted}


def run_forward(
    model: GradientModel,
    specs: Sequence[BlockSpec],
    batches: Sequence[NumpyArray],
    make_states: Callable[[], HiddenStates],
) -> Iterator[HiddenStates]:
    """Run batches through all blocks: the hidden states before each, then those behind the last."""
    before = make_states()
    for hidden in model.record(batches):
        before.append(hidden)
    yield before
    for spec in specs:
        behind = make_states()
        with model.block(spec.index):
            for batch in range(len(batches)):
                behind.append(model.run_block(spec.index, batch, before.read(batch)))
        yield behind
        before = behind


def _plus(total: NumpyArray, term: NumpyArray) -> NumpyArray:
    """Add to a sum that is empty before its first term."""
    return term if not total.size else total + term
