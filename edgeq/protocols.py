"""The seams: what a backend, a model source, an activation source and an exporter must offer."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgeq.decoder import ModelRecord
from edgeq.types import (
    Array,
    BlockSpec,
    Grid,
    NumpyArray,
    QuantizedLinear,
    ScaleDtype,
    StoredTensor,
)


class Backend(Protocol):
    """What frameworks do differently. Arrays are in the backend's working precision unless said
    otherwise.
    """

    name: str

    def asarray(self, x: Any) -> Array:
        """A NumPy array or an array of the activation source, in working precision on the backend's
        device.
        """

    def activations(self, x: Any) -> Array:
        """Inputs of a layer in the precision that `gram` multiplies in: float32 or wider."""

    def to_numpy(self, x: Array) -> NumpyArray: ...

    def copy(self, x: Array) -> Array:
        """A contiguous copy that slices may be assigned to."""

    def gram(self, X: Array, Y: Array) -> Array:
        """X.T @ Y of activations, in working precision; half the work where X is Y."""

    def diagonal(self, A: Array) -> Array: ...

    def add_diagonal(self, A: Array, value: Array | float) -> Array: ...

    def cholesky(self, A: Array) -> Array:
        """Lower factor, in the widest precision the device has. Raises: NotPositiveDefinite, also
        for NaN.

        Shapes: (..., n, n).
        """

    def solve_triangular(self, L: Array, B: Array, *, transposed: bool = False) -> Array:
        """L^-1 B, or L^-T B, for a factor of `cholesky`; the result is in working precision.
        Shapes: (..., n, k).
        """

    def solve_product(self, A: Array, B: Array, L: Array) -> Array:
        """A B (L L^T)^-1 for a factor of `cholesky`, product and solves in the widest precision the
        device has.

        Small pivots of L amplify whatever rounding happens on the way. The result is in working
        precision. Shapes: A (m, n), B and L (n, n).
        """

    def round_clip(self, x: Array, low: float, high: float) -> Array:
        """Nearest whole number, half to even, then clipped."""

    def clip(self, x: Array, low: float, high: float) -> Array:
        """Values below low become low, values above high become high; in the precision that x
        has.
        """

    def round_to(self, x: Array, dtype: ScaleDtype) -> Array:
        """The nearest value that dtype can store, still in working precision."""

    def min_max(self, x: Array, axis: int) -> tuple[Array, Array]: ...

    def where(self, mask: Array, a: Array | float, b: Array | float) -> Array: ...

    def take(self, x: Array, indices: NumpyArray, axis: int) -> Array: ...

    def concatenate(self, parts: Sequence[Array], axis: int) -> Array: ...

    def evaluate(self, *arrays: Array) -> None:
        """Finish queued work; nothing to do where the framework is eager."""


class TextSizes(Protocol):
    """What a text has to fit: the model's name, the rows of its embedding, its longest text."""

    @property
    def name(self) -> str: ...

    @property
    def vocabulary(self) -> int | None: ...

    @property
    def context(self) -> int | None: ...


class TextModel(Protocol):
    """What texts are tokenized and measured for."""

    @property
    def record(self) -> TextSizes: ...

    def companions(self) -> Mapping[str, bytes]:
        """Files of the model: tokenizer.json, tokenizer_config.json, generation_config.json ..."""


class ModelDescription(Protocol):
    """What is known of a model without its tensors."""

    @property
    def record(self) -> ModelRecord:
        """What the model is, read once when it was opened."""

    def companions(self) -> Mapping[str, bytes]:
        """Files of the model: tokenizer.json, tokenizer_config.json, generation_config.json ..."""


class ModelSource(ModelDescription, Protocol):
    """A model on disk, read tensor by tensor. Tensor names and the config are those of Hugging Face
    checkpoints.
    """

    def tensor_names(self) -> Sequence[str]: ...

    def shape(self, tensor_name: str) -> tuple[int, ...]: ...

    def read(self, tensor_name: str) -> NumpyArray:
        """One tensor as float32, or as float16 or ml_dtypes.bfloat16 where it is stored so."""

    def stored_as(self, tensor_name: str) -> str:
        """How the tensor lies on disk, for people: "F16", "Q4_1", "4 bits, group 32, symmetric"."""

    def tensor_bytes(self, tensor_name: str) -> int:
        """What the tensor takes on disk, with everything that belongs to it."""

    def stored_bytes(self) -> int:
        """Size of the files that hold the weights."""

    def blocks(self) -> Sequence[BlockSpec]:
        """Decoder blocks in execution order."""

    def fingerprint(self) -> str:
        """A hash that changes when the weights or the config change; cheap, it need not read all
        weights.
        """


class QuantizedModel(Protocol):
    """A solved model as exporters see it, with its source's tensor names
    ("model.layers.0.mlp.up_proj.weight").
    """

    @property
    def record(self) -> ModelRecord: ...

    def tensor_names(self) -> Sequence[str]:
        """Every tensor, quantized or dense, in a fixed order. A tied head has no tensor of its
        own.
        """

    def grid(self, tensor_name: str) -> Grid | None:
        """The grid of a quantized tensor; None for a dense one."""

    def quantized(self, tensor_name: str) -> QuantizedLinear: ...

    def dense(self, tensor_name: str) -> NumpyArray: ...

    def companions(self) -> Mapping[str, bytes]: ...


class Site(Protocol):
    """Where both streams stand still: the layers that read one input (q, k, v | o | gate, up |
    down).
    """

    name: str
    """The first layer that reads the input."""

    def batches(self) -> Iterator[tuple[Array | None, Array]]:
        """(X, X_hat) per batch, tokens x in; X is None when no full-precision stream runs."""

    def layers(self) -> Iterator[str]:
        """The layers in execution order. Asking for the next one lets both streams run through the
        one before.
        """

    def replace(self, layer: str, W: NumpyArray) -> None:
        """What the quantized stream computes with from here on."""


class ActivationSource(Protocol):
    """Forward passes over the calibration tokens; separate from linear algebra on purpose."""

    def sites(self, block: BlockSpec) -> Iterator[Site]:
        """Load a block and stand still at each of its sites; exhausting the iterator advances both
        streams.
        """

    def save(self, folder: Path) -> None:
        """Write both streams' hidden states into an empty directory, and flush them to disk."""

    def restore(self, folder: Path) -> None:
        """Go on with the hidden states that `save` wrote. Raises: OSError, ValueError or
        EOFError.
        """


class TextWriter(Protocol):
    """A whole model that writes text. Made with its source, the token ids it may write, and a
    seed.
    """

    def continue_text(self, first: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
        """Endless: per step the next token of every text, sampled at temperature 1; first holds
        where each starts.

        Shapes: first and every item (texts,) of token ids. Raises: BadInput when a prediction is
        not finite.
        """


class LogitSource(Protocol):
    """Something that predicts: a model in a framework or in a runtime."""

    @staticmethod
    def check_installed() -> None:
        """Raises: NotInstalled when the runtime is missing; asked before any work starts."""

    def logits(self, windows: np.ndarray[Any, Any]) -> Iterator[NumpyArray]:
        """Shapes: windows (count, tokens) of token ids; yields (tokens, vocabulary) float32 per
        window.
        """


class Exporter(Protocol):
    """One file format. Nothing is written unless `reject_reason` is None."""

    name: str
    zero_kinds: Sequence[str]
    """Grid.zeros that the format holds without loss, the preferred asymmetric kind first."""
    linear_only: bool
    """Whether embedding and head are always dense in the format; quantized ones are written as
    their codes say.
    """

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the exporter was made with, as the manifest states it."""

    def reject_reason(
        self,
        record: ModelRecord,
        companions: Mapping[str, bytes],
        grids: Mapping[str, tuple[tuple[int, ...], Grid | None]],
    ) -> str | None:
        """Why this model on these grids cannot be written, naming what to change; None when it can.

        grids maps each tensor name to its shape and its grid (None: dense).
        """

    def why_not_grid(self, shape: tuple[int, ...], grid: Grid) -> str | None:
        """What keeps a linear layer on this grid out of the format, naming what to change; None
        when it fits.

        Shapes: (out, in).
        """

    def write(self, model: QuantizedModel, destination: Path) -> list[Path]:
        """Write the files and manifest.json into the empty directory `destination`.

        Each entry of the manifest is made by `edgeq_exporters.common.manifest`: what the reader of
        the format needs to find the tensor again, its status, largest deviation, and the hashes of
        the solution and of what the file holds.
        """


class ExportReader(Protocol):
    """Reads an export back from its bytes, one tensor at a time, to verify it. Made with the
    export's directory.

    Values come from the container's own library where it is installed; codes, scales and offsets
    are unpacked independently of the exporter. What cannot be read raises BadInput, ValueError,
    KeyError, IndexError, TypeError or RuntimeError.
    """

    library: str
    """The library that computed the weights, with its version."""

    def __init__(self, directory: Path) -> None: ...

    def tensor_names(self) -> Sequence[str]:
        """Every tensor in the files that a manifest has to name, under the `name` of its entry."""

    def read(self, entry: Mapping[str, Any]) -> StoredTensor:
        """The tensor of a manifest's entry, whose grid (bits, group_size, zeros, scale_dtype) it
        was solved on.
        """
