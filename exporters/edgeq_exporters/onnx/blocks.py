"""Quantized matrices as ONNX Runtime holds them: which grids fit, what each block stores."""

from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgeq.dtypes import NUMPY
from edgeq.types import Grid, NumpyArray, QuantizedLinear
from edgeq_exporters.common.deviation import as_stored
from edgeq_exporters.onnx.format import FORMAT

BITS = FORMAT.bits  # of MatMulNBits and GatherBlockQuantized
FLOAT_ZERO_BITS = (2, 4)  # MatMulNBits fails at run time with float zero points at 8 bits
QDQ_BITS = (4, 8)  # types of DequantizeLinear in opset 21
BLOCK_SIZES = (16, 32, 64, 128, 256)

Bytes = npt.NDArray[np.uint8]
Zeros = Literal["middle", "whole", "float"]
Operator = Literal["MatMulNBits", "GatherBlockQuantized", "DequantizeLinear"]


@dataclass(frozen=True, slots=True)
class Container:
    """How a quantized matrix is stored. zeros "middle": every zero point is 2 ** (bits - 1).

    Blocks run along the columns and are as long as a group or a part of one; the last block may be
    short.
    """

    operator: Operator
    bits: int
    block_size: int
    zeros: Zeros


def container_of(columns: int, grid: Grid, operator: Operator) -> Container:
    """Choose the narrowest codes and longest blocks for a matrix that `why_not_grid` accepts."""
    bits = next(bits for bits in _bits_of(operator) if bits >= grid.bits)
    zeros: Zeros = (
        "middle" if grid.zeros == "symmetric" else "float" if grid.zeros == "offset" else "whole"
    )
    return Container(operator, bits, _block_size(columns, grid), zeros)


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
    if not 1 <= grid.bits <= BITS[-1]:
        return f"ONNX Runtime holds 1 to 8 bits, not {grid.bits}; choose bits between 2 and 8"
    columns = shape[-1]
    if grid.group_count(columns) > 1 and grid.columns_per_group(columns) % BLOCK_SIZES[0]:
        return (
            f"group_size {grid.group_size} is not a multiple of "
            "16, the shortest block; choose 16, 32, 64 or 128"
        )
    return _why_not_zeros(grid, operator) if grid.zeros == "offset" else None


def _why_not_zeros(grid: Grid, operator: Operator) -> str | None:
    if operator == "GatherBlockQuantized":
        return (
            "an embedding holds no free offsets; use whole "
            "zero points, a symmetric grid, or leave it dense"
        )
    if operator == "DequantizeLinear":
        return "DequantizeLinear holds no free offsets; use whole zero points or a symmetric grid"
    if grid.bits > FLOAT_ZERO_BITS[-1]:
        return (
            f"MatMulNBits holds no free offsets at {grid.bits} "
            "bits; use whole zero points, or 4 bits and fewer"
        )
    return None


def matrix_bytes(
    shape: tuple[int, ...], grid: Grid, container: Container, *, state_middle: bool
) -> int:
    """Count the bytes of a matrix: codes, float32 scales, zero points, outlier columns.

    Shapes: (out, in). state_middle is that of `stored_zeros`.
    """
    rows, columns = shape
    blocks = -(-columns // container.block_size)
    width = container.bits
    if container.operator == "DequantizeLinear":  # packed across row ends, short blocks stay short
        codes = -(-prod(shape) * width // 8)
        zeros = 0 if container.zeros == "middle" else -(-rows * blocks * width // 8)
    else:
        codes = rows * blocks * container.block_size * width // 8
        packed = rows * -(-blocks * width // 8)
        stated = container.zeros == "whole" or state_middle
        zeros = 4 * rows * blocks if container.zeros == "float" else packed * stated
    outliers = grid.outlier_count(columns) * (8 + rows * NUMPY[grid.scale_dtype].itemsize)
    return codes + 4 * rows * blocks + zeros + outliers


def is_widened(grid: Grid, container: Container) -> bool:
    """Say whether the codes lie in a type of more bits than the grid has."""
    return container.bits != grid.bits


def held_by_blocks(layer: QuantizedLinear) -> QuantizedLinear:
    """Give the layer as a container holds it: free offsets become zero points in float32."""
    return (
        layer
        if layer.grid.zeros != "offset"
        else as_stored(layer, layer.scales, -layer.scales * layer.zeros)
    )


def stored_codes(layer: QuantizedLinear, container: Container) -> Bytes:
    """Codes of the container; the middle of a symmetric grid moves to that of the wider codes."""
    shift = 2 ** (container.bits - 1) - layer.grid.middle if container.zeros == "middle" else 0
    return layer.codes + np.uint8(shift) if shift else layer.codes


def per_block(values: NumpyArray, layer: QuantizedLinear, container: Container) -> NumpyArray:
    """Repeat a value per group for each block of the group.

    Shapes: (out, groups) -> (out, blocks).
    """
    return values[:, layer.grid.group_index(layer.codes.shape[1])[:: container.block_size]]


def pack_blocks(codes: Bytes, container: Container) -> Bytes:
    """Codes in blocks, lowest bits first; a short last block is filled up with zeros.

    Shapes: codes (out, in) -> bytes (out, blocks, block_size * bits / 8).
    """
    rows, columns = codes.shape
    blocks = -(-columns // container.block_size)
    packed = pack_rows(
        np.pad(codes, ((0, 0), (0, blocks * container.block_size - columns))), container.bits
    )
    return packed.reshape(rows, blocks, -1)


def pack_rows(codes: Bytes, bits: int) -> Bytes:
    """Pack codes of 2, 4 or 8 bits into bytes, lowest bits first, rows filled up with zeros.

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
    """Make zero points per block: packed like codes, float32, or None for a middle not stated.

    Shapes: (out, ceil(blocks * bits / 8)), float32 (out, blocks).
    """
    if container.zeros == "middle" and not state_middle:
        return None
    zeros = per_block(layer.zeros, layer, container)
    if container.zeros == "float":
        return zeros
    middle = np.full_like(zeros, 2 ** (container.bits - 1))
    return pack_rows(
        (middle if container.zeros == "middle" else zeros).astype(np.uint8), container.bits
    )
