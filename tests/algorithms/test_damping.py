import numpy as np
import plain
import pytest
from recipes import plain_recipe

from edgeq.algorithms.damping import (
    damped,
    factorise,
    inverse_upper_factor,
    lower_factor,
    settle_dead_columns,
)
from edgeq.errors import NotPositiveDefinite
from edgeq.solving.layer import solve_layer
from edgeq.solving.site import Layer, prepare_site
from edgeq.stopwatch import Stopwatch
from edgeq.types import Grid, LayerStatistics


def solve(W, H, D, recipe, backend):
    statistics = LayerStatistics(backend.asarray(H), None if D is None else backend.asarray(D), 100)
    site = prepare_site(statistics, recipe, backend)
    layer = Layer("layer", backend.asarray(W), recipe.grid_of("layer"), site, recipe)
    return solve_layer(layer, Stopwatch())


def spectrum(rng, eigenvalues):
    Q = np.linalg.qr(rng.standard_normal((len(eigenvalues), len(eigenvalues))))[0]
    A = (Q * eigenvalues) @ Q.T
    return (A + A.T) / 2


def test_lambda_is_a_fraction_of_the_mean_diagonal(backend, tolerance):
    H = np.array([[1.0, 0.5], [0.5, 3.0]])
    result = backend.to_numpy(damped(backend.asarray(H), 0.25, backend))
    np.testing.assert_allclose(result, [[1.5, 0.5], [0.5, 3.5]], atol=tolerance)


@pytest.mark.parametrize("size", [1, 2, 30, 129])
def test_the_upper_factor_squares_to_the_inverse(backend, rng, tolerance, size):
    A = spectrum(rng, rng.uniform(0.5, 5, size))
    U = backend.to_numpy(inverse_upper_factor(backend.asarray(A), backend))
    np.testing.assert_allclose(U.T @ U, np.linalg.inv(A), atol=tolerance)
    np.testing.assert_array_equal(U, np.triu(U))
    assert (np.diag(U) > 0).all()


def test_the_damping_that_worked_and_the_retries_are_reported(backend, rng):
    A = spectrum(rng, np.array([-0.02, 1.0, 1.0, 2.02]))  # mean diagonal 1: definite from 0.02 on
    result = factorise(backend.asarray(A), 1e-4, backend, lower_factor)
    assert result.retries == 3
    assert result.damping == pytest.approx(0.1)
    L = backend.to_numpy(result.factor)
    np.testing.assert_allclose(L @ L.T, A + 0.1 * np.eye(4), atol=1e-6)


def test_a_definite_matrix_needs_no_retry(backend, rng):
    result = factorise(backend.asarray(spectrum(rng, np.ones(3))), 0.01, backend, lower_factor)
    assert (result.retries, result.damping) == (0, 0.01)


def test_a_matrix_that_stays_indefinite_is_refused(backend, rng):
    with pytest.raises(NotPositiveDefinite, match="raise the damping"):
        factorise(
            backend.asarray(spectrum(rng, np.array([-3.0, 1.0, 2.5]))), 1e-5, backend, lower_factor
        )


def test_retries_appear_in_the_report_of_the_layer(backend, rng):
    W = rng.standard_normal((4, 4))
    H = spectrum(rng, np.array([-0.02, 1.0, 1.0, 2.02]))
    recipe = plain_recipe(bits=4, group_size=8, damping=1e-3)
    _, report = solve(W, H, None, recipe, backend)
    assert (report.damping_retries, report.damping) == (2, pytest.approx(0.1))
    assert solve(W, H + 0.1 * np.eye(4), None, recipe, backend)[1].damping_retries == 0


@pytest.mark.parametrize("everywhere", [False, True])
def test_not_a_number_in_the_statistics_is_refused(backend, rng, everywhere):
    W, X, _ = plain.random_layer(rng)
    H = plain.moments(X, X)[0]
    H[3] = H[:, 3] = np.nan
    if everywhere:
        H[:] = np.nan
    with pytest.raises(NotPositiveDefinite):
        solve(W, H, None, plain_recipe(group_size=8), backend)


@pytest.mark.parametrize("residue", [0.0, 1e-6])
@pytest.mark.parametrize("zeros", ["symmetric", "integer", "offset"])
def test_weights_of_unseen_inputs_are_plainly_rounded_and_trouble_no_others(
    backend, rng, zeros, residue
):
    W, X, X_hat = plain.random_layer(rng, in_features=30, drift=0.2)
    dead, alive = np.array([4, 17]), np.setdiff1d(np.arange(30), [4, 17])
    X_hat[:, dead] = residue * rng.standard_normal((len(X), 2))
    H, D = plain.moments(X, X_hat)
    recipe = plain_recipe(
        bits=3, group_size=10, zeros=zeros, scales="none", propagation_damping=1.0
    )
    layer, report = solve(W, H, D, recipe, backend)
    assert report.dead_columns == 2
    Q = layer.dequantized()
    scales = plain.per_column(layer.scales.astype(np.float64), 10, 30)
    offsets = plain.per_column(layer.offsets.astype(np.float64), 10, 30)
    rounded = scales * plain.nearest(W, scales, offsets, 7) + offsets
    np.testing.assert_allclose(Q[:, dead], rounded[:, dead], rtol=1e-6)
    assert (Q[:, dead] != 0).any()

    # The others: corrected and solved as if the unseen columns did not exist.
    H_alive, D_alive = H[np.ix_(alive, alive)], D[:, alive]
    mean = np.trace(H_alive) / 30  # a dead column enters the mean with next to nothing ...
    mean = (np.trace(H_alive) + 2 * mean) / 30  # ... and once settled counts as an average one
    H_solver = H_alive + 0.01 * mean * np.eye(28)
    V = W[:, alive] + 0.5 * np.linalg.solve(H_alive + mean * np.eye(28), (W @ D_alive).T).T
    expected, _ = plain.optimal_brain_quantizer(V, H_solver, scales[:, alive], offsets[:, alive], 7)
    np.testing.assert_array_equal(layer.codes[:, alive], expected)


def test_settled_columns_are_decoupled_and_average(backend, rng, tolerance):
    _, X, _ = plain.random_layer(rng, in_features=6)
    H = plain.moments(X, X)[0]
    H[2] = H[:, 2] = 0
    D = rng.standard_normal((6, 6))
    settled, count = settle_dead_columns(
        LayerStatistics(backend.asarray(H), backend.asarray(D), 9), backend
    )
    assert (count, settled.n_tokens) == (1, 9)
    expected = H.copy()
    expected[2, 2] = np.trace(H) / 6
    np.testing.assert_allclose(backend.to_numpy(settled.H), expected, atol=tolerance)
    D[:, 2] = 0  # what the other inputs drifted still counts, also along the dead one's row
    np.testing.assert_allclose(backend.to_numpy(settled.D), D, atol=tolerance)


def test_statistics_without_dead_columns_pass_unchanged(backend, rng):
    statistics = LayerStatistics(backend.asarray(np.eye(3)), None, 5)
    settled, count = settle_dead_columns(statistics, backend)
    assert count == 0
    assert settled is statistics


def test_a_layer_whose_inputs_were_all_zero_is_rounded(backend, rng):
    W = rng.standard_normal((4, 16)).astype(np.float32)
    layer, report = solve(
        W, np.zeros((16, 16)), None, plain_recipe(group_size=8, scales="none"), backend
    )
    scales, offsets = plain.min_max(W.astype(np.float64), 8, 4, "symmetric")
    np.testing.assert_array_equal(
        layer.codes, plain.nearest(W.astype(np.float64), scales, offsets, 15)
    )
    assert report.dead_columns == 16
    assert layer.grid == Grid(4, 8)
