import numpy as np
import plain
import pytest

from edgeq.algorithms.problem import Problem
from edgeq.algorithms.rtn import round_to_nearest
from edgeq.grids.super_blocks import fit_min_max
from edgeq.types import Grid, Solution

ZEROS = ("symmetric", "integer", "offset")


def rounded(W, grid, backend):
    problem = Problem(backend.asarray(W), None, grid, backend)
    found = round_to_nearest(problem, fit_min_max(problem.V, grid, backend))
    return backend.to_numpy(found.codes), *plain.column_values(found, grid, W.shape[1], backend)


@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_weight_lands_within_half_a_step_of_itself(backend, rng, zeros, bits):
    W = rng.standard_normal((5, 64)).astype(np.float32)
    codes, scales, offsets = rounded(W, Grid(bits, 16, zeros, "float32"), backend)
    half_a_step = (
        0.5 * scales * (2.001 if zeros == "integer" else 1.001)
    )  # a whole zero point may shift the range
    assert (abs(scales * codes + offsets - W) <= half_a_step).all()


@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("in_features", [21, 64, 341])
def test_codes_equal_rounding_every_column_with_its_own_scale(backend, rng, zeros, in_features):
    W = rng.standard_normal((5, in_features)).astype(np.float32).astype(np.float64)
    codes, scales, offsets = rounded(W, Grid(3, 32, zeros), backend)
    expected_scales, expected_offsets = plain.min_max(W, 32, 3, zeros)
    np.testing.assert_array_equal(scales, expected_scales)
    np.testing.assert_array_equal(offsets, expected_offsets)
    np.testing.assert_array_equal(codes, plain.nearest(W, expected_scales, expected_offsets, 7))


def test_without_a_group_size_a_row_has_one_scale(backend, rng):
    W = rng.standard_normal((4, 21)).astype(np.float32).astype(np.float64)
    codes, scales, _ = rounded(W, Grid(4, None), backend)
    expected, offsets = plain.min_max(W, 21, 4, "symmetric")
    np.testing.assert_array_equal(scales, expected)
    np.testing.assert_array_equal(codes, plain.nearest(W, expected, offsets, 15))


def test_a_group_of_zeros_stays_zero(backend):
    for zeros in ZEROS:
        codes, scales, offsets = rounded(np.zeros((2, 16), np.float32), Grid(4, 8, zeros), backend)
        assert (scales > 0).all()
        np.testing.assert_array_equal(scales * codes + offsets, 0)


def test_halves_go_to_the_even_code(backend):
    W = np.array([[-8.0, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 7.0]])
    fitted = plain.to_backend(Solution(np.array([[1.0]]), np.array([[-8.0]])), backend)
    found = round_to_nearest(Problem(backend.asarray(W), None, Grid(4, 8), backend), fitted)
    assert backend.to_numpy(found.codes)[0].tolist() == [0, 6, 8, 8, 10, 10, 12, 15]


def test_permuting_rows_permutes_the_codes(backend, rng):
    W, order = rng.standard_normal((7, 40)), rng.permutation(7)
    codes = rounded(W, Grid(4, 16), backend)[0]
    np.testing.assert_array_equal(rounded(W[order], Grid(4, 16), backend)[0], codes[order])
