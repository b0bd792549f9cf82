"""Read compressed-tensors directories back; weights by the library where it is installed.

Nothing is shared with the exporter.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.errors import BadInput
from edgeq.types import Grid, NumpyArray, QuantizedLinear, StoredTensor
from edgeq_exporters.common.manifest import grid_of
from edgeq_exporters.common.read_safetensors import TensorFiles, module_of
from edgeq_exporters.common.read_words import codes_in_words

HELPERS = "compressed_tensors.compressors.pack_quantized.helpers"


class CompressedTensorsReader:
    """Reads a compressed-tensors directory back; it implements ExportReader."""

    def __init__(self, directory: Path) -> None:
        self._files = TensorFiles(directory)
        self.file = self._files.first_file
        self.settings: Mapping[str, Any] = {}
        self._helpers: Any = None
        self.library = "edgeq (compressed-tensors is not installed)"
        try:
            helpers = import_module(HELPERS)
            self._torch = import_module("torch")
            self._helpers = helpers
            self.library = f"compressed-tensors {version('compressed-tensors')}"
        except ImportError:
            pass

    def tensor_names(self) -> Sequence[str]:
        others = ("weight_scale", "weight_shape", "weight_zero_point")
        return self._files.modules(first="weight_packed", others=others)

    def read(self, entry: Mapping[str, Any]) -> StoredTensor:
        grid = grid_of(entry)
        module = module_of(entry)
        if grid is None:
            return self._files.dense(entry["name"])
        held = self._files.array(f"{module}.weight_scale")
        scales = held.astype(np.float32)
        rows, columns = (int(size) for size in self._files.array(f"{module}.weight_shape"))
        words = self._files.array(f"{module}.weight_packed")
        if rows != len(words) or rows != len(scales):
            raise BadInput(f"its shape states {rows} rows, its codes have {len(words)}")
        parts = [f"{module}.weight_{part}" for part in ("packed", "scale", "shape")]
        codes = codes_in_words(words, grid.bits, columns)
        zeros = np.full(scales.shape, grid.middle, np.uint8)
        zero_words = None
        if grid.zeros == "integer":
            parts.append(f"{module}.weight_zero_point")
            zero_words = self._files.array(parts[-1]).T
            zeros = codes_in_words(zero_words, grid.bits, rows).T
        layer = QuantizedLinear(codes, scales, -scales * zeros, grid)
        if self._helpers is not None:
            codes = self._unpacked(words, grid, (rows, columns))
            if zero_words is not None:
                zeros = self._unpacked(zero_words, grid, (len(zero_words), rows)).T
        index = grid.group_index(columns)
        weights = scales[:, index] * (codes.astype(np.float32) - zeros[:, index])
        labels = self._files.labels("pack-quantized", *parts)
        return StoredTensor(weights, layer, labels, grid.bits, str(held.dtype))

    def _unpacked(self, words: NumpyArray, grid: Grid, shape: tuple[int, int]) -> NumpyArray:
        """Unpack codes with the library, which returns them less half of their range.

        Shapes: (rows, words).
        """
        signed = self._helpers.unpack_from_int32(
            self._torch.from_numpy(np.ascontiguousarray(words)), grid.bits, self._torch.Size(shape)
        )
        unsigned: NumpyArray = signed.numpy().astype(np.int16) + grid.middle
        return unsigned
