"""Read arrays from safetensors files by ordinary reads, once the library has checked a header.

The library maps a file; a map ends the process when the file becomes shorter meanwhile.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open

from edgeq.errors import BadInput
from edgeq.files.plain_files import open_file, read_array
from edgeq.types import NumpyArray

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""The types of NumPy by the names that safetensors has for them."""


@dataclass(frozen=True, slots=True)
class StoredArray:
    """The place of an array: its file, its first byte there, its dtype as safetensors names it."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> NumpyArray:
        """Read the array.

        Raises: BadInput when the file became shorter, or holds a type that NumPy has not; OSError.
        """
        if self.dtype not in DTYPES:
            raise BadInput(
                f"{str(self.file)!r} holds a tensor of the type {self.dtype}, "
                f"where only {', '.join(DTYPES)} can be read"
            )
        count = math.prod(self.shape)
        values = read_array(self.file, DTYPES[self.dtype], count, offset=self.offset)
        return values.reshape(self.shape)


def read_places(path: Path) -> tuple[dict[str, StoredArray], dict[str, str]]:
    """Find the arrays of a file by their names, and read its metadata.

    Raises: OSError, SafetensorError or ValueError for a file that is none.
    """
    # opened by Python first: the library says "no such file" of whatever it may not read
    with open_file(path) as file, safe_open(path, framework="np") as handle:
        metadata = dict(handle.metadata() or {})
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    start = 8 + header_bytes
    places = {}
    for name, entry in header.items():
        offset = start + entry["data_offsets"][0]
        places[name] = StoredArray(path, offset, entry["dtype"], tuple(entry["shape"]))
    return places, metadata
