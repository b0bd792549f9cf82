"""Pack matrices as ONNX Runtime holds them, and say which grids its operators compute."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgeq.dtypes import NUMPY
from edgeq.types import Grid, NumpyArray, QuantizedLinear
from edgeq_exporters.common.decoder import why_not_table
from edgeq_exporters.common.deviation import as_stored
from edgeq_exporters.onnx.format import FORMAT

BITS = FORMAT.bits  # of MatMulNBits and GatherBlockQuantized
FLOAT_ZERO_BITS = (2, 4)  # MatMulNBits fails at run time with float zero points at 8 bits
QDQ_BITS = (4, 8)  # types of DequantizeLinear in opset 21
BLOCK_SIZES = (16, 32, 64, 128, 256)

Bytes = npt.NDArray[np.uint8]
Zeros = Literal["middle", "whole", "float"]
Operator = Literal["MatMulNBits", "GatherBlockQuantized", "DequantizeLinear"]

# How the zero points of a kind of grid are stored.
ZEROS: Mapping[str, Zeros] = {"symmetric": "middle", "integer": "whole", "offset": "float"}


@dataclass(frozen=True, slots=True)
class Container:
    """Says how a quantized matrix is stored.

    Blocks run along the columns. Each is as long as a group or a part of one; the last may be
    short. With zeros "middle" every zero point is 2 ** (bits - 1).
    """

    operator: Operator
    bits: int
    block_size: int
    zeros: Zeros


def container_of(columns: int, grid: Grid, operator: Operator) -> Container:
    """Choose the narrowest codes and longest blocks for a matrix that `why_not_grid` accepts."""
    bits = next(bits for bits in _bits_of(operator) if bits >= grid.bits)
    return Container(operator, bits, _block_size(columns, grid), ZEROS[grid.zeros])


def _bits_of(operator: Operator) -> tuple[int, ...]:
    return QDQ_BITS if operator == "DequantizeLinear" else BITS


def _block_size(columns: int, grid: Grid) -> int:
    if grid.group_count(columns) == 1:
        return next((size for size in BLOCK_SIZES if size >= columns), BLOCK_SIZES[-1])
    return max(size for size in BLOCK_SIZES if grid.columns_per_group(columns) % size == 0)


def why_not_grid(shape: tuple[int, ...], grid: Grid, operator: Operator) -> str | None:
    """Say what keeps a quantized matrix out of an operator and what to change, or None.

    Shapes: (out, in).
    """
    if grid.table:
        return why_not_table(grid, "ONNX")
    if not 1 <= grid.bits <= BITS[-1]:
        return f"ONNX Runtime holds 1 to 8 bits, not {grid.bits}; choose bits between 2 and 8"
    columns = shape[-1]
    if grid.group_count(columns) > 1 and grid.columns_per_group(columns) % BLOCK_SIZES[0]:
        return (
            f"group_size {grid.group_size} is not a multiple of 16, the shortest block; "
            "choose 16, 32, 64 or 128"
        )
    return _why_not_zeros(grid, operator) if grid.zeros == "offset" else None


def _why_not_zeros(grid: Grid, operator: Operator) -> str | None:
    if operator == "GatherBlockQuantized":
        return (
            "an embedding holds no free offsets; "
            "use whole zero points, a symmetric grid, or leave it dense"
        )
    if operator == "DequantizeLinear":
        return "DequantizeLinear holds no free offsets; use whole zero points or a symmetric grid"
    if grid.bits > FLOAT_ZERO_BITS[-1]:
        return (
            f"MatMulNBits holds no free offsets at {grid.bits} bits; "
            "use whole zero points, or 4 bits and fewer"
        )
    return None


def matrix_bytes(
    shape: tuple[int, ...], grid: Grid, container: Container, *, state_middle: bool
) -> int:
    """Count the bytes of a matrix: codes, scales, zero points, outlier columns.

    `state_middle` is that of `stored_zeros`.

    Shapes: (out, in).
    """
    rows, columns = shape
    blocks = -(-columns // container.block_size)
    width = container.bits
    scales = 4 * rows * blocks  # float32
    if container.operator == "DequantizeLinear":
        # Codes are packed across the ends of rows, and short blocks stay short.
        codes = -(-prod(shape) * width // 8)
        zeros = 0 if container.zeros == "middle" else -(-rows * blocks * width // 8)
    else:
        codes = rows * blocks * container.block_size * width // 8
        packed = rows * -(-blocks * width // 8)
        stated = container.zeros == "whole" or state_middle
        zeros = 4 * rows * blocks if container.zeros == "float" else packed * stated
    column = 8 + rows * NUMPY[grid.scale_dtype].itemsize  # its int64 number and its values
    return codes + scales + zeros + grid.outlier_count(columns) * column


def is_widened(grid: Grid, container: Container) -> bool:
    """Say whether the codes lie in a type of more bits than the grid has."""
    return container.bits != grid.bits


def held_by_blocks(layer: QuantizedLinear) -> QuantizedLinear:
    """Give the layer as a container holds it: free offsets become float32 zero points."""
    if layer.grid.zeros != "offset":
        return layer
    return as_stored(layer, layer.scales, -layer.scales * layer.zeros)


def stored_codes(layer: QuantizedLinear, container: Container) -> Bytes:
    """Shift codes so that the middle of a symmetric grid is that of the container's wider codes."""
    shift = 2 ** (container.bits - 1) - layer.grid.middle if container.zeros == "middle" else 0
    return layer.codes + np.uint8(shift) if shift else layer.codes


def per_block(values: NumpyArray, layer: QuantizedLinear, container: Container) -> NumpyArray:
    """Repeat the value of a group for each of its blocks.

    Shapes: (out, groups) -> (out, blocks).
    """
    return values[:, layer.grid.group_index(layer.codes.shape[1])[:: container.block_size]]


def pack_blocks(codes: Bytes, container: Container) -> Bytes:
    """Pack codes into blocks, lowest bits first; a short last block is filled up with zeros.

    Shapes: codes (out, in) -> bytes (out, blocks, block_size * bits / 8).
    """
    rows, columns = codes.shape
    blocks = -(-columns // container.block_size)
    missing = blocks * container.block_size - columns
    filled = np.pad(codes, ((0, 0), (0, missing)))
    return pack_rows(filled, container.bits).reshape(rows, blocks, -1)


def pack_rows(codes: Bytes, bits: int) -> Bytes:
    """Pack codes of 2, 4 or 8 bits into bytes, lowest bits first; rows are filled up with zeros.

    Shapes: codes (rows, n) -> bytes (rows, ceil(n * bits / 8)).
    """
    per_byte = 8 // bits
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per_byte)))
    packed = padded[:, ::per_byte].copy()
    for place in range(1, per_byte):
        packed |= padded[:, place::per_byte] << np.uint8(place * bits)
    return packed


def stored_zeros(
    layer: QuantizedLinear, container: Container, *, state_middle: bool
) -> NumpyArray | None:
    """Make the zero points of blocks; None where they are the middle and need not be stated.

    They are packed like codes, or float32 where the container says so.

    Shapes: (out, ceil(blocks * bits / 8)), float32 (out, blocks).
    """
    if container.zeros == "middle" and not state_middle:
        return None
    zeros = per_block(layer.zeros, layer, container)
    if container.zeros == "float":
        return zeros
    if container.zeros == "middle":
        zeros = np.full_like(zeros, 2 ** (container.bits - 1))
    return pack_rows(zeros.astype(np.uint8), container.bits)
