"""GGUF block bytes against the format's own library, an independent parser and literal bytes."""

import gguf
import numpy as np
import pytest
from tiny_models import random_layer

from edgeq.errors import BadInput
from edgeq.types import Grid, QuantizedLinear
from edgeq_exporters.common.deviation import largest_difference
from edgeq_exporters.gguf.blocks import (
    block_type,
    held_by_blocks,
    is_widened,
    pack_blocks,
    tensor_bytes,
    why_not_packable,
)

NATIVE = {
    "Q4_0": Grid(4, 32),
    "Q5_0": Grid(5, 32),
    "Q8_0": Grid(8, 32),
    "Q4_1": Grid(4, 32, "offset"),
    "Q5_1": Grid(5, 32, "offset"),
}
WIDENED = {
    "Q4_0": [Grid(2, 32), Grid(3, 32)],
    "Q8_0": [Grid(6, 32), Grid(7, 32)],
    "Q4_1": [Grid(2, 32, "offset"), Grid(3, 32, "offset")],
}
EVERY_EXACT_GRID = [*NATIVE.values(), *[grid for grids in WIDENED.values() for grid in grids]]


def largest_deviation(layer):
    held = held_by_blocks(layer)
    return largest_difference(layer, held.scales, held.offsets)


def read_by(library_type: str, packed: np.ndarray) -> np.ndarray:
    return gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[library_type])


def parsed(name: str, packed: np.ndarray, columns: int) -> QuantizedLinear:
    """A slow reading of the format's description, one bit at a time."""
    width = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34}[name]
    codes, scales, offsets = [], [], []
    for block in packed.reshape(-1, width):
        d = float(np.frombuffer(block[:2].tobytes(), "<f2")[0])
        body = block[4:] if name.endswith("_1") else block[2:]
        if name == "Q8_0":
            block_codes = [(int(byte) + 128) % 256 for byte in body]
        else:
            high = int.from_bytes(body[:4].tobytes(), "little") if name.startswith("Q5") else 0
            nibbles = body[4:] if name.startswith("Q5") else body
            low = [int(byte) % 16 for byte in nibbles] + [int(byte) // 16 for byte in nibbles]
            block_codes = [code + 16 * (high >> j & 1) for j, code in enumerate(low)]
        middle = -d * 2 ** (NATIVE[name].bits - 1)
        offset = (
            float(np.frombuffer(block[2:4].tobytes(), "<f2")[0]) if name.endswith("_1") else middle
        )
        codes.append(block_codes)
        scales.append(d)
        offsets.append(offset)
    groups = (-1, columns // 32)
    return QuantizedLinear(
        np.array(codes, np.uint8).reshape(-1, columns),
        np.array(scales, np.float32).reshape(groups),
        np.array(offsets, np.float32).reshape(groups),
        NATIVE[name],
    )


@pytest.mark.parametrize("name", NATIVE)
def test_blocks_quantized_by_the_library_are_packed_back_to_the_same_bytes(rng, name):
    weights = rng.standard_normal((6, 96)).astype(np.float32)
    theirs = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(pack_blocks(parsed(name, theirs, 96)), theirs)


@pytest.mark.parametrize("name", NATIVE)
def test_any_bytes_of_a_block_survive_parsing_and_packing(rng, name):
    width = block_type(NATIVE[name]).block_bytes
    theirs = rng.integers(0, 256, (50, 2, width)).astype(np.uint8)
    theirs[..., 1] &= 0x3B  # keeps the exponent of d below infinity
    if name.endswith("_1"):
        theirs[..., 3] &= 0x3B
    theirs = theirs.reshape(50, -1)
    np.testing.assert_array_equal(pack_blocks(parsed(name, theirs, 64)), theirs)


@pytest.mark.parametrize("group_size", [32, 64, 128, 256, None])
@pytest.mark.parametrize("grid", EVERY_EXACT_GRID, ids=str)
def test_the_library_reads_exactly_the_dequantized_weights(rng, grid, group_size):
    grid = Grid(grid.bits, group_size, grid.zeros)
    layer = random_layer(rng, (5, 256), grid)
    assert (layer.scales < 0).any()
    np.testing.assert_array_equal(
        read_by(block_type(grid).name, pack_blocks(layer)), layer.dequantized()
    )
    assert largest_deviation(layer) == 0.0


@pytest.mark.parametrize("grid", [Grid(4, 64), Grid(5, 64, "offset"), Grid(2, 64)], ids=str)
def test_a_short_last_group_keeps_its_own_scale(rng, grid):
    layer = random_layer(rng, (3, 96), grid)
    assert layer.scales.shape == (3, 2)
    np.testing.assert_array_equal(
        read_by(block_type(grid).name, pack_blocks(layer)), layer.dequantized()
    )


@pytest.mark.parametrize("grid", EVERY_EXACT_GRID, ids=str)
def test_the_smallest_and_the_largest_code_are_exact(rng, grid):
    layer = random_layer(rng, (2, 64), grid)
    layer.codes[0], layer.codes[1] = 0, grid.max_code
    np.testing.assert_array_equal(
        read_by(block_type(grid).name, pack_blocks(layer)), layer.dequantized()
    )


@pytest.mark.parametrize("name", NATIVE)
def test_weights_on_the_grid_quantize_to_the_same_bytes_where_the_library_chooses_the_same_scale(
    rng, name
):
    grid = NATIVE[name]
    layer = random_layer(rng, (4, 64), grid)
    scales = np.full_like(
        layer.scales, 2.0**-6
    )  # exact in every step of the library's scale choice
    offsets = np.full_like(scales, -0.25 if grid.zeros == "offset" else -(2.0**-6) * grid.middle)
    layer.codes[:, ::32], layer.codes[:, 1::32] = 0, grid.max_code  # both ends occur in every block
    if name == "Q8_0":
        layer.codes[:, ::32] = 1  # the library uses -127..127
        layer.codes[:] = np.maximum(layer.codes, 1)
    on_grid = QuantizedLinear(layer.codes, scales, offsets, grid)
    theirs = gguf.quants.quantize(on_grid.dequantized(), gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(pack_blocks(on_grid), theirs)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Q4_0", "0038" + "00102030405060708090a0b0c0d0e0f0"),
        ("Q4_1", "0038" + "00c0" + "00102030405060708090a0b0c0d0e0f0"),
        ("Q5_0", "0038" + "0000ffff" + "00102030405060708090a0b0c0d0e0f0"),
        ("Q5_1", "0038" + "00c0" + "0000ffff" + "00102030405060708090a0b0c0d0e0f0"),
        ("Q8_0", "0038" + "80" * 16 + "909192939495969798999a9b9c9d9e9f"),
    ],
)
def test_a_block_has_these_literal_bytes(name, expected):
    grid = NATIVE[name]
    fifth_bit = 16 if grid.bits >= 5 else 0
    codes = np.array([[0] * 16 + [fifth_bit + j for j in range(16)]], np.uint8)
    scales = np.array([[0.5]], np.float32)
    offsets = np.array([[-2.0 if grid.zeros == "offset" else -0.5 * grid.middle]], np.float32)
    assert pack_blocks(QuantizedLinear(codes, scales, offsets, grid)).tobytes().hex() == expected


def test_only_grids_with_fewer_bits_than_their_blocks_are_widened():
    assert not any(is_widened(grid) for grid in NATIVE.values())
    assert all(is_widened(grid) for grids in WIDENED.values() for grid in grids)
    for name, grids in WIDENED.items():
        assert {block_type(grid).name for grid in grids} == {name}


@pytest.mark.parametrize(
    "grid",
    [
        Grid(4, 32, "integer"),
        Grid(3, 64, "integer"),
        Grid(4, 32, "symmetric", "float32"),
        Grid(8, 64, "symmetric", "float32"),
        Grid(5, None, "offset", "float32"),
        Grid(4, 32, "offset", "bfloat16"),
    ],
    ids=str,
)
def test_the_recorded_deviation_is_what_the_library_reads(rng, grid):
    layer = random_layer(rng, (8, 128), grid, size=3e-5 if grid.scale_dtype == "bfloat16" else 1.0)
    read = read_by(block_type(grid).name, pack_blocks(layer)).astype(np.float64)
    index = grid.group_index(128)
    exact = layer.scales.astype(np.float64)[:, index] * layer.codes + layer.offsets[:, index]
    deviation = largest_deviation(layer)
    assert deviation > 0
    np.testing.assert_allclose(np.abs(read - exact).max(), deviation, rtol=0.02)


def test_integer_zeros_move_weights_by_less_than_a_hundredth_of_a_step(rng):
    layer = random_layer(rng, (64, 128), Grid(4, 32, "integer"))
    assert largest_deviation(layer) <= 16 * 2.0**-11 * np.abs(layer.scales).max()


def test_bfloat16_scales_in_the_range_of_float16_are_exact(rng):
    layer = random_layer(rng, (4, 64), Grid(4, 32, "symmetric", "bfloat16"))
    assert largest_deviation(layer) == 0.0
    np.testing.assert_array_equal(read_by("Q4_0", pack_blocks(layer)), layer.dequantized())


def test_a_scale_beyond_float16_is_refused():
    grid = Grid(4, 32, "symmetric", "float32")
    layer = QuantizedLinear(
        np.zeros((1, 32), np.uint8), np.full((1, 1), 1e6, "f4"), np.full((1, 1), -8e6, "f4"), grid
    )
    with pytest.raises(BadInput, match="exceeds float16"):
        pack_blocks(layer)


@pytest.mark.parametrize(
    ("shape", "grid", "words"),
    [
        ((8, 96), Grid(4, 48), "group_size 48 is not a multiple of 32"),
        ((8, 64), Grid(8, 32, "integer"), "no 8-bit block with offsets; use a symmetric grid"),
        ((8, 64), Grid(6, 32, "offset"), "no 6-bit block with offsets; use a symmetric grid"),
        ((8, 64), Grid(1, 32), "2 to 8 bits, not 1"),
        ((8, 64), Grid(9, 32, "offset"), "2 to 8 bits, not 9"),
    ],
)
def test_what_blocks_cannot_hold_is_refused_with_the_remedy(shape, grid, words):
    assert words in why_not_packable(shape, grid)


@pytest.mark.parametrize(("columns", "grid"), [(80, Grid(4, 32)), (341, Grid(4, None))])
def test_rows_that_do_not_fill_blocks_take_two_bytes_a_weight(columns, grid):
    assert why_not_packable((8, columns), grid) is None
    assert tensor_bytes((8, columns), grid, 4) == 2 * 8 * columns


@pytest.mark.parametrize(("columns", "group_size"), [(96, 64), (32, 48), (576, 128), (64, None)])
def test_groups_that_divide_into_blocks_are_accepted(columns, group_size):
    assert why_not_packable((8, columns), Grid(4, group_size)) is None
