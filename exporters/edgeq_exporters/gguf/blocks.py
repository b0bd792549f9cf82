"""Pack weights into GGUF's blocks, and say which grids these blocks hold.

Blocks with two levels of scales or a table are laid out by `edgeq_exporters.gguf.super_blocks`.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeq.errors import BadInput
from edgeq.types import Grid, QuantizedLinear
from edgeq_exporters.common.decoder import why_not_outliers
from edgeq_exporters.common.deviation import as_stored
from edgeq_exporters.gguf.super_blocks import (
    PACKED,
    Bytes,
    PackedType,
    pack_typed,
    typed_scales,
    why_not_typed,
)

BLOCK_COLUMNS = 32  # every one-level block type holds 32 consecutive weights of a row


@dataclass(frozen=True, slots=True)
class BlockType:
    """Describes the layout of a one-level block.

    w = d * (q - middle) if centred, else w = d * q + m, with float16 d and m.
    """

    name: str
    bits: int
    centred: bool

    @property
    def columns(self) -> int:
        return BLOCK_COLUMNS

    @property
    def block_bytes(self) -> int:
        numbers = 2 if self.centred else 4  # d, or d and m, in float16
        return numbers + BLOCK_COLUMNS * self.bits // 8


CENTRED = (BlockType("Q4_0", 4, True), BlockType("Q5_0", 5, True), BlockType("Q8_0", 8, True))
WITH_MINIMUM = (BlockType("Q4_1", 4, False), BlockType("Q5_1", 5, False))


def block_type(grid: Grid) -> BlockType | PackedType | None:
    """Choose the smallest block type that holds the codes of a grid without loss, or None.

    A grid with a type lies in the blocks of that type.
    """
    return PACKED.get(grid.type) if grid.type else plain_type(grid)


def plain_type(grid: Grid) -> BlockType | None:
    """Choose the block type of a grid without a type, or None."""
    candidates = CENTRED if grid.zeros == "symmetric" else WITH_MINIMUM
    return next((kind for kind in candidates if 2 <= grid.bits <= kind.bits), None)


def why_not_packable(shape: tuple[int, ...], grid: Grid) -> str | None:
    """Say what keeps a quantized tensor out of GGUF blocks and what to change, or None.

    Shapes: (out, in).
    """
    if block_type(grid) is None:
        return _no_block_type(grid)
    if grid.outlier_columns:
        return why_not_outliers(grid, "GGUF")
    in_features = shape[-1]
    if is_kept_dense(shape) and grid.super_blocks is None:
        return None
    if grid.type:
        return why_not_typed(shape, grid)
    if grid.group_count(in_features) > 1 and grid.columns_per_group(in_features) % BLOCK_COLUMNS:
        return (
            f"group_size {grid.group_size} is not a multiple of 32, GGUF's block; "
            "choose 32, 64 or 128"
        )
    return None


def is_kept_dense(shape: tuple[int, ...]) -> bool:
    """Say whether rows do not divide into blocks, so that weights lie in a file in float16.

    llama.cpp's own quantizer keeps such tensors so.

    Shapes: (out, in).
    """
    return shape[-1] % BLOCK_COLUMNS != 0


def tensor_bytes(shape: tuple[int, ...], grid: Grid | None, item_bytes: int) -> int:
    """Count the bytes of a tensor in the file.

    `item_bytes` is the size of one number where the tensor is dense.
    """
    weights = math.prod(shape)
    kind = None if grid is None else block_type(grid)
    if grid is not None and is_kept_dense(shape):
        return 2 * weights
    if kind is not None:
        return weights // kind.columns * kind.block_bytes
    # llama.cpp accepts vectors in float32 only: four bytes, whatever type the model has.
    return weights * (4 if len(shape) == 1 else item_bytes)


def _no_block_type(grid: Grid) -> str:
    if grid.type:
        return f"GGUF has no blocks of a type {grid.type!r}; choose one of {', '.join(PACKED)}"
    if grid.zeros != "symmetric" and 6 <= grid.bits <= 8:
        return (
            f"GGUF has no {grid.bits}-bit block with offsets; "
            "use a symmetric grid, or 5 bits and fewer"
        )
    return f"GGUF blocks hold 2 to 8 bits, not {grid.bits}; choose bits between 2 and 8"


def pack_blocks(layer: QuantizedLinear) -> Bytes:
    """Pack a layer into GGUF blocks of its `block_type`; a block repeats its group's numbers.

    Fields of a one-level block in order: d, m (not in the centred types), fifth bits (5-bit types),
    codes.

    Shapes: codes (out, in) -> bytes (out, in // columns * block_bytes).
    Raises: BadInput if a scale or offset is too large for float16.
    """
    if layer.grid.type:
        return pack_typed(layer)
    kind = _block_type_of(layer)
    scales, offsets = stored_scales(layer)
    numbers = [scales] if kind.centred else [scales, offsets]
    codes = _blocked(_widened_codes(layer.codes, layer.grid, kind))
    fields = [_bytes_per_block(values, layer) for values in numbers] + CODE_FIELDS[kind.bits](codes)
    return np.concatenate(fields, axis=-1).reshape(layer.codes.shape[0], -1)


def stored_scales(
    layer: QuantizedLinear,
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    """Round scales and offsets to float16, as one-level blocks store them.

    Shapes: (out, groups) each.
    Raises: BadInput if one of them is too large for float16.
    """
    with np.errstate(over="ignore"):
        scales, offsets = layer.scales.astype("<f2"), layer.offsets.astype("<f2")
    used = scales if _block_type_of(layer).centred else np.concatenate([scales, offsets], axis=1)
    if not np.isfinite(used).all():
        largest = max(np.abs(layer.scales).max(), np.abs(layer.offsets).max())
        raise BadInput(
            f"a scale or offset of {largest:.6g} exceeds float16, GGUF's scale type; "
            "use scale_dtype float16"
        )
    return scales, offsets


def held_by_blocks(layer: QuantizedLinear) -> QuantizedLinear:
    """Give the layer with the scales and offsets that its blocks hold."""
    if layer.grid.type:
        return as_stored(layer, *typed_scales(layer))
    scales, offsets = stored_scales(layer)
    if _block_type_of(layer).centred:
        offsets = -scales.astype(np.float32) * np.float32(layer.grid.middle)
    return as_stored(layer, scales, offsets)


def is_widened(grid: Grid) -> bool:
    """Say whether the codes lie in a block type of more bits than the grid has."""
    kind = block_type(grid)
    return kind is not None and kind.bits != grid.bits


def bits_in_file(name: str, shape: tuple[int, ...], grid: Grid) -> int | None:
    """Give the bits that the codes of a matrix have in the file; None where it is dense there.

    Shapes: (out, in).
    """
    kind = None if is_kept_dense(shape) else block_type(grid)
    return None if kind is None else kind.bits


def _block_type_of(layer: QuantizedLinear) -> BlockType:
    kind = plain_type(layer.grid)
    if kind is None:
        raise BadInput(_no_block_type(layer.grid))
    return kind


def _widened_codes(codes: Bytes, grid: Grid, kind: BlockType) -> Bytes:
    """Shift codes so that the middle of a symmetric grid is that of the wider block type."""
    shift = 2 ** (kind.bits - 1) - grid.middle if kind.centred else 0
    return codes + np.uint8(shift) if shift else codes


def _blocked(codes: Bytes) -> Bytes:
    """Split each row into blocks.

    Shapes: (out, in) -> (out, blocks, 32).
    """
    return codes.reshape(codes.shape[0], -1, BLOCK_COLUMNS)


def _bytes_per_block(values: npt.NDArray[np.float16], layer: QuantizedLinear) -> Bytes:
    """Repeat the number of a group for each of its blocks, as bytes.

    Shapes: (out, groups) -> (out, blocks, 2).
    """
    group_of_block = layer.grid.group_index(layer.codes.shape[1])[::BLOCK_COLUMNS]
    return values[:, group_of_block, np.newaxis].view(np.uint8)


def _nibbles(codes: Bytes) -> Bytes:
    """Put columns 0-15 of a block into low nibbles, 16-31 into high ones.

    Shapes: (..., 32) -> (..., 16).
    """
    low = codes[..., :16] & np.uint8(0x0F)
    high = codes[..., 16:] & np.uint8(0x0F)
    return low | (high << np.uint8(4))


def _four_bits(codes: Bytes) -> list[Bytes]:
    return [_nibbles(codes)]


def _five_bits(codes: Bytes) -> list[Bytes]:
    """Put the fifth bit of code j at bit j of four bytes, and the other bits into nibbles."""
    return [np.packbits(codes >> np.uint8(4), axis=-1, bitorder="little"), _nibbles(codes)]


def _eight_bits(codes: Bytes) -> list[Bytes]:
    """Turn the top bit of each code over, which gives code - 128 in two's complement."""
    return [codes ^ np.uint8(0x80)]


CODE_FIELDS = {4: _four_bits, 5: _five_bits, 8: _eight_bits}
