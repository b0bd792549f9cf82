from dataclasses import replace

import numpy as np
import plain
import pytest

from edgeq.algorithms.damping import inverse_upper_factor
from edgeq.algorithms.gptq import activation_order, solve_columns
from edgeq.algorithms.problem import Problem
from edgeq.algorithms.rtn import round_to_nearest
from edgeq.grids.super_blocks import fit_min_max
from edgeq.registry import load_backend
from edgeq.types import Grid


def layer(rng, *, damping=0.01, **sizes):
    """A weight and its damped second moment."""
    W, X, _ = plain.random_layer(rng, **sizes)
    return W, plain.damped(plain.moments(X, X)[0], damping)


def solved(W, H, grid, backend, *, order=None, **options):
    """Codes of GPTQ, and scales and offsets per column."""
    H_in_order = H if order is None else H[np.ix_(order, order)]
    U = inverse_upper_factor(backend.asarray(H_in_order), backend)
    problem = Problem(backend.asarray(W), backend.asarray(H), grid, backend, U=U, order=order)
    found = solve_columns(problem, fit_min_max(problem.V, grid, backend), **options)
    return backend.to_numpy(found.codes), *plain.column_values(found, grid, W.shape[1], backend)


@pytest.mark.parametrize("zeros", ["symmetric", "integer", "offset"])
def test_no_solver_beats_the_exhaustive_optimum(backend, rng, zeros):
    W, H = layer(rng, out_features=12, in_features=6)
    grid = Grid(2, 3, zeros)
    codes, scales, offsets = solved(W, H, grid, backend)
    optimum = plain.best_codes(W, H, scales, offsets, 3)
    for chosen in (codes, plain.nearest(W, scales, offsets, 3)):
        loss = plain.weighted_loss(scales * chosen + offsets, W, H)
        assert (loss >= optimum * (1 - 1e-12)).all()
    assert np.isin(codes, range(4)).all()


def test_compensation_comes_closer_to_the_optimum_than_rounding(backend, rng):
    W, H = layer(rng, out_features=64, in_features=6)
    codes, scales, offsets = solved(W, H, Grid(2, None), backend)
    nearest = plain.nearest(W, scales, offsets, 3)
    losses = [plain.weighted_loss(scales * c + offsets, W, H).sum() for c in (codes, nearest)]
    optimum = plain.best_codes(W, H, scales, offsets, 3).sum()
    assert optimum <= losses[0] < losses[1]


def test_uncorrelated_inputs_make_it_plain_rounding(backend, rng):
    W = rng.standard_normal((8, 40)).astype(np.float32).astype(np.float64)
    grid, H = Grid(3, 16), np.diag(rng.uniform(0.1, 10, 40))
    problem = Problem(backend.asarray(W), None, grid, backend)
    nearest = round_to_nearest(problem, fit_min_max(problem.V, grid, backend))
    np.testing.assert_array_equal(solved(W, H, grid, backend)[0], backend.to_numpy(nearest.codes))


@pytest.mark.parametrize("zeros", ["symmetric", "integer", "offset"])
@pytest.mark.parametrize("in_features", [21, 45, 70])
def test_codes_equal_those_of_inverting_the_free_part_anew_for_each_column(
    backend, rng, zeros, in_features
):
    W, H = layer(rng, in_features=in_features)
    codes, scales, _ = solved(W, H, Grid(3, 32, zeros), backend)
    expected_scales, expected_offsets = plain.min_max(W, 32, 3, zeros)
    np.testing.assert_array_equal(scales, expected_scales)
    np.testing.assert_array_equal(
        codes, plain.optimal_brain_quantizer(W, H, expected_scales, expected_offsets, 7)[0]
    )


def test_without_a_group_size_codes_equal_those_of_one_scale_per_row(backend, rng):
    W, H = layer(rng, in_features=30)
    codes = solved(W, H, Grid(4, None), backend)[0]
    scales, offsets = plain.min_max(W, 30, 4, "symmetric")
    np.testing.assert_array_equal(
        codes, plain.optimal_brain_quantizer(W, H, scales, offsets, 15)[0]
    )


def test_the_loss_is_the_sum_of_squared_column_errors(backend, rng, tolerance):
    W, H = layer(rng, in_features=70)
    codes, scales, offsets = solved(W, H, Grid(3, 16), backend)
    by_column = plain.optimal_brain_quantizer(W, H, scales, offsets, 7)[1]
    np.testing.assert_allclose(
        plain.weighted_loss(scales * codes + offsets, W, H), by_column, rtol=tolerance
    )


def test_the_size_of_lazy_blocks_changes_no_code(rng):
    reference = load_backend("reference")
    W, H = layer(rng, out_features=16, in_features=150)
    expected = solved(W, H, Grid(3, 32), reference, block_size=150)[0]
    for block_size in (1, 7, 64, 128, 1000):
        np.testing.assert_array_equal(
            solved(W, H, Grid(3, 32), reference, block_size=block_size)[0], expected
        )


def test_activation_order_solves_the_permuted_problem_on_contiguous_groups(backend, rng):
    W, H = layer(rng, in_features=50)
    order = activation_order(backend.asarray(H), backend)
    assert (np.diff(np.diag(H)[order]) <= 0).all()
    assert not np.array_equal(order, np.arange(50))
    codes, scales, offsets = solved(W, H, Grid(3, 16), backend, order=order)
    contiguous, _ = plain.min_max(W, 16, 3, "symmetric")
    np.testing.assert_array_equal(scales, contiguous)
    np.testing.assert_array_equal(
        codes, plain.optimal_brain_quantizer(W, H, scales, offsets, 7, order)[0]
    )


def test_inputs_of_equal_energy_keep_their_order(backend):
    H = np.diag([1.0, 2.0, 1.0, 2.0, 3.0])
    assert activation_order(backend.asarray(H), backend).tolist() == [4, 1, 3, 0, 2]


def test_permuting_rows_permutes_the_codes(backend, rng):
    W, H = layer(rng, out_features=9)
    order = rng.permutation(9)
    codes = solved(W, H, Grid(3, 8), backend)[0]
    np.testing.assert_array_equal(solved(W[order], H, Grid(3, 8), backend)[0], codes[order])


def test_inputs_are_left_as_they_were(backend, rng):
    W, H = layer(rng)
    problem = Problem(backend.asarray(W), backend.asarray(H), Grid(3, 8), backend)
    problem = replace(problem, U=inverse_upper_factor(problem.H, backend))
    fitted = fit_min_max(problem.V, problem.grid, backend)
    arrays = (problem.V, problem.U, problem.H, fitted.scales, fitted.offsets)
    before = [backend.to_numpy(array).copy() for array in arrays]
    solve_columns(problem, fitted)
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(array), old)
