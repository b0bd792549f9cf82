"""Read MLX directories back: codes are unpacked here, weights by MLX where it is installed.

Nothing is shared with the exporter.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.types import NumpyArray, QuantizedLinear, StoredTensor
from edgeq_exporters.common.manifest import grid_of
from edgeq_exporters.common.read_safetensors import TensorFiles, module_of
from edgeq_exporters.common.read_words import WORD_BITS, codes_in_words


class MlxReader:
    """Reads an MLX directory back; it implements ExportReader."""

    def __init__(self, directory: Path) -> None:
        self._files = TensorFiles(directory)
        self.file = self._files.first_file
        self.settings: Mapping[str, Any] = {}
        self._mlx = import_module("mlx.core") if find_spec("mlx") else None
        self.library = f"mlx {version('mlx')}" if self._mlx else "edgeq (mlx is not installed)"

    def tensor_names(self) -> Sequence[str]:
        return self._files.modules(first="scales", others=("biases", "weight"))

    def read(self, entry: Mapping[str, Any]) -> StoredTensor:
        grid = grid_of(entry)
        module = module_of(entry)
        if grid is None:
            return self._files.dense(entry["name"])
        words = self._files.array(entry["name"])
        held = self._files.array(f"{module}.scales")
        scales = held.astype(np.float32)
        offsets = self._files.array(f"{module}.biases").astype(np.float32)
        parts = (f"{module}.{part}" for part in ("scales", "biases"))
        facts: dict[str, Any] = {
            "labels": self._files.labels("affine", entry["name"], *parts),
            "bits": grid.bits,
            "scale_dtype": str(held.dtype),
        }
        columns = words.shape[1] * WORD_BITS // grid.bits
        codes = codes_in_words(words, grid.bits, columns)
        layer = QuantizedLinear(codes, scales, offsets, grid)
        if self._mlx is None:
            return StoredTensor(layer.dequantized(), layer, **facts)
        arrays = [self._mlx.array(part) for part in (words, scales, offsets)]
        weights: NumpyArray = np.array(
            self._mlx.dequantize(*arrays, group_size=grid.group_size, bits=grid.bits)
        )
        return StoredTensor(weights, layer, **facts)
