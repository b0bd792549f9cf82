"""Reads toy files back; knows nothing of what wrote them."""

from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile

import numpy as np

from edgeq.errors import BadInput
from edgeq.types import QuantizedLinear, StoredTensor
from edgeq_exporters.common.manifest import grid_of


class ToyReader:
    library = f"numpy {np.__version__}"

    def __init__(self, directory):
        path = directory / "model.toy"
        try:
            with np.load(path) as arrays:
                self._arrays = dict(arrays)
        except (OSError, ValueError, BadZipFile) as error:
            raise BadInput(f"{str(path)!r} cannot be read ({error}); export again") from error
        self.file = path.name
        numbers = (directory / "model.numbers.txt").read_text()
        codes = [array for name, array in self._arrays.items() if name.endswith("|codes")]
        with ZipFile(path) as packed:
            deflated = {each.compress_type == ZIP_DEFLATED for each in packed.infolist()}
        self.settings = {"numbers": numbers, "deflate": deflated == {True}}
        if codes:
            self.settings["copies"] = len(codes[0])
        self._sign = -1 if numbers == "negated" else 1

    def tensor_names(self):
        return sorted({name.split("|")[0] for name in self._arrays})

    def read(self, entry):
        grid, name = grid_of(entry), entry["name"]
        if grid is None:
            return StoredTensor(self._arrays[name], labels={"type": "F32"})
        codes, *others = self._arrays[f"{name}|codes"]
        if any((codes != other).any() for other in others):
            raise ValueError("copies of the codes differ")
        offsets = self._sign * self._arrays[f"{name}|offsets"]
        layer = QuantizedLinear(codes, self._arrays[f"{name}|scales"], offsets, grid)
        return StoredTensor(layer.dequantized(), layer, {"type": "bytes"}, bits=8)
