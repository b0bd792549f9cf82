"""Write initializers: the bytes of a model's tensors, in one file beside the graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from onnx import StringStringEntryProto, TensorProto

from edgeq.dtypes import NUMPY
from edgeq.files.storage import rename_when_stored
from edgeq.types import Grid, NumpyArray, OutlierColumns, QuantizedLinear
from edgeq_exporters.onnx.blocks import (
    Bytes,
    Container,
    pack_blocks,
    pack_rows,
    per_block,
    stored_codes,
    stored_zeros,
)

SMALL_ALIGNMENT = 64  # a line of the processor's cache
LARGE_ALIGNMENT = 65536  # Windows maps files into memory from such offsets; others need less
LARGE_BYTES = 1_000_000  # from here on the gap before a tensor is small beside the tensor
DENSE_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
# Types of whole numbers, by (bits, signed).
WHOLE_TYPES = {
    (4, False): TensorProto.UINT4,
    (4, True): TensorProto.INT4,
    (8, False): TensorProto.UINT8,
    (8, True): TensorProto.INT8,
}


@dataclass(frozen=True, slots=True)
class Part:
    """Describes one initializer.

    `shape` is that in the graph. Below 8 bits several of its values share a byte of `data`.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    data: NumpyArray


@dataclass(slots=True)
class DataFile:
    """Describes an external data file that is being written: what is in it so far, by name."""

    name: str
    file: BinaryIO
    initializers: dict[str, TensorProto] = field(default_factory=dict)

    def add(self, part: Part) -> None:
        """Append the bytes of an initializer and remember where they lie."""
        content = np.ascontiguousarray(part.data)
        alignment = LARGE_ALIGNMENT if content.nbytes >= LARGE_BYTES else SMALL_ALIGNMENT
        self.file.write(bytes(-self.file.tell() % alignment))
        place = {"location": self.name, "offset": self.file.tell(), "length": content.nbytes}
        self.file.write(_little_endian(content).view(np.uint8).data)
        entries = [StringStringEntryProto(key=key, value=str(place[key])) for key in place]
        self.initializers[part.name] = TensorProto(
            name=part.name,
            data_type=part.kind,
            dims=part.shape,
            data_location=TensorProto.EXTERNAL,
            external_data=entries,
        )


def _little_endian(array: NumpyArray) -> NumpyArray:
    flat = array.reshape(-1)
    return flat if flat.dtype.kind == "V" else flat.astype(flat.dtype.newbyteorder("<"), copy=False)


@contextmanager
def new_data_file(path: Path) -> Iterator[DataFile]:
    """Open a data file that appears under its name only when the context ends without error."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield DataFile(path.name, file)
        rename_when_stored(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def dense_part(name: str, array: NumpyArray) -> Part:
    """Describe a dense tensor: vectors in float32, matrices as they are, which the graph casts."""
    stored = array.astype(np.float32) if array.ndim == 1 else array
    return Part(name, DENSE_TYPES[str(stored.dtype)], stored.shape, stored)


def block_parts(
    name: str, layer: QuantizedLinear, container: Container, *, state_middle: bool
) -> Iterator[Part]:
    """Make codes, scales and zero points as MatMulNBits reads them.

    GatherBlockQuantized reads the same with the blocks of a row joined. With `state_middle` the
    zero points that MatMulNBits would assume are stored too.
    """
    codes = pack_blocks(stored_codes(layer, container), container)
    scales = per_block(layer.scales, layer, container)
    zeros = stored_zeros(layer, container, state_middle=state_middle)
    yield Part(name, TensorProto.UINT8, codes.shape, codes)
    yield Part(f"{name}.scales", TensorProto.FLOAT, scales.shape, scales)
    if zeros is not None:
        kind = TensorProto.FLOAT if container.zeros == "float" else TensorProto.UINT8
        yield Part(f"{name}.zero_points", kind, zeros.shape, zeros)


def whole_number_parts(
    name: str, layer: QuantizedLinear, container: Container, *, rows_first: bool
) -> Iterator[Part]:
    """Make codes, scales and zero points as DequantizeLinear reads them.

    Codes of a symmetric grid are signed and have no zero points.

    Shapes: codes (in, out), scales and zero points (blocks, out); transposed with rows_first.
    """
    signed = container.zeros == "middle"
    kind = WHOLE_TYPES[container.bits, signed]
    codes = layer.codes - np.uint8(layer.grid.middle) if signed else layer.codes
    numbers = {name: codes, f"{name}.scales": per_block(layer.scales, layer, container)}
    if not signed:
        numbers[f"{name}.zero_points"] = per_block(layer.zeros.astype(np.uint8), layer, container)
    for part, values in numbers.items():
        turned = values if rows_first else values.T
        if part.endswith(".scales"):
            yield Part(part, TensorProto.FLOAT, turned.shape, turned)
        else:
            yield Part(part, kind, turned.shape, _packed_flat(turned, container.bits))


def outlier_names(name: str) -> tuple[str, str]:
    """Name the two initializers of outlier columns: which inputs, and what multiplies them."""
    return f"{name}.outlier_columns", f"{name}.outlier_values"


def outlier_parts(name: str, outliers: OutlierColumns, grid: Grid) -> Iterator[Part]:
    """Make the columns and values of outliers, in the type that the values were rounded to.

    Shapes: columns (count,), values (count, out).
    """
    columns, values = outlier_names(name)
    numbers = outliers.columns.astype(np.int64)
    yield Part(columns, TensorProto.INT64, numbers.shape, numbers)
    yield dense_part(values, outliers.values.T.astype(NUMPY[grid.scale_dtype]))


def _packed_flat(values: Bytes, bits: int) -> Bytes:
    """Pack two 4-bit numbers into a byte, across the ends of rows, as ONNX stores them."""
    return values if bits == 8 else pack_rows(values.reshape(1, -1) & np.uint8(0x0F), 4)


def inline_part(name: str, values: Any, dtype: type[np.generic]) -> TensorProto:
    """Make an initializer of a few numbers that lies inside of the graph itself."""
    array = np.asarray(values, dtype=np.dtype(dtype).newbyteorder("<"))
    kind = {np.float32: TensorProto.FLOAT, np.int64: TensorProto.INT64}[dtype]  # type: ignore[index]
    return TensorProto(name=name, data_type=kind, dims=array.shape, raw_data=array.tobytes())
