"""Look into a checkpoint or model: its tensors, grids, codes, scales and report."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeq.api.arguments import PathLike, path_text, python_words
from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput
from edgeq.files.ownership import REPORT_FILE
from edgeq.measuring.inspection import open_named, parameter_count
from edgeq.protocols import ModelSource
from edgeq.run.report import RunReport, read_report
from edgeq.types import Grid, QuantizedLinear
from edgeq.words import show_size


@python_words()
def open(path: PathLike) -> "Model":
    """Open a checkpoint, a model or a GGUF file, to look at its tensors.

    Example:
        model = edgeq.open("llama-4bit")
        print(model.codes("model.layers.0.mlp.up_proj.weight"), model.report.worst_layers(3))

    Args:
        path: A checkpoint, a directory of safetensors, a .gguf file, owner/name on the hub,
            "demo", or a result of `quantize` or `export`.

    Raises:
        BadInput: What is there cannot be read, or is an export without tensors of a model.
        UnsupportedModel: A kind of model that this version does not handle.
        NotInstalled: What reads it is missing.
    """
    return Model(open_named(path_text("path", path)))


class Model:
    """A checkpoint or model on disk, read tensor by tensor.

    Opening reads headers only. It is iterated over by names, which are those of Hugging Face, such
    as "model.layers.0.mlp.up_proj.weight"; `model[name]` is `model.dequantized(name)`.
    """

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self._checkpoint = source if isinstance(source, Checkpoint) else None
        self._names = dict.fromkeys(source.tensor_names())

    @property
    def name(self) -> str:
        """Return the model's name."""
        return self._source.record.name

    @property
    def path(self) -> Path:
        """Return the directory or file."""
        return self._source.location()

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors, in the order of the files."""
        return tuple(self._names)

    @property
    def config(self) -> dict[str, Any]:
        """Return the model's config.json."""
        return dict(self._source.record.config())

    @property
    def grids(self) -> dict[str, Grid]:
        """Return the grid of each quantized tensor by name."""
        if self._checkpoint is None:
            return {}
        found = {name: grid for name, (_, grid) in self._checkpoint.grids().items()}
        return {name: grid for name, grid in found.items() if grid is not None}

    @property
    def recipe(self) -> dict[str, Any]:
        """Return the settings that the checkpoint was made with; of a model none."""
        return {} if self._checkpoint is None else dict(self._checkpoint.head["recipe"])

    @property
    def report(self) -> RunReport | None:
        """Return the report of the run, with the error of each layer; None for a model.

        Raises: BadInput for a damaged one.
        """
        if self._checkpoint is None or not (self.path / REPORT_FILE).is_file():
            return None
        return read_report(self._checkpoint)

    @property
    def parameters(self) -> int:
        """Count the weights of all tensors."""
        return parameter_count(self._source)

    @property
    def stored_bytes(self) -> int:
        """Count the bytes of the files that hold the weights."""
        return self._source.stored_bytes()

    def is_quantized(self, name: str) -> bool:
        """Say whether a tensor has codes and scales."""
        known = self._known(name)
        return self._checkpoint is not None and self._checkpoint.grid(known) is not None

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor as the model has it."""
        return self._source.shape(self._known(name))

    def stored_as(self, name: str) -> str:
        """Say how a tensor lies on disk: "F16", "Q4_1", "4 bits, group 32, symmetric"."""
        return self._source.stored_as(self._known(name))

    def quantized(self, name: str) -> QuantizedLinear:
        """Read the codes, scales and offsets of a quantized tensor.

        Shapes: codes (out, in) uint8; scales and offsets (out, groups) float32.
        Raises: KeyError for an unknown name, BadInput for a tensor without codes.
        """
        if self._checkpoint is None or not self.is_quantized(name):
            raise BadInput(
                f"tensor {name!r} of {self.name!r} has no codes, it is {self.stored_as(name)}; "
                "`grids` names the tensors that have some"
            )
        return self._checkpoint.quantized(name)

    def codes(self, name: str) -> npt.NDArray[np.uint8]:
        """Read the codes of a quantized tensor.

        Shapes: (out, in).
        Raises: KeyError for an unknown name, BadInput for a tensor without codes.
        """
        return self.quantized(name).codes

    def scales(self, name: str) -> npt.NDArray[np.float32]:
        """Read the scales of a quantized tensor.

        Shapes: (out, groups).
        Raises: KeyError for an unknown name, BadInput for a tensor without codes.
        """
        return self.quantized(name).scales

    def dequantized(self, name: str) -> npt.NDArray[np.float32]:
        """Read a tensor as the model computes with it, in float32.

        Shapes: that of the tensor.
        Raises: KeyError for an unknown name.
        """
        return np.asarray(self._source.read(self._known(name)), dtype=np.float32)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        return self.dequantized(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        kind = "model" if self._checkpoint is None else "checkpoint"
        of_codes = "" if self._checkpoint is None else f", {len(self.grids)} of them quantized"
        return (
            f"<{kind} {self.name!r} in {str(self.path)!r}: {len(self)} tensors{of_codes}, "
            f"{show_size(self.stored_bytes)}>"
        )

    def _known(self, name: str) -> str:
        """Return the name of a tensor that there is. Raises: KeyError."""
        if name not in self._names:
            raise KeyError(name)
        return name
