"""Run a model backward block by block, to see how much each linear layer's output decides.

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

Squares = Mapping[str, NumpyArray]
"""Sums over tokens of squared gradients, by the name of a linear layer. Shapes: (out,)."""


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
        self, block: BlockSpec
    ) -> AbstractContextManager[Callable[[int, Array, Array], tuple[Array, Squares]]]:
        """Fill a block with its weights.

        Gives what takes the gradient behind the block back through it: a function of the batch,
        the hidden states before the block, and the gradient.
        """

    def head_gradients(
        self, batches: Sequence[NumpyArray], hidden: HiddenStates, draws: Sequence[NumpyArray]
    ) -> Iterator[tuple[Array, HeadMoments]]:
        """Draw a token at each place of every batch and take log p(y) back to the hidden states.

        draws are numbers in [0, 1) that choose the tokens. Shapes: (windows, length).
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
    states = [make_states()]
    for hidden in model.record(batches):
        states[0].append(hidden)
    for spec in specs:
        states.append(make_states())
        with model.block(spec.index):
            for batch in range(len(batches)):
                states[-1].append(model.run_block(spec.index, batch, states[-2].read(batch)))
    rng = np.random.default_rng(seed)
    draws = [rng.random(ids.shape) for ids in batches]
    gradients = []
    for gradient, moments in model.head_gradients(batches, states.pop(), draws):
        gradients.append(gradient)
        assert moments.squares is not None and moments.inputs is not None
        found.head = _plus(found.head, moments.squares / total)
        found.head_inputs = _plus(found.head_inputs, moments.inputs / total)
    for spec in reversed(specs):
        before = states.pop()
        with model.traced_block(spec) as take_back:
            for batch, gradient in enumerate(gradients):
                gradients[batch], squares = take_back(batch, before.read(batch), gradient)
                for name, of_layer in squares.items():
                    known = found.outputs.get(name, np.zeros(0))
                    found.outputs[name] = _plus(known, of_layer / total)
    for gradient in gradients:
        values = model.to_numpy(gradient).astype(np.float64)
        squares_of_columns = (values**2).reshape(-1, values.shape[-1]).sum(axis=0)
        found.embedding = _plus(found.embedding, squares_of_columns / total)
    found.tokens = np.bincount(windows.reshape(-1), minlength=found.head.size) / total
    return found


def _plus(total: NumpyArray, term: NumpyArray) -> NumpyArray:
    """Add to a sum that is empty before its first term."""
    return term if not total.size else total + term
