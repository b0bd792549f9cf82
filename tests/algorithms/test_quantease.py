from dataclasses import replace

import numpy as np
import plain
import pytest
from layers import ZEROS, SolvedLayer

from edgeq.algorithms import quantease
from edgeq.algorithms.problem import Problem, loss_change
from edgeq.algorithms.quantease import Sweeps, column_problem, descend_codes, sweep
from edgeq.registry import load_backend
from edgeq.types import Grid, Solution


def descend(layer, solution=None, *, sweeps=1, relaxed=False, order=None):
    problem = replace(layer.problem, order=order)
    solution = layer.solution if solution is None else solution
    return descend_codes(problem, solution, Sweeps(sweeps, relaxed))


@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_sweep_raises_the_loss_of_any_row(backend, rng, zeros, bits):
    layer = SolvedLayer(rng, Grid(bits, 16, zeros), backend, out_features=12)
    solution, before = layer.solution, layer.losses(layer.solution)
    start = before.sum()
    for _ in range(4):
        solution = descend(layer, solution)
        after = layer.losses(solution)
        assert (after <= before + layer.noise()).all()
        before = after
    assert before.sum() < 0.98 * start


@pytest.mark.parametrize("zeros", ZEROS)
def test_codes_are_those_of_trying_every_value_of_every_code(backend, rng, zeros):
    layer = SolvedLayer(rng, Grid(3, 16, zeros), backend, in_features=37, solver="rtn")
    order = rng.permutation(37)
    for columns in (np.arange(37), order):
        tried = plain.one_row_at_a_time(
            layer.V, layer.H, layer.numpy_codes(), layer.scales, layer.offsets, 7, columns, 2
        )
        found = descend(layer, sweeps=2, order=None if columns is not order else order)
        np.testing.assert_array_equal(layer.numpy_codes(found), tried)


def test_a_settled_solution_is_a_fixed_point(backend, rng):
    layer = SolvedLayer(rng, Grid(3, 16), backend)
    settled = descend(layer, sweeps=50)
    np.testing.assert_array_equal(
        layer.numpy_codes(descend(layer, settled)), layer.numpy_codes(settled)
    )


def test_it_comes_within_one_percent_of_the_exhaustive_optimum_in_most_seeds(backend):
    close = 0
    for seed in range(20):
        layer = SolvedLayer(
            np.random.default_rng(seed), Grid(2, None), backend, in_features=12, out_features=1
        )
        optimum = plain.closest_codes(layer.V[0], layer.H, layer.scales[0], layer.offsets[0], 3)
        found = layer.losses(descend(layer, sweeps=10))[0]
        assert found >= optimum - layer.noise()[0]
        close += found <= 1.01 * optimum
    assert close >= 14


@pytest.mark.parametrize("relaxed", [False, True])
def test_uncorrelated_inputs_are_rounded_whatever_the_start(backend, rng, relaxed):
    layer = SolvedLayer(rng, Grid(3, 16), backend, H=np.diag(rng.uniform(0.1, 10, 40)))
    start = layer.with_codes(backend.asarray(rng.integers(0, 8, (6, 40))))
    nearest = plain.nearest(layer.V, layer.scales, layer.offsets, 7)
    np.testing.assert_array_equal(
        layer.numpy_codes(descend(layer, start, sweeps=4, relaxed=relaxed)), nearest
    )


def test_relaxed_sweeps_lower_the_loss_further_and_raise_no_row(backend, rng):
    layer = SolvedLayer(rng, Grid(2, 16), backend, out_features=48, in_features=64)
    plain_sweeps, relaxed = descend(layer, sweeps=16), descend(layer, sweeps=16, relaxed=True)
    assert (layer.losses(relaxed) <= layer.losses(layer.solution) + layer.noise()).all()
    assert layer.losses(relaxed).sum() < layer.losses(plain_sweeps).sum()
    assert set(np.unique(layer.numpy_codes(relaxed))) <= set(range(4))


def test_relaxed_sweeps_leave_a_settled_solution(backend, rng):
    layer = SolvedLayer(rng, Grid(2, 16), backend, out_features=48, in_features=64)
    settled = descend(layer, sweeps=60)
    np.testing.assert_array_equal(
        layer.numpy_codes(descend(layer, settled)), layer.numpy_codes(settled)
    )
    relaxed = descend(layer, settled, sweeps=16, relaxed=True)
    assert (layer.losses(relaxed) <= layer.losses(settled) + layer.noise()).all()
    assert layer.losses(relaxed).sum() < 0.99 * layer.losses(settled).sum()


def test_ties_keep_the_old_code(backend):
    """Half way between two codes both are as good: neither start moves."""
    V, eye = np.array([[0.5, 1.5, -0.5]]), np.eye(3)
    fitted = plain.to_backend(Solution(np.ones((1, 1)), np.full((1, 1), -4.0)), backend)
    problem = Problem(backend.asarray(V), backend.asarray(eye), Grid(3, None), backend)
    for start in ([[4, 5, 3]], [[5, 6, 4]], [[4, 6, 3]]):
        begun = replace(fitted, codes=backend.asarray(np.array(start)))
        for towards in (problem, replace(problem, V=None, B=problem.V)):
            kept = descend_codes(towards, begun, Sweeps(3))
            assert backend.to_numpy(kept.codes).tolist() == start


def test_saturated_rows_stay_in_range(backend, rng):
    layer = SolvedLayer(rng, Grid(2, 16, "integer"), backend)
    low, high = layer.solution.codes * 0, layer.solution.codes * 0 + 3
    far = replace(layer.problem, B=100 * layer.problem.B)
    for start in (low, high):
        for relaxed in (False, True):
            found = descend_codes(far, layer.with_codes(start), Sweeps(4, relaxed))
            assert set(np.unique(layer.numpy_codes(found))) <= {0, 1, 2, 3}


def test_an_input_without_energy_keeps_its_codes(backend, rng):
    layer = SolvedLayer(rng, Grid(3, 16), backend)
    H = layer.H.copy()
    H[5] = H[:, 5] = 0
    problem = replace(layer.problem, H=backend.asarray(H), B=backend.asarray(layer.V @ H))
    found = layer.numpy_codes(descend_codes(problem, layer.solution, Sweeps(3)))
    np.testing.assert_array_equal(found[:, 5], layer.numpy_codes()[:, 5])
    assert np.isfinite(found).all()


def test_the_size_of_blocks_changes_no_code(rng):
    reference = load_backend("reference")
    layer = SolvedLayer(rng, Grid(3, 32), reference, in_features=150)
    columns = column_problem(layer.problem, layer.solution, np.arange(150))
    swept = [
        sweep(columns, layer.solution.codes.T, None, rounding=True, block_size=size)[0]
        for size in (1, 7, 64, 200)
    ]
    for other in swept[1:]:
        np.testing.assert_array_equal(other, swept[0])


def test_the_change_of_a_loss_is_the_difference_of_losses(backend, rng, tolerance):
    layer = SolvedLayer(rng, Grid(3, 16), backend)
    old, new = rng.standard_normal((2, 6, 40))
    change = loss_change(layer.problem, backend.asarray(old), backend.asarray(new))
    expected = plain.quadratic(new, layer.B, layer.H) - plain.quadratic(old, layer.B, layer.H)
    np.testing.assert_allclose(
        backend.to_numpy(change), expected, atol=10 * tolerance * abs(expected).max()
    )


def test_inputs_are_left_as_they_were(backend, rng):
    layer = SolvedLayer(rng, Grid(3, 16), backend)
    arrays = (
        layer.solution.codes,
        layer.solution.scales,
        layer.solution.offsets,
        layer.problem.B,
        layer.problem.H,
    )
    before = [backend.to_numpy(array).copy() for array in arrays]
    descend(layer, sweeps=4, relaxed=True, order=np.arange(40)[::-1])
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(array), old)


def test_the_tie_margin_is_far_below_what_a_step_gains():
    assert 0 < quantease.TIE < 1e-4
