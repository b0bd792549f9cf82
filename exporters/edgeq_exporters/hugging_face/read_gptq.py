"""Exported GPTQ directories, read back with NumPy: the libraries of the format compile kernels when
installed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.grids.packing import unpack_words
from edgeq.types import QuantizedLinear, StoredTensor
from edgeq_exporters.common.manifest import grid_of
from edgeq_exporters.common.read_safetensors import TensorFiles, module_of


class GptqReader:
    """An ExportReader. A zero point is the stored one plus 1, as every reader of checkpoint_format
    gptq has it.
    """

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
        codes = unpack_words(_unsigned(words.T), grid.bits, len(index))
        zeros = (
            unpack_words(_unsigned(zero_words), grid.bits, scales.shape[1]).astype(np.float32) + 1
        )
        of_group = scales.astype(np.float32)
        layer = QuantizedLinear(codes, of_group.T.copy(), (-of_group * zeros).T.copy(), grid)
        weights = of_group[index].T * (codes - zeros[index].T)
        return StoredTensor(weights, layer)


def _unsigned(words: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(words).view(np.uint32)
