"""The seams: what a backend, a model source and an activation source must offer.

Descriptions of formats are read to answer --help, so nothing heavy is imported to run this module.
Those of exporters are in `edgeq.format_parts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from edgeq.decoder import ModelRecord
    from edgeq.types import (
        Array,
        BlockSpec,
        Grid,
        NumpyArray,
        QuantizedLinear,
        ScaleDtype,
        Tokens,
    )

    Grids = Mapping[str, tuple[tuple[int, ...], Grid | None]]  # by tensor; None: dense


@dataclass(frozen=True, slots=True)
class Columns:
    """Hold what a sweep over columns needs beside codes: one contiguous row for each column.

    pull is what a unit of residual moves a code by.

    Shapes: H (columns, columns); scales and pull (columns, out).
    """

    H: Array
    scales: Array
    pull: Array
    grid: Grid


class Backend(Protocol):
    """Does what frameworks do differently, in its working precision unless said otherwise."""

    name: str
    computes_in: str
    """The working precision, for reports."""
    columns_at_once: int
    """How many columns loops over them take as a block."""
    notes: Sequence[str]
    """What its device lacks and does without, for users to read."""

    def working(self) -> AbstractContextManager[object]:
        """Have the process compute as the backend says meanwhile, and as it did before after it."""

    def asarray(self, x: Any) -> Array:
        """Take an array over to the backend's device, in working precision."""

    def activations(self, x: Any) -> Array:
        """Take inputs of a layer over in the precision of `gram`: float32 or wider."""

    def to_numpy(self, x: Array) -> NumpyArray: ...

    def copy(self, x: Array) -> Array:
        """Copy into a contiguous array whose slices may be assigned to."""

    def gram(self, X: Array, Y: Array) -> Array:
        """Compute X.T @ Y of activations, in working precision; half the work where X is Y."""

    def diagonal(self, A: Array) -> Array: ...

    def add_diagonal(self, A: Array, value: Array | float) -> Array: ...

    def cholesky(self, A: Array) -> Array:
        """Factorise A into a lower factor, in the widest precision the device has.

        Shapes: (..., n, n).
        Raises: NotPositiveDefinite, also for NaN.
        """

    def solve_triangular(self, L: Array, B: Array, *, transposed: bool = False) -> Array:
        """Compute L^-1 B, or L^-T B, for a factor of `cholesky`, in working precision.

        Shapes: (..., n, k).
        """

    def solve_product(self, A: Array, B: Array, L: Array) -> Array:
        """Compute A B (L L^T)^-1 for a factor of `cholesky`, in the widest precision of the device.

        Small pivots of L amplify rounding on the way. The result is in working precision.

        Shapes: A (m, n), B and L (n, n).
        """

    def round_clip(self, x: Array, low: float, high: float) -> Array:
        """Round to the nearest whole number, half to even, then clip."""

    def nearest(self, x: Array, table: Sequence[int]) -> Array:
        """Give the nearest value of a rising table, the lower of two as near; NaN stays NaN."""

    def clip(self, x: Array, low: float, high: float) -> Array:
        """Raise values below low to low, lower those above high to high; x keeps its precision."""

    def round_to(self, x: Array, dtype: ScaleDtype) -> Array:
        """Round to the nearest value that dtype can store, still in working precision."""

    def min_max(self, x: Array, axis: int) -> tuple[Array, Array]: ...

    def where(self, mask: Array, a: Array | float, b: Array | float) -> Array: ...

    def take(self, x: Array, indices: NumpyArray, axis: int) -> Array: ...

    def concatenate(self, parts: Sequence[Array], axis: int) -> Array: ...

    def evaluate(self, *arrays: Array) -> None:
        """Finish queued work; nothing to do where the framework is eager."""

    def device_memory(self) -> tuple[int, int] | None:
        """Give the bytes that are free on the device now, and all that it has.

        None where it has no memory of its own, but shares the machine's.
        """

    def rows_at_once(self, columns: int) -> int:
        """Say how many rows of so many columns fit a cache, or a share of a device's memory."""

    def round_columns(
        self, columns: Array, U: Array, scales: Array, offsets: Array, grid: Grid
    ) -> tuple[Array, Array]:
        """Round a block's columns one after the other, each moved by the errors of those before.

        Gives codes, and the errors (v_j - Q(v_j)) / U_jj that the columns after the block absorb.

        Shapes: columns, scales, offsets and the results (columns, out); U (columns, columns).
        """

    def sweep_columns(
        self, columns: Columns, codes: Array, wanted: Array, *, rounding: bool
    ) -> Array:
        """Find how far the weights of a block's columns move, each after those before it.

        wanted are the codes that would be best if no column of the block moved; with rounding,
        codes become levels of the grid.

        Shapes: codes, wanted and the result (columns, out).
        """

    def choose_scales(
        self, values: Array, weights: Array, tried: Iterable[Any], grid: Grid, best: Any = None
    ) -> tuple[Array, Array, Array]:
        """Choose for each group the scale and offset whose rounding error weighs least: its loss.

        tried are pairs of both, best is what was chosen of others; one is taken for what was tried
        before where it is better by more than noise.
        Shapes: values (out, groups, columns); weights (1, groups, columns); all else (out, groups).
        """

    def sweep_scales(self, A: Array, c: Array, x: Array, grid: Grid, sweeps: int) -> Array:
        """Lower x^T A x - 2 c^T x of each row, group after group, by steps that can be stored.

        x are all scales, on an offset grid followed by all offsets; those of a group move together.
        Shapes: A (out, unknowns, unknowns); c, x and the result (out, unknowns).
        """


class TextSizes(Protocol):
    """What a text has to fit: the model's name, its embedding's rows, longest text and chat."""

    @property
    def name(self) -> str: ...
    @property
    def vocabulary(self) -> int | None: ...
    @property
    def context(self) -> int | None: ...
    @property
    def template(self) -> str | None: ...


class TextModel(Protocol):
    """A model as far as texts are tokenized and measured for it."""

    @property
    def record(self) -> TextSizes: ...

    def companions(self) -> Mapping[str, bytes]:
        """Read the model's files: tokenizer.json, generation_config.json and the like."""


class ModelDescription(Protocol):
    """A model as far as it is known without its tensors."""

    @property
    def record(self) -> ModelRecord:
        """Give what the model is, read once when it was opened."""

    def companions(self) -> Mapping[str, bytes]:
        """Read the model's files: tokenizer.json, generation_config.json and the like."""


class ModelSource(ModelDescription, Protocol):
    """Reads a model on disk tensor by tensor; names and config are those of Hugging Face."""

    def tensor_names(self) -> Sequence[str]: ...

    def shape(self, tensor_name: str) -> tuple[int, ...]: ...

    def read(self, tensor_name: str) -> NumpyArray:
        """Read one tensor: float32, or float16 or ml_dtypes.bfloat16 where it is stored so."""

    def stored_as(self, tensor_name: str) -> str:
        """Say how the tensor lies on disk: "F16", "Q4_1", "4 bits, group 32, symmetric"."""

    def tensor_bytes(self, tensor_name: str) -> int:
        """Count the bytes of the tensor on disk, with everything that belongs to it."""

    def stored_bytes(self) -> int:
        """Count the bytes of the files that hold the weights."""

    def blocks(self) -> Sequence[BlockSpec]:
        """List the decoder blocks in execution order."""

    def fingerprint(self) -> str:
        """Hash what changes with weights or config; cheap, it need not read all weights."""

    def location(self) -> Path:
        """Give the file or directory that other programs are given to read the model."""


class QuantizedModel(Protocol):
    """A solved model as exporters see it, under the tensor names of its source.

    These are names such as "model.layers.0.mlp.up_proj.weight".
    """

    @property
    def record(self) -> ModelRecord: ...

    def tensor_names(self) -> Sequence[str]:
        """List every tensor, quantized or dense, in a fixed order.

        A tied head has no tensor of its own.
        """

    def grid(self, tensor_name: str) -> Grid | None:
        """Give the grid of a quantized tensor; None for a dense one."""

    def quantized(self, tensor_name: str) -> QuantizedLinear: ...

    def dense(self, tensor_name: str) -> NumpyArray: ...

    def companions(self) -> Mapping[str, bytes]: ...

    @property
    def type_asked(self) -> str | None:
        """Give the type or mix that was asked for all layers ("Q4_K_M"), if one was."""


class Site(Protocol):
    """Holds both streams at the layers that read one input (q, k, v | o | gate, up | down)."""

    name: str  # of the first layer that reads the input
    lends: Sequence[str]  # layers of later sites with inputs like this one's, which then has none

    def batches(self) -> Iterator[tuple[Array | None, Array]]:
        """Give (X, X_hat) per batch, tokens x in; X is None when no full-precision stream runs."""

    def tokens(self, batch: int) -> Tokens | None:
        """Say which tokens the rows are; None where no windows are known."""

    def layers(self) -> Iterator[str]:
        """Give the layers in order; asking for the next lets both streams run through the last."""

    def replace(self, layer: str, W: NumpyArray | QuantizedLinear) -> None:
        """Set the weight that the quantized stream computes with from here on.

        A solved layer is dequantized where the stream is.
        """


class HeldStates(Protocol):
    """Hidden states of both streams between two blocks, on their way to the disk."""

    def begin(self) -> bool:
        """Start to bring them to the host, without waiting; say whether they may change then."""

    def save(self, folder: Path) -> Iterator[tuple[str, str]]:
        """Write them into an empty directory, once; give name and SHA-256 of each flushed file.

        `begin` comes before it, in the thread that computes; this may run in another one.
        """


class ActivationSource(Protocol):
    """Forward passes over the calibration tokens; separate from linear algebra on purpose."""

    computes_in: str
    """The precision of the passes, for reports."""

    def sites(self, block: BlockSpec) -> Iterator[Site]:
        """Load a block and halt at each of its sites; both streams have passed it at the end."""

    def hold(self, let_go: Callable[[], None]) -> HeldStates:
        """Give both streams' hidden states as they are now, to be saved while work goes on.

        `let_go` is called where they would be overwritten, or be in memory twice.
        """

    def restore(self, folder: Path) -> None:
        """Go on with the states that were saved. Raises: OSError, ValueError or EOFError."""


class TextWriter(Protocol):
    """Writes text with a model.

    Made with its source, the token ids it may write, a seed, and resident: how many blocks keep
    their weights in memory, None for the whole model. The text is the same.
    """

    def continue_text(self, first: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
        """Sample the next token of every text, step by step without end, at temperature 1.

        first holds the token that each text starts with.

        Shapes: first and every item (texts,) of token ids.
        Raises: BadInput when a prediction is not finite.
        """


class LogitSource(Protocol):
    """A model that predicts, in a framework or in a runtime."""

    @staticmethod
    def check_installed() -> None:
        """Refuse a runtime that is missing, before any work starts.

        Raises: NotInstalled.
        """

    def logits(self, windows: np.ndarray[Any, Any]) -> Iterator[NumpyArray]:
        """Predict every token of each window.

        Shapes: windows (count, tokens) of ids; yields (tokens, vocabulary) float32.
        """
