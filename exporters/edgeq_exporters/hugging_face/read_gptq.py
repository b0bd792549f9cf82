"""Read GPTQ directories back with NumPy, since the format's libraries compile kernels.

Nothing is shared with the exporter.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.types import QuantizedLinear, StoredTensor
from edgeq_exporters.common.manifest import grid_of
from edgeq_exporters.common.read_safetensors import TensorFiles, module_of
from edgeq_exporters.common.read_words import codes_in_words


class GptqReader:
    """Reads a GPTQ directory back.

    It implements ExportReader. checkpoint_format gptq stores zero points less one.
    """

    library = "edgeq (no library of this format is needed)"

    def __init__(self, directory: Path) -> None:
        self._files = TensorFiles(directory)
        self.file = self._files.first_file
        self.settings: Mapping[str, Any] = {}

    def tensor_names(self) -> Sequence[str]:
        return self._files.modules(first="qweight", others=("qzeros", "scales", "g_idx"))

    def read(self, entry: Mapping[str, Any]) -> StoredTensor:
        grid = grid_of(entry)
        module = module_of(entry)
        if grid is None:
            return self._files.dense(entry["name"])
        words = self._files.array(f"{module}.qweight")
        zero_words = self._files.array(f"{module}.qzeros")
        scales = self._files.array(f"{module}.scales")
        index = self._files.array(f"{module}.g_idx")
        codes = codes_in_words(words.T, grid.bits, len(index))
        stored_zeros = codes_in_words(zero_words, grid.bits, scales.shape[1])
        zeros = stored_zeros.astype(np.float32) + 1
        of_group = scales.astype(np.float32)
        layer = QuantizedLinear(codes, of_group.T.copy(), (-of_group * zeros).T.copy(), grid)
        weights = of_group[index].T * (codes - zeros[index].T)
        parts = (f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx"))
        return StoredTensor(weights, layer, self._files.labels("GPTQ", *parts), bits=grid.bits)
