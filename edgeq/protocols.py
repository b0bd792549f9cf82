"""The seams: what a backend, a model source, an activation source and an exporter must offer.

Descriptions of formats are read to answer --help, so nothing heavy is imported to run this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from edgeq.decoder import ModelRecord
    from edgeq.format_parts import Format
    from edgeq.types import (
        Array,
        BlockSpec,
        Grid,
        NumpyArray,
        QuantizedLinear,
        ScaleDtype,
        StoredTensor,
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

    def rows_at_once(self, columns: int) -> int:
        """Say how many rows of so many columns are worked on together where rows are alike.

        Their temporaries fit a CPU's cache, or a share of the device's memory.
        """

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

    def replace(self, layer: str, W: NumpyArray) -> None:
        """Set the weight that the quantized stream computes with from here on."""


class ActivationSource(Protocol):
    """Forward passes over the calibration tokens; separate from linear algebra on purpose."""

    computes_in: str
    """The precision of the passes, for reports."""

    def sites(self, block: BlockSpec) -> Iterator[Site]:
        """Load a block and halt at each of its sites; both streams have passed it at the end."""

    def save(self, folder: Path) -> None:
        """Write both streams' hidden states into an empty directory, and flush them to disk."""

    def restore(self, folder: Path) -> None:
        """Go on with the states that `save` wrote. Raises: OSError, ValueError or EOFError."""


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


class Exporter(Protocol):
    """Writes one file format, and nothing unless `reject_reason` is None."""

    format: Format

    @property
    def settings(self) -> Mapping[str, Any]:
        """Give what the exporter was made with, as the manifest states it."""

    def reject_reason(
        self, record: ModelRecord, companions: Mapping[str, bytes], grids: Grids
    ) -> str | None:
        """Say why this model on these grids cannot be written and what to change; None when it can.

        grids maps each tensor name to its shape and its grid (None: dense).
        """

    def notes(
        self, record: ModelRecord, companions: Mapping[str, bytes], grids: Grids
    ) -> Sequence[str]:
        """Say what the files will not hold of the model as it is, and who does not read them.

        Asked for models without a `reject_reason`, with their grids.
        """

    def why_not_grid(self, shape: tuple[int, ...], grid: Grid) -> str | None:
        """Say what keeps a linear layer on this grid out of the format and what to change, or None.

        Shapes: (out, in).
        """

    def planned_bytes(
        self, record: ModelRecord, grids: Grids, item_bytes: Mapping[str, int]
    ) -> int:
        """Count the bytes of all weights in the files; headers and tokenizer are left out.

        grids are those of `reject_reason` but for redundant and refused ones, or a part of them.
        item_bytes has the bytes of one number of each tensor, as the model has it.
        """

    def overhead_bytes(self, record: ModelRecord, companions: Mapping[str, bytes]) -> int:
        """Count at most what the files hold beside weights; what runtimes are given counts."""

    def write(self, model: QuantizedModel, destination: Path) -> list[Path]:
        """Write the files and manifest.json into the empty directory `destination`.

        Each entry of the manifest is made by `edgeq_exporters.common.manifest`: what the reader of
        the format needs to find the tensor again, its status, largest deviation, and the hashes of
        the solution and of what the file holds.
        """


class ExportReader(Protocol):
    """Reads an export back from its bytes, one tensor at a time, to verify it.

    Made with a directory. library computed the weights, with its version; file is what a runtime
    opens first; settings are those that the files show. Values come from the container's own
    library where it is installed; all else is unpacked independently of the exporter. What cannot
    be read raises whatever it likes, and neither hangs nor takes more memory than the files.
    """

    library: str
    file: str
    settings: Mapping[str, Any]

    def __init__(self, directory: Path) -> None: ...

    def tensor_names(self) -> Sequence[str]:
        """List every tensor in the files that a manifest has to name, as its entries do."""

    def read(self, entry: Mapping[str, Any]) -> StoredTensor:
        """Read the tensor of a manifest's entry, with the grid it was solved on."""
