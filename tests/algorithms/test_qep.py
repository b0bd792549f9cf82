import numpy as np
import plain
import pytest
from recipes import plain_recipe

from edgeq.algorithms.damping import inverse_upper_factor
from edgeq.algorithms.gptq import solve_columns
from edgeq.algorithms.problem import Problem
from edgeq.algorithms.qep import correct_weight
from edgeq.grids.super_blocks import fit_min_max
from edgeq.solving.layer import solve_layer
from edgeq.solving.site import Layer, prepare_site
from edgeq.stopwatch import Stopwatch
from edgeq.types import Grid, LayerStatistics


def corrected(W, X, X_hat, backend, *, strength, damping):
    H, D = plain.moments(X, X_hat)
    L = backend.cholesky(backend.asarray(plain.damped(H, damping)))
    V = correct_weight(
        backend.asarray(W), backend.asarray(D), L, backend, propagation_strength=strength
    )
    return backend.to_numpy(V)


def test_full_strength_restores_the_original_output(backend, rng, tolerance):
    X, W = rng.standard_normal((256, 16)), rng.standard_normal((8, 16))
    X_hat = X @ (
        np.eye(16) + 0.1 * rng.standard_normal((16, 16))
    )  # invertible drift: nothing is lost
    V = corrected(W, X, X_hat, backend, strength=1.0, damping=0.0)
    np.testing.assert_allclose(X_hat @ V.T, X @ W.T, atol=tolerance)


def test_full_strength_undamped_is_least_squares_on_the_activations(backend, rng, tolerance):
    W, X, X_hat = plain.random_layer(rng, drift=0.3)
    expected = np.linalg.lstsq(X_hat, X @ W.T, rcond=None)[0].T
    assert abs(expected - W).max() > 0.01
    V = corrected(W, X, X_hat, backend, strength=1.0, damping=0.0)
    np.testing.assert_allclose(V, expected, atol=tolerance)


@pytest.mark.parametrize(("strength", "damping"), [(0.5, 1.0), (0.5, 0.01), (0.8, 0.1)])
def test_strength_and_damping_are_two_ridges(backend, rng, tolerance, strength, damping):
    """The result minimises ||XW - X_hat V||^2 + mu ||X_hat (V - W)||^2 + rho ||V - W||^2 with alpha
    = 1 / (1 + mu).
    """
    W, X, X_hat = plain.random_layer(rng, drift=0.3)
    mu = 1 / strength - 1
    rho = (1 + mu) * damping * (X_hat**2).sum() / W.shape[1]
    features = np.concatenate([X_hat, np.sqrt(mu) * X_hat, np.sqrt(rho) * np.eye(W.shape[1])])
    targets = np.concatenate([X @ W.T, np.sqrt(mu) * X_hat @ W.T, np.sqrt(rho) * W.T])
    expected = np.linalg.lstsq(features, targets, rcond=None)[0].T
    V = corrected(W, X, X_hat, backend, strength=strength, damping=damping)
    np.testing.assert_allclose(V, expected, atol=tolerance)


def test_strength_zero_leaves_the_weight_alone(backend, rng):
    W, X, X_hat = plain.random_layer(rng, drift=0.3)
    np.testing.assert_array_equal(corrected(W, X, X_hat, backend, strength=0.0, damping=1.0), W)


@pytest.mark.parametrize("solver", ["rtn", "gptq"])
def test_without_drift_the_layer_is_solved_as_if_there_were_no_propagation(backend, rng, solver):
    W, X, _ = plain.random_layer(rng)
    H = backend.asarray(plain.moments(X, X)[0])
    results = []
    for strength, D in ((0.0, None), (0.5, None), (0.5, 0 * H), (0.0, H)):
        recipe = plain_recipe(bits=3, group_size=8, solver=solver, propagation_strength=strength)
        statistics = LayerStatistics(H, D, len(X))
        site = prepare_site(statistics, recipe, backend)
        asked = Layer("layer", backend.asarray(W), Grid(3, 8), site, recipe)
        layer, report = solve_layer(asked, Stopwatch())
        assert report.propagation_strength == (strength if D is not None else 0)
        results.append(layer.dequantized())
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("zeros", ["symmetric", "integer", "offset"])
def test_with_gptq_it_equals_solving_the_mismatched_problem_again_after_every_column(
    backend, rng, zeros
):
    W, X, X_hat = plain.random_layer(rng, in_features=40, tokens=400, drift=0.2)
    V = backend.asarray(corrected(W, X, X_hat, backend, strength=1.0, damping=0.0))
    grid = Grid(3, 16, zeros)
    H = backend.asarray(plain.moments(X, X_hat)[0])
    problem = Problem(V, H, grid, backend, U=inverse_upper_factor(H, backend))
    found = solve_columns(problem, fit_min_max(V, grid, backend))
    scales, offsets = plain.column_values(found, grid, 40, backend)
    expected = plain.resolved_after_every_column(W, X, X_hat, scales, offsets, grid.max_code)
    np.testing.assert_array_equal(backend.to_numpy(found.codes), expected)
