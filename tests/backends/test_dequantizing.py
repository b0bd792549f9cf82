"""Frameworks dequantize a solved layer to the very bits of NumPy, on every kind of grid."""

import numpy as np
import pytest

from edgeq.grids.types import GRIDS as TYPES
from edgeq.types import Grid, OutlierColumns, QuantizedLinear

ROWS = 5
GRIDS = {
    **{
        f"{bits} bits, groups of {size}, {zeros}": Grid(bits, size, zeros, dtype)
        for bits, size, zeros, dtype in [
            (2, 32, "symmetric", "float16"),
            (3, None, "integer", "float16"),
            (4, 128, "offset", "bfloat16"),
            (5, 48, "offset", "float32"),
            (8, 1000, "integer", "float32"),
        ]
    },
    "outliers": Grid(4, 32, "offset", "float16", 0.05),
    **TYPES,
}


def solved_layer(rng, grid, columns):
    """A layer of any codes, scales and offsets, of widely different sizes."""
    groups = (ROWS, grid.group_count(columns))
    sizes = np.exp2(rng.integers(-20, 10, groups))
    scales, offsets = ((rng.standard_normal(groups) * sizes).astype(np.float32) for _ in range(2))
    if grid.table:
        offsets[:] = 0
    codes = rng.integers(0, grid.max_code + 1, (ROWS, columns)).astype(np.uint8)
    outliers = None
    if grid.outlier_columns:
        places = np.sort(rng.permutation(columns)[: grid.outlier_count(columns)]).astype(np.int32)
        values = rng.standard_normal((ROWS, len(places))).astype(np.float32)
        outliers = OutlierColumns(places, values)
    return QuantizedLinear(codes, scales, offsets, grid, outliers)


def in_torch(layer):
    torch = pytest.importorskip("torch")
    from edgeq_backends.torch.dequantizing import dequantize  # noqa: PLC0415

    return dequantize(layer, torch.device("cpu")).numpy()


def in_mlx(layer):
    pytest.importorskip("mlx_lm", reason="MLX has no build for this system")
    from edgeq_backends.mlx.model import dequantize  # noqa: PLC0415

    return np.array(dequantize(layer))


@pytest.mark.parametrize("dequantize", [in_torch, in_mlx])
@pytest.mark.parametrize("name", GRIDS)
def test_the_bits_are_those_of_numpy(rng, dequantize, name):
    grid = GRIDS[name]
    for columns in (256, 512) if grid.type else (1, 32, 127, 200):
        layer = solved_layer(rng, grid, columns)
        found = dequantize(layer)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found.view(np.uint32), layer.dequantized().view(np.uint32))
