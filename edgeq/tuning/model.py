"""What a framework offers for tuning: a few verbs on arrays, and a model that runs backward."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgeq.streams.blockwise import BlockwiseModel
from edgeq.streams.hidden_states import HiddenStates
from edgeq.types import Array, NumpyArray, ScaleDtype

BATCH_TOKENS = 2048  # whose graphs are kept through all blocks, or that pass one together
PREDICTIONS = 1 << 24  # numbers of predictions that are compared at once: 64 MB in float32


class Numbers(Protocol):
    """Does with arrays what frameworks do differently, in float32 on the device of the model."""

    def put(self, x: NumpyArray) -> Array:
        """Take an array over to the device, in its own type."""

    def get(self, x: Array) -> NumpyArray:
        """Copy an array to NumPy."""

    def levels(self, codes: Array, table: Sequence[int]) -> Array:
        """Give codes in float32, or what they stand for in a table, where there is one."""

    def rounded(self, x: Array, dtype: ScaleDtype) -> Array:
        """Round to the nearest value that dtype can store, within its limits."""

    def nearest_codes(self, x: Array, largest: int) -> Array:
        """Give the code from 0 to the largest that each position is nearest to, as bytes."""

    def clip(self, x: Array, low: float, high: float) -> Array:
        """Raise values below low to low, lower those above high to high."""

    def joined(self, parts: Sequence[Array]) -> Array:
        """Put matrices side by side."""

    def stacked(self, windows: Sequence[Array]) -> Array:
        """Put the hidden states of windows one behind the other. Shapes: (1, ...) -> (n, ...)."""

    def finish(self, arrays: Sequence[Array]) -> None:
        """Compute what is queued; nothing to do where the framework is eager."""


class TracedBlock(Protocol):
    """A block with its weights, which takes gradients back through itself."""

    def forward(self, batch: int, hidden: Array) -> Array:
        """Run a recorded batch through the block."""

    def backward(self, batch: int, hidden: Array, gradient: Array) -> Array:
        """Take the gradient behind the block to the hidden states before it.

        Those of the block's tensors are added up.
        """

    def gradients(self) -> Mapping[str, Array]:
        """Give the gradients of the tensors that the block was entered with, summed up so far."""


@dataclass(frozen=True, slots=True)
class HeadResult:
    """What a batch's predictions differ by: the sum of KL over its tokens, and its gradients.

    hidden and tensors are the gradients of the hidden states behind the last block, and of tensors
    outside of the blocks; none were asked for where hidden is None.
    """

    kl: float
    hidden: Array = None
    tensors: Mapping[str, Array] = field(default_factory=dict)


class TuningModel(BlockwiseModel, Protocol):
    """A model whose blocks run backward, and whose predictions are compared with another's."""

    @property
    def numbers(self) -> Numbers:
        """Give the verbs of the framework, on the device of the model."""

    @property
    def precision(self) -> str:
        """Name the type that products of training passes are computed in."""

    def traced(
        self, index: int, tensors: Mapping[str, Array] | None
    ) -> AbstractContextManager[TracedBlock]:
        """Fill a block, with these tensors in the place of the source's of the same names.

        Without tensors it is entered only to take gradients back through graphs that were kept.
        """

    def exact(self) -> AbstractContextManager[None]:
        """Compute in float32 meanwhile, whatever training passes are computed in."""

    def divergences(
        self,
        original: Any,
        batches: Sequence[NumpyArray],
        hidden: HiddenStates,
        targets: Callable[[int], Array],
        tensors: Mapping[str, Array],
        *,
        weight: float | None,
    ) -> Iterator[HeadResult]:
        """Compare predictions of hidden states behind the last block with the original's.

        targets gives the original's hidden states of a batch, tensors those outside of the blocks
        that differ from the source's. weight multiplies gradients; None asks for none.

        Yields one result per batch.
        """


@dataclass(frozen=True, slots=True)
class Models:
    """Both models in one framework, and how they are run.

    resident: codes and graphs stay in memory, and batches of batch_tokens pass all blocks one by
    one. Else all batches of a step pass a block before the next one is read.
    """

    original: TuningModel
    quantized: TuningModel
    make_states: Callable[[], HiddenStates]
    resident: bool = True
    batch_tokens: int = BATCH_TOKENS

    @property
    def numbers(self) -> Numbers:
        return self.quantized.numbers

    @property
    def way(self) -> str:
        return "resident" if self.resident else "streamed"


def parts_of(shape: tuple[int, ...], vocabulary: int) -> list[slice]:
    """Cut windows so that the predictions of a part of each take little memory together.

    Shapes: that of token ids, (windows, tokens).
    """
    windows, length = shape
    size = max(1, PREDICTIONS // (windows * vocabulary))
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
