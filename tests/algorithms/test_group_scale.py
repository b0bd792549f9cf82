import numpy as np
import plain
import pytest

from edgeq.algorithms.group_scale import search_scales
from edgeq.algorithms.problem import Problem
from edgeq.types import Grid

ZEROS = ("symmetric", "integer", "offset")


def problem_of(V, importance, grid, backend):
    return Problem(backend.asarray(V), None, grid, backend, importance=backend.asarray(importance))


def searched(V, importance, grid, backend) -> tuple[np.ndarray, np.ndarray]:
    """Scales and offsets of stage 1, one value per column."""
    found = search_scales(problem_of(V, importance, grid, backend))
    return plain.column_values(found, grid, V.shape[1], backend)


def group_losses(V, importance, scales, offsets, max_code, group_size):
    """Importance-weighted squared rounding error per row and group."""
    error = scales * plain.nearest(V, scales, offsets, max_code) + offsets - V
    starts = range(0, V.shape[1], group_size)
    return np.stack(
        [(importance * error**2)[:, a : a + group_size].sum(axis=1) for a in starts], axis=1
    )


@pytest.fixture
def problem(rng):
    V = rng.standard_t(4, (24, 53)).astype(np.float32).astype(np.float64)
    return V, rng.uniform(0.1, 5, 53).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_search_is_never_worse_than_min_max_in_any_group(backend, problem, tolerance, zeros, bits):
    V, importance = problem
    found = group_losses(
        V, importance, *searched(V, importance, Grid(bits, 16, zeros), backend), 2**bits - 1, 16
    )
    min_max = group_losses(V, importance, *plain.min_max(V, 16, bits, zeros), 2**bits - 1, 16)
    assert (found <= min_max * (1 + tolerance)).all()
    assert found.sum() < 0.9 * min_max.sum()


def test_search_is_never_worse_than_any_shrunken_range_of_either_sign(backend, problem, tolerance):
    V, importance = problem
    found = group_losses(V, importance, *searched(V, importance, Grid(3, 16), backend), 7, 16)
    full, _ = plain.min_max(V, 16, 3, "symmetric")
    reach = np.concatenate(
        [
            np.repeat(abs(V[:, a : a + 16]).max(axis=1)[:, None], 16, axis=1)
            for a in range(0, 53, 16)
        ],
        axis=1,
    )[:, :53]
    assert abs(full - 2 * reach / 7).max() < 1e-3
    for shrink in np.linspace(1.0, 0.4, 18):
        for sign in (1, -1):
            scales = sign * np.float64(np.float16(2 * shrink * reach / 7))
            tried = group_losses(V, importance, scales, -4 * scales, 7, 16)
            assert (found <= tried * (1 + tolerance)).all()


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("zeros", ZEROS)
def test_scales_are_values_that_the_container_stores(backend, problem, zeros, scale_dtype):
    V, importance = problem
    grid = Grid(3, 16, zeros, scale_dtype)
    found = search_scales(problem_of(V, importance, grid, backend))
    scales, offsets = (backend.to_numpy(array) for array in (found.scales, found.offsets))
    for stored in (scales, offsets) if zeros == "offset" else (scales,):
        bits = stored.astype(np.float32).view(np.uint32)
        if scale_dtype == "float16":
            np.testing.assert_array_equal(stored, stored.astype(np.float16))
        else:
            assert (bits & 0xFFFF == 0).all()  # bfloat16 is the upper half of a float32
    if zeros != "offset":
        zero_points = -offsets / scales
        np.testing.assert_array_equal(zero_points, np.rint(zero_points))
        assert zero_points.min() >= 0
        assert zero_points.max() <= 7


def test_a_group_that_reaches_further_up_gets_a_negative_scale(backend):
    V = np.array(
        [[2.0, -1.0, 1.0, 0.1, 0.9, -0.9, 0.0, 1.1], [-2.0, -1.0, 1.0, 0.1, 0.9, -0.9, 0.0, 1.1]]
    )
    scales, offsets = searched(V, np.ones(8), Grid(2, 8), backend)
    assert scales[0, 0] < 0 < scales[1, 0]
    np.testing.assert_array_equal(offsets, -2 * scales)
    np.testing.assert_allclose(abs(scales), 1.0, atol=0.05)


def test_negative_scales_occur_about_as_often_as_positive_ones(backend, problem):
    V, importance = problem
    share = (searched(V, importance, Grid(2, 16), backend)[0] < 0).mean()
    assert 0.3 < share < 0.7


def test_where_a_scale_and_its_mirror_image_lose_the_same_every_backend_takes_the_positive_one(
    backend, rng
):
    half = rng.standard_normal((200, 8))
    scales, _ = searched(np.concatenate([half, -half], axis=1), np.ones(16), Grid(3, 16), backend)
    assert (scales > 0).all()


def test_a_group_of_zeros_keeps_a_usable_scale(backend):
    for zeros in ZEROS:
        scales, offsets = searched(np.zeros((2, 16)), np.ones(16), Grid(4, 8, zeros), backend)
        assert (scales != 0).all()
        np.testing.assert_array_equal(
            scales * plain.nearest(np.zeros((2, 16)), scales, offsets, 15) + offsets, 0
        )


def test_columns_that_matter_are_fitted_and_others_clipped(backend):
    V, importance = np.array([[0.93, -0.93, 2.5, -2.5]]), np.array([1e4, 1e4, 1e-4, 1e-4])
    scales, offsets = searched(V, importance, Grid(2, 4), backend)
    errors = abs(scales * plain.nearest(V, scales, offsets, 3) + offsets - V)[0]
    assert errors[:2].max() < 0.001
    assert errors[2:].min() > 0.5


def test_permuting_rows_permutes_the_scales(backend, problem, rng):
    V, importance = problem
    order = rng.permutation(len(V))
    scales, _ = searched(V, importance, Grid(3, 16), backend)
    np.testing.assert_array_equal(
        searched(V[order], importance, Grid(3, 16), backend)[0], scales[order]
    )


def test_without_a_group_size_a_row_has_one_scale(backend, problem, tolerance):
    V, importance = problem
    scales, offsets = searched(V, importance, Grid(3, None), backend)
    assert (scales == scales[:, :1]).all()
    found = group_losses(V, importance, scales, offsets, 7, 53)
    min_max = group_losses(V, importance, *plain.min_max(V, 53, 3, "symmetric"), 7, 53)
    assert (found <= min_max * (1 + tolerance)).all()
