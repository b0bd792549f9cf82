from dataclasses import replace

import numpy as np
import pytest

from edgeq.errors import BadInput
from edgeq.grids.limits import clamped_groups
from edgeq.recipe.recipe import make_recipe
from edgeq.solving.layer import solve_without_statistics
from edgeq.types import Grid, OutlierColumns, QuantizedLinear
from edgeq_backends.reference import ReferenceBackend


def solved(weight, grid):
    return solve_without_statistics(
        weight, grid, make_recipe({"scales": "none"}), ReferenceBackend()
    )


@pytest.mark.parametrize("factor", [1e-12, 1e12])
@pytest.mark.parametrize("zeros", ["symmetric", "integer"])
def test_groups_beyond_the_range_of_their_scales_are_counted(rng, factor, zeros):
    weight, grid = rng.standard_normal((6, 64)).astype(np.float32), Grid(4, 32, zeros)
    assert clamped_groups("w", weight, solved(weight, grid)) == 0
    weight[2, :32] *= factor
    assert clamped_groups("w", weight, solved(weight, grid)) == 1
    assert clamped_groups("w", weight, solved(weight, Grid(4, 32, zeros, "bfloat16"))) == 0


def test_groups_of_zeros_are_not_counted(rng):
    weight = rng.standard_normal((6, 64)).astype(np.float32)
    weight[2] = 0
    assert clamped_groups("w", weight, solved(weight, Grid(4, 32))) == 0


def test_an_offset_that_its_type_cannot_hold_is_refused(rng):
    layer = QuantizedLinear(
        np.zeros((2, 32), np.uint8),
        np.ones((2, 1), np.float32),
        np.full((2, 1), -np.inf, np.float32),
        Grid(4, 32, "offset"),
    )
    with pytest.raises(BadInput, match=r"tensor 'w': .* exceeds float16"):
        clamped_groups("w", np.ones((2, 32), np.float32), layer)


def with_outliers(weight, columns, values):
    """The layer solved without some columns, and these beside it."""
    rest = weight.copy()
    rest[:, columns] = 0
    return replace(
        solved(rest, Grid(4, 32, outlier_columns=0.5)), outliers=OutlierColumns(columns, values)
    )


def test_scales_need_not_cover_outlier_columns(rng):
    weight, columns = rng.standard_normal((6, 64)).astype(np.float32), np.arange(32)
    before = weight.copy()
    assert clamped_groups("w", weight, with_outliers(weight, columns, weight[:, columns])) == 0
    np.testing.assert_array_equal(weight, before)
    weight[2, 40] = 1e12
    assert clamped_groups("w", weight, with_outliers(weight, columns, weight[:, columns])) == 1


def test_an_outlier_that_its_type_cannot_hold_is_refused(rng):
    weight, columns = rng.standard_normal((6, 64)).astype(np.float32), np.arange(32)
    layer = with_outliers(weight, columns, np.full((6, 32), np.inf, np.float32))
    with pytest.raises(
        BadInput, match=r"tensor 'w': a value of its outlier columns exceeds float16"
    ):
        clamped_groups("w", weight, layer)
