"""Exported GPTQ directories, read back with NumPy: the format's libraries compile kernels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.types import QuantizedLinear, StoredTensor
from edgeq_exporters.common.manifest import grid_of
from edgeq_exporters.common.read_safetensors import TensorFiles, module_of
from edgeq_exporters.common.read_words import codes_in_words


class GptqReader:
    """An ExportReader. A zero point is the stored one plus 1: checkpoint_format gptq says so."""

    library = "edgeq (no library of this format is needed)"

    def __init__(self, directory: Path) -> None:
        self._files = TensorFiles(directory)

    def tensor_names(self) -> Sequence[str]:
        return self._files.modules(first="qweight", others=("qzeros", "scales", "g_idx"))

    def read(self, entry: Mapping[str, Any]) -> StoredTensor:
        grid, module = grid_of(entry), module_of(entry)
        if grid is None:
            return StoredTensor(self._files.array(entry["name"]))
        words, zero_words, scales, index = (
            self._files.array(f"{module}.{part}")
            for part in ("qweight", "qzeros", "scales", "g_idx")
        )
        codes = codes_in_words(words.T, grid.bits, len(index))
        stored_zeros = codes_in_words(zero_words, grid.bits, scales.shape[1])
        zeros = stored_zeros.astype(np.float32) + 1
        of_group = scales.astype(np.float32)
        layer = QuantizedLinear(codes, of_group.T.copy(), (-of_group * zeros).T.copy(), grid)
        weights = of_group[index].T * (codes - zeros[index].T)
        return StoredTensor(weights, layer)
