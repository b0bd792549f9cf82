"""Pack weights into llama.cpp's blocks with two levels of scales, with tables, or of 64 columns.

`PACKED` has a row for each type. A block's bytes are written field after field, as llama.cpp lays
them out; what the fields mean is said by `edgeq.grids.types`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeq.errors import BadInput
from edgeq.types import Grid, NumpyArray, QuantizedLinear

Bytes = npt.NDArray[np.uint8]
Fields = Sequence[Bytes]
"""The bytes of all blocks, field by field. Shapes: (out, blocks, bytes) each."""


@dataclass(frozen=True, slots=True)
class PackedType:
    """Describes a block by its columns and bytes, and says how a layer is laid out in it."""

    name: str
    bits: int
    columns: int
    block_bytes: int
    fields: Callable[[QuantizedLinear], Fields]


def pack_typed(layer: QuantizedLinear) -> Bytes:
    """Pack a layer whose grid has a type into the blocks of that type.

    Shapes: codes (out, in) -> bytes (out, in // columns * block_bytes).
    Raises: BadInput if a number of the layer has no place in its field.
    """
    _check_fields(layer)
    fields = PACKED[layer.grid.type].fields(layer)
    return np.concatenate(fields, axis=-1).reshape(layer.codes.shape[0], -1)


def typed_scales(layer: QuantizedLinear) -> tuple[NumpyArray, NumpyArray]:
    """Give the scales and offsets that the blocks of a layer's type stand for.

    Shapes: (out, groups) each, float32.
    """
    if layer.super_scales is None:
        scales = layer.scales.astype("<f2").astype(np.float32)
        return scales, -scales * np.float32(layer.grid.middle)
    scales = _products(layer.super_scales, layer.sub_scales)
    if layer.super_minima is None:
        return scales, -scales * np.float32(layer.grid.middle)
    return scales, -_products(layer.super_minima, layer.sub_minima)


def _products(floats: NumpyArray, integers: NumpyArray) -> NumpyArray:
    """Multiply the integers of each super-block with its float. Shapes: (out, groups)."""
    stored = floats.astype("<f2").astype(np.float32)
    products: NumpyArray = np.repeat(stored, integers.shape[1] // floats.shape[1], axis=1)
    return products * integers


def _check_fields(layer: QuantizedLinear) -> None:
    """Refuse numbers that their fields would hold as others. Raises: BadInput."""
    floats = [layer.scales] if layer.super_scales is None else [layer.super_scales]
    floats += [] if layer.super_minima is None else [layer.super_minima]
    with np.errstate(over="ignore"):
        held = all(np.isfinite(values.astype("<f2")).all() for values in floats)
    if not held:
        largest = max(np.abs(values).max() for values in floats)
        raise BadInput(
            f"a scale or offset of {largest:.6g} exceeds float16, GGUF's scale type; quantize again"
        )
    blocks = layer.grid.super_blocks
    if blocks is None:
        return
    integers = [("scale", layer.sub_scales, blocks.scale_limits)]
    if blocks.minimum_limits is not None:
        integers.append(("minimum", layer.sub_minima, blocks.minimum_limits))
    for what, values, (low, high) in integers:
        if values.min() < low or values.max() > high:
            raise BadInput(
                f"a {what} of {layer.grid.type} is {values.min()} to {values.max()} times that "
                f"of its super-block; the type holds {low} to {high}, quantize again"
            )


def _blocked(values: NumpyArray, blocks: int) -> NumpyArray:
    """Split the columns of a row into blocks. Shapes: (out, n) -> (out, blocks, n / blocks)."""
    return values.reshape(values.shape[0], blocks, -1)


def _codes(layer: QuantizedLinear) -> Bytes:
    """Split the codes into the blocks of their type. Shapes: (out, blocks, columns)."""
    rows, columns = layer.codes.shape
    return layer.codes.reshape(rows, columns // PACKED[layer.grid.type].columns, -1)


def _float16(values: NumpyArray) -> Bytes:
    """Give the bytes of a float per block. Shapes: (out, blocks) -> (out, blocks, 2)."""
    return np.ascontiguousarray(values.astype("<f2"))[:, :, np.newaxis].view(np.uint8)


def _super_scale(layer: QuantizedLinear) -> Bytes:
    assert layer.super_scales is not None
    return _float16(layer.super_scales)


def _super_minimum(layer: QuantizedLinear) -> Bytes:
    assert layer.super_minima is not None
    return _float16(layer.super_minima)


def _scale_per_block(layer: QuantizedLinear) -> Bytes:
    """Repeat the scale of a group for its blocks, on grids with one level of scales."""
    first = layer.grid.group_index(layer.codes.shape[1])[:: PACKED[layer.grid.type].columns]
    return _float16(layer.scales[:, first])


def _sub_scales(layer: QuantizedLinear, *, above: int = 0) -> Bytes:
    """Give the integers of each super-block, moved up by `above` so that none is negative.

    Shapes: (out, super-blocks, groups of one).
    """
    assert layer.super_scales is not None
    return _blocked((layer.sub_scales + above).astype(np.uint8), layer.super_scales.shape[1])


def _sub_minima(layer: QuantizedLinear) -> Bytes:
    assert layer.super_minima is not None
    return _blocked(layer.sub_minima.astype(np.uint8), layer.super_minima.shape[1])


def _interleaved(values: Bytes, bits: int, stride: int) -> Bytes:
    """Put values `stride` apart into one byte, the first into its lowest bits.

    8 / bits values make a byte, and 8 / bits * stride values are laid out before the next ones.

    Shapes: (out, blocks, n) -> (out, blocks, n * bits / 8).
    """
    rows, blocks, _ = values.shape
    parts = values.reshape(rows, blocks, -1, 8 // bits, stride)
    packed = np.zeros((*parts.shape[:3], stride), np.uint8)
    for place in range(8 // bits):
        packed |= parts[:, :, :, place] << np.uint8(place * bits)
    return packed.reshape(rows, blocks, -1)


def _q2_k(layer: QuantizedLinear) -> Fields:
    numbers = _sub_scales(layer) | (_sub_minima(layer) << np.uint8(4))
    codes = _interleaved(_codes(layer), 2, 32)
    return [numbers, codes, _super_scale(layer), _super_minimum(layer)]


def _q3_k(layer: QuantizedLinear) -> Fields:
    codes, scales = _codes(layer), _sub_scales(layer, above=32)
    high = _interleaved(codes >> np.uint8(2), 1, 32)
    low = _interleaved(codes & np.uint8(3), 2, 32)
    low_scales = _interleaved(scales & np.uint8(15), 4, 8)
    high_scales = _interleaved(scales >> np.uint8(4), 2, 4)
    return [high, low, low_scales, high_scales, _super_scale(layer)]


def _six_bit_pairs(layer: QuantizedLinear) -> Bytes:
    """Lay out eight scales and eight minima of six bits.

    The first four of each lie whole in a byte; the upper two bits of the others lie above them.

    Shapes: (out, super-blocks, 12).
    """
    scales, minima = _sub_scales(layer), _sub_minima(layer)
    halves = [
        values[..., :4] | ((values[..., 4:] >> np.uint8(4)) << np.uint8(6))
        for values in (scales, minima)
    ]
    low = (scales[..., 4:] & np.uint8(15)) | ((minima[..., 4:] & np.uint8(15)) << np.uint8(4))
    return np.concatenate([*halves, low], axis=-1)


def _q4_k(layer: QuantizedLinear) -> Fields:
    numbers = [_super_scale(layer), _super_minimum(layer), _six_bit_pairs(layer)]
    return [*numbers, _interleaved(_codes(layer), 4, 32)]


def _q5_k(layer: QuantizedLinear) -> Fields:
    codes = _codes(layer)
    numbers = [_super_scale(layer), _super_minimum(layer), _six_bit_pairs(layer)]
    fifth = _interleaved(codes >> np.uint8(4), 1, 32)
    return [*numbers, fifth, _interleaved(codes & np.uint8(15), 4, 32)]


def _q6_k(layer: QuantizedLinear) -> Fields:
    codes = _codes(layer)
    low = _interleaved(codes & np.uint8(15), 4, 64)
    high = _interleaved(codes >> np.uint8(4), 2, 32)
    assert layer.super_scales is not None
    scales = _blocked(layer.sub_scales.astype(np.int8), layer.super_scales.shape[1])
    return [low, high, scales.view(np.uint8), _super_scale(layer)]


def _iq4_xs(layer: QuantizedLinear) -> Fields:
    scales = _sub_scales(layer, above=32)
    high = _interleaved(scales >> np.uint8(4), 2, 1)
    low = _interleaved(scales & np.uint8(15), 4, 1)
    return [_super_scale(layer), high, low, _interleaved(_codes(layer), 4, 16)]


def _iq4_nl(layer: QuantizedLinear) -> Fields:
    return [_scale_per_block(layer), _interleaved(_codes(layer), 4, 16)]


def _q2_0(layer: QuantizedLinear) -> Fields:
    """Turn the codes over: s (q - 2) is -s ((3 - q) - 1), and the block has its zero at 1."""
    turned = np.uint8(3) - _codes(layer)
    negative = _scale_per_block(layer).copy()
    negative[..., 1] ^= np.uint8(0x80)  # the sign of a float16
    return [negative, _interleaved(turned, 2, 1)]


def _tq2_0(layer: QuantizedLinear) -> Fields:
    return [_interleaved(_codes(layer), 2, 32), _scale_per_block(layer)]


def _tq1_0(layer: QuantizedLinear) -> Fields:
    codes = _codes(layer)
    parts = [
        _base_three(codes[..., :160], 32),
        _base_three(codes[..., 160:240], 16),
        _base_three(codes[..., 240:], 4),
    ]
    return [*parts, _scale_per_block(layer)]


def _base_three(codes: Bytes, stride: int) -> Bytes:
    """Make a byte of up to five digits that lie `stride` apart, the first one counting most.

    The number is stretched from 243 to 256 values, so that a runtime finds a digit by multiplying.
    Where there are four digits, a fifth of zero follows.

    Shapes: (out, blocks, n) -> (out, blocks, stride).
    """
    digits = codes.reshape(*codes.shape[:2], -1, stride).astype(np.uint16)
    number = np.zeros_like(digits[:, :, 0])
    for place in range(5):
        number *= 3
        if place < digits.shape[2]:
            number += digits[:, :, place]
    stretched: Bytes = ((number * 256 + 242) // 243).astype(np.uint8)
    return stretched


PACKED: Mapping[str, PackedType] = {
    kind.name: kind
    for kind in (
        PackedType("Q2_K", 2, 256, 84, _q2_k),
        PackedType("Q3_K", 3, 256, 110, _q3_k),
        PackedType("Q4_K", 4, 256, 144, _q4_k),
        PackedType("Q5_K", 5, 256, 176, _q5_k),
        PackedType("Q6_K", 6, 256, 210, _q6_k),
        PackedType("IQ4_NL", 4, 32, 18, _iq4_nl),
        PackedType("IQ4_XS", 4, 256, 136, _iq4_xs),
        PackedType("TQ1_0", 2, 256, 54, _tq1_0),
        PackedType("TQ2_0", 2, 256, 66, _tq2_0),
        PackedType("Q2_0", 2, 64, 18, _q2_0),
    )
}
"""Types of blocks by the type of the grid that they hold."""


def why_not_typed(shape: tuple[int, ...], grid: Grid) -> str | None:
    """Say what keeps a tensor on a grid with a type out of its blocks and what to change, or None.

    Shapes: (out, in).
    """
    columns = PACKED[grid.type].columns
    if shape[-1] % columns == 0:
        return None
    return (
        f"{shape[-1]} inputs do not fill blocks of {grid.type}, which hold {columns} columns; "
        "choose a type whose blocks fit, such as Q4_0, Q5_0 or Q8_0"
    )
