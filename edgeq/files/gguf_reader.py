"""Read GGUF files with the gguf library, and the types that it does not know yet.

Whoever opens a GGUF file opens it here, after `edgeq.files.gguf_header` has checked its header.
"""

from enum import IntEnum
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np

from edgeq.types import NumpyArray


class NewType(IntEnum):
    """llama.cpp's types that released versions of the gguf library have no name for."""

    Q2_0 = 42


COLUMNS_AND_BYTES = {NewType.Q2_0: (64, 18)}
"""Columns and bytes of a block."""
KNOWN = frozenset(int(kind) for kind in gguf.GGMLQuantizationType)


def type_number(name: str) -> int:
    """Give llama.cpp's number of a type."""
    types = NewType if name in NewType.__members__ else gguf.GGMLQuantizationType
    return int(types[name])


class Reader(gguf.GGUFReader):
    """The library's reader, which also finds tensors of new types."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)

    def _build_tensors(self, start_offs: int, fields: list[gguf.ReaderField]) -> None:
        """Describe the tensors that the header lists; the library calls this."""
        new = [field for field in fields if _number(field) in COLUMNS_AND_BYTES]
        new = [field for field in new if _number(field) not in KNOWN]
        super()._build_tensors(start_offs, [field for field in fields if field not in new])
        self.tensors += [self._of_new_type(start_offs, field) for field in new]
        names = [tensor.name for tensor in self.tensors]
        if len(set(names)) != len(names):
            raise ValueError("two of its tensors have one name")

    def _of_new_type(self, start: int, field: gguf.ReaderField) -> gguf.ReaderTensor:
        _, name, _, sizes, number, offset = field.parts
        kind = NewType(int(number[0]))
        columns, block_bytes = COLUMNS_AND_BYTES[kind]
        *outer, width = reversed([int(size) for size in sizes])
        if width % columns:
            raise ValueError(f"rows of {width} columns are no whole blocks of {kind.name}")
        shape = (*outer, width // columns * block_bytes)
        count = int(np.prod(shape))
        place = start + int(offset[0])
        data = self._get(place, np.dtype(np.uint8), count).reshape(shape)
        return gguf.ReaderTensor(
            name=bytes(name).decode("utf-8"),
            tensor_type=cast(Any, kind),  # which has the name and number that are asked of it
            shape=sizes,
            n_elements=count // block_bytes * columns,
            n_bytes=count,
            data_offset=place,
            data=data,
            field=field,
        )


def _number(field: gguf.ReaderField) -> int:
    """Give the number of the type of a tensor that the header lists."""
    return int(field.parts[4][0])


def dequantize(data: NumpyArray, kind: Any) -> NumpyArray:
    """Compute the weights in blocks of any type.

    Shapes: data (..., bytes) -> (..., columns), float32.
    Raises: NotImplementedError for a type that is not decoded.
    """
    if kind == NewType.Q2_0:
        return _dequantize_q2_0(data)
    weights: NumpyArray = gguf.quants.dequantize(data, kind)
    return weights


def _dequantize_q2_0(data: NumpyArray) -> NumpyArray:
    """Compute w = d * (q - 1): a float16 d, then four codes to a byte, the first one lowest."""
    blocks = np.ascontiguousarray(data).reshape(*data.shape[:-1], -1, 18)
    d = blocks[..., :2].copy().view("<f2").astype(np.float32)
    codes = blocks[..., 2:, np.newaxis] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)
    levels = codes.reshape(*blocks.shape[:-1], 64).astype(np.float32) - 1
    weights: NumpyArray = (d * levels).reshape(*data.shape[:-1], -1)
    return weights
