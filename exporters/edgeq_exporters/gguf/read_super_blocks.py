"""Take llama.cpp's blocks with two levels of scales, with tables, or of 64 columns apart again.

Nothing is shared with what packed them: here every column, and every group, looks up its own bits.
"""

from collections.abc import Callable, Mapping

import numpy as np

from edgeq.types import Grid, NumpyArray, QuantizedLinear

COLUMN = np.arange(256)
GROUP = np.arange(16)
EIGHT = np.arange(8)


def _bits_at(blocks: NumpyArray, places: NumpyArray, shifts: NumpyArray, bits: int) -> NumpyArray:
    """Look up some bits of the bytes at these places of every block.

    Shapes: blocks (out, blocks, bytes), places and shifts (n,) -> (out, blocks, n).
    """
    found: NumpyArray = blocks[..., places] >> shifts.astype(np.uint8) & np.uint8(2**bits - 1)
    return found


def _float(blocks: NumpyArray, place: int) -> NumpyArray:
    """Read a float16 of every block. Shapes: (out, blocks)."""
    numbers: NumpyArray = blocks[..., place : place + 2].copy().view("<f2").astype(np.float32)
    return numbers[..., 0]


def _per_half(blocks: NumpyArray, start: int, bits: int) -> NumpyArray:
    """Read codes of which those of 32 columns lie in 32 bytes, and others above them.

    With 2 bits four runs of 32 columns share 32 bytes, with 1 bit eight do.
    """
    runs = 8 // bits
    places = start + COLUMN // (32 * runs) * 32 + COLUMN % 32
    return _bits_at(blocks, places, COLUMN // 32 % runs * bits, bits)


def _pairs(blocks: NumpyArray, start: int, run: int) -> NumpyArray:
    """Read nibbles: `run` columns in low ones, then as many in the high ones of the same bytes."""
    places = start + COLUMN // (2 * run) * run + COLUMN % run
    return _bits_at(blocks, places, COLUMN // run % 2 * 4, 4)


def _q2_k(blocks: NumpyArray) -> tuple[NumpyArray, ...]:
    scales, minima = blocks[..., :16] & 15, blocks[..., :16] >> 4
    codes = _per_half(blocks, 16, 2)
    return codes, scales, _float(blocks, 80), minima, _float(blocks, 82)


def _q3_k(blocks: NumpyArray) -> tuple[NumpyArray, ...]:
    codes = _per_half(blocks, 32, 2) + 4 * _per_half(blocks, 0, 1)
    low = _bits_at(blocks, 96 + GROUP % 8, GROUP // 8 * 4, 4)
    high = _bits_at(blocks, 104 + GROUP % 4, GROUP // 4 * 2, 2)
    return codes, (low + 16 * high).astype(np.int16) - 32, _float(blocks, 108)


def _scales_and_minima(blocks: NumpyArray) -> tuple[NumpyArray, NumpyArray]:
    """Read the twelve bytes of a Q4_K or Q5_K block that hold eight pairs of six bits."""
    field = blocks[..., 4:16]
    first = [field[..., :4] & 63, field[..., 4:8] & 63]
    last = [
        (field[..., 8:] & 15) + 16 * (field[..., :4] >> 6),
        (field[..., 8:] >> 4) + 16 * (field[..., 4:8] >> 6),
    ]
    scales, minima = (np.concatenate(both, axis=-1) for both in zip(first, last, strict=True))
    return scales, minima


def _q4_k(blocks: NumpyArray) -> tuple[NumpyArray, ...]:
    scales, minima = _scales_and_minima(blocks)
    return _pairs(blocks, 16, 32), scales, _float(blocks, 0), minima, _float(blocks, 2)


def _q5_k(blocks: NumpyArray) -> tuple[NumpyArray, ...]:
    scales, minima = _scales_and_minima(blocks)
    codes = _pairs(blocks, 48, 32) + 16 * _per_half(blocks, 16, 1)
    return codes, scales, _float(blocks, 0), minima, _float(blocks, 2)


def _q6_k(blocks: NumpyArray) -> tuple[NumpyArray, ...]:
    codes = _pairs(blocks, 0, 64) + 16 * _per_half(blocks, 128, 2)
    return codes, blocks[..., 192:208].view(np.int8), _float(blocks, 208)


def _iq4_xs(blocks: NumpyArray) -> tuple[NumpyArray, ...]:
    high = _bits_at(blocks, 2 + EIGHT // 4, EIGHT % 4 * 2, 2)
    low = _bits_at(blocks, 4 + EIGHT // 2, EIGHT % 2 * 4, 4)
    scales = (low + 16 * high).astype(np.int16) - 32
    return _pairs(blocks, 8, 16), scales, _float(blocks, 0)


def _iq4_nl(blocks: NumpyArray) -> tuple[NumpyArray, ...]:
    codes = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1)
    return codes, _float(blocks, 0)


def _q2_0(blocks: NumpyArray) -> tuple[NumpyArray, ...]:
    """Read the codes of a grid whose zero is at 2; the block has it at 1, and runs backwards."""
    columns = np.arange(64)
    stored = _bits_at(blocks, 2 + columns // 4, columns % 4 * 2, 2)
    return 3 - stored, -_float(blocks, 0)


def _tq2_0(blocks: NumpyArray) -> tuple[NumpyArray, ...]:
    return _per_half(blocks, 0, 2), _float(blocks, 64)


def _tq1_0(blocks: NumpyArray) -> tuple[NumpyArray, ...]:
    """Read digits to the base of three as llama.cpp does: the top of 3 times what is left."""
    codes = []
    for first, past, digits in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        left = blocks[..., first:past]
        for _ in range(digits):
            tripled = left.astype(np.uint16) * 3
            codes.append((tripled >> 8).astype(np.uint8))
            left = tripled.astype(np.uint8)
    return np.concatenate(codes, axis=-1), _float(blocks, 52)


BLOCKS: Mapping[str, tuple[int, int, Callable[[NumpyArray], tuple[NumpyArray, ...]]]] = {
    "Q2_K": (2, 84, _q2_k),
    "Q3_K": (3, 110, _q3_k),
    "Q4_K": (4, 144, _q4_k),
    "Q5_K": (5, 176, _q5_k),
    "Q6_K": (6, 210, _q6_k),
    "IQ4_NL": (4, 18, _iq4_nl),
    "IQ4_XS": (4, 136, _iq4_xs),
    "TQ1_0": (2, 54, _tq1_0),
    "TQ2_0": (2, 66, _tq2_0),
    "Q2_0": (2, 18, _q2_0),
}
"""By type: bits of a code, bytes of a block, and what takes it apart.

That gives codes and scales; where scales have two levels codes, integers and the float of each
super-block, and perhaps integers and float of the minima.
"""
BITS_OF_TYPES: Mapping[str, int] = {name: bits for name, (bits, _, _) in BLOCKS.items()}


def typed_layer(data: NumpyArray, grid: Grid) -> QuantizedLinear:
    """Take the blocks of a grid's type apart into the solution that they hold.

    Shapes: data (out, bytes).
    """
    _, block_bytes, take_apart = BLOCKS[grid.type]
    blocks = np.ascontiguousarray(data).view(np.uint8).reshape(len(data), -1, block_bytes)
    codes, *numbers = take_apart(blocks)
    codes = codes.reshape(len(data), -1)
    if len(numbers) == 1:
        scales = numbers[0]
        return QuantizedLinear(codes, scales, -scales * np.float32(grid.middle), grid)
    scales = _products(numbers[0], numbers[1])
    super_scales = numbers[1]
    if len(numbers) == 2:
        offsets = -scales * np.float32(grid.middle)
        return QuantizedLinear(codes, scales, offsets, grid, None, super_scales)
    offsets = -_products(numbers[2], numbers[3])
    return QuantizedLinear(codes, scales, offsets, grid, None, super_scales, numbers[3])


def _products(integers: NumpyArray, floats: NumpyArray) -> NumpyArray:
    """Multiply the integers of super-blocks by their floats.

    Shapes: integers (out, super-blocks, n), floats (out, super-blocks) -> (out, groups).
    """
    products: NumpyArray = integers.astype(np.float32) * floats[:, :, np.newaxis]
    return products.reshape(len(products), -1)
