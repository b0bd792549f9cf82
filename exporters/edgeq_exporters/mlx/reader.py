"""Read MLX directories back: codes are unpacked here, weights by MLX where it is installed.

Nothing is shared with the exporter.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
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

STACK = ".switch_mlp."  # the module of mlx-lm that holds all experts of a block


class MlxReader:
    """Reads an MLX directory back; it implements ExportReader."""

    def __init__(self, directory: Path) -> None:
        self._files = TensorFiles(directory)
        self.file = self._files.first_file
        self.settings: Mapping[str, Any] = {}
        self._mlx = import_module("mlx.core") if find_spec("mlx") else None
        self.library = f"mlx {version('mlx')}" if self._mlx else "edgeq (mlx is not installed)"

    def tensor_names(self) -> Sequence[str]:
        """List the modules' weights; experts of a stack are numbered: P.weight[3]."""
        names = self._files.modules(first="scales", others=("biases", "weight"))
        return [part for name in names for part in self._parts(name)]

    def read(self, entry: Mapping[str, Any]) -> StoredTensor:
        name, expert = _expert_of(entry["name"])
        grid = grid_of(entry)
        if grid is None:
            found = self._files.dense(name)
            return found if expert is None else replace(found, weights=found.weights[expert])
        module = module_of({"name": name})
        names = (name, f"{module}.scales", f"{module}.biases")
        words, held, offsets = (self._array(part, expert) for part in names)
        scales, offsets = held.astype(np.float32), offsets.astype(np.float32)
        facts: dict[str, Any] = {
            "labels": self._files.labels("affine", *names),
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

    def _parts(self, name: str) -> list[str]:
        shape = self._files.shape(name)
        is_stack = len(shape) == 3 and STACK in name
        return [f"{name}[{expert}]" for expert in range(shape[0])] if is_stack else [name]

    def _array(self, name: str, expert: int | None) -> NumpyArray:
        array = self._files.array(name)
        return array if expert is None else array[expert]


def _expert_of(name: str) -> tuple[str, int | None]:
    """Split the number of an expert off the name of its part of a stack."""
    match = re.fullmatch(r"(.*)\[(\d{1,6})\]", name)
    return (name, None) if match is None else (match[1], int(match[2]))
