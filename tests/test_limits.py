import numpy as np
import pytest

from edgeq.errors import BadInput
from edgeq.layer import solve_without_statistics
from edgeq.limits import clamped_groups
from edgeq.recipe import make_recipe
from edgeq.types import Grid, QuantizedLinear
from edgeq_backends.reference import ReferenceBackend


def solved(weight, grid):
    return solve_without_statistics(weight, grid, make_recipe({"scales": "none"}), ReferenceBackend())


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
        np.zeros((2, 32), np.uint8), np.ones((2, 1), np.float32), np.full((2, 1), -np.inf, np.float32),
        Grid(4, 32, "offset"),
    )  # fmt: skip
    with pytest.raises(BadInput, match=r"tensor 'w': .* exceeds float16"):
        clamped_groups("w", np.ones((2, 32), np.float32), layer)
