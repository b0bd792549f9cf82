"""Layers with outlier columns: solved against plain oracles, alike on every backend, and worth
their bits.
"""

import numpy as np
import plain
import pytest
import trained
from recipes import plain_recipe

from edgeq.registry import load_backend
from edgeq.solving.layer import solve_layer
from edgeq.solving.outlier_columns import factor_around
from edgeq.solving.site import Layer, prepare_site
from edgeq.stopwatch import Stopwatch
from edgeq.types import LayerStatistics

REFINED = {"sweeps": 2, "alternations": 1, "anneal_rounds": 1, "anneal_steps": 40}


def solve(W, H, D, recipe, backend):
    """The layer, its report, and the weight that was solved for."""
    statistics = LayerStatistics(backend.asarray(H), None if D is None else backend.asarray(D), 300)
    site = prepare_site(statistics, recipe, backend)
    layer = Layer("layer", backend.asarray(W), recipe.grid_of("layer"), site, recipe)
    return solve_layer(layer, Stopwatch())


def loud_layer(rng, *, drift=None, loud=8.0):
    """A layer of 40 inputs, three of which are many times as loud as the others. Shapes: (16,
    40).
    """
    W, X, X_hat = plain.random_layer(rng, drift=drift or 0.0, in_features=40, out_features=16)
    gain = np.ones(40)
    gain[[3, 17, 18]] = loud
    H, D = plain.moments(X * gain, X_hat * gain)
    return W, plain.damped(H, 1e-3), D if drift else None


def output_loss(Q, W, H):
    return plain.weighted_loss(Q.astype(np.float64), W, H).sum()


@pytest.mark.parametrize("zeros", ["symmetric", "integer", "offset"])
def test_columns_that_cost_most_are_kept_and_fitted_as_least_squares_fits_them(backend, rng, zeros):
    W, H, _ = loud_layer(rng)
    recipe = plain_recipe(
        bits=3, group_size=16, zeros=zeros, outlier_columns=3 / 40, propagation_strength=0.0
    )
    layer, report = solve(W, H, None, recipe, backend)
    columns, values = layer.outliers.columns, layer.outliers.values
    expected = np.sort(np.argsort(-np.diag(H) * (W**2).sum(axis=0))[:3])
    assert columns.tolist() == expected.tolist() == [3, 17, 18]
    assert (columns.dtype, values.dtype, report.outlier_columns) == (np.int32, np.float32, 3)
    np.testing.assert_array_equal(values, values.astype(np.float16))
    Q = layer.dequantized().astype(np.float64)
    Q[:, columns] -= values
    damped = plain.damped(H, recipe.damping)
    right = ((W - Q) @ damped)[:, columns]
    np.testing.assert_allclose(
        values, np.linalg.solve(damped[np.ix_(columns, columns)], right.T).T, rtol=2e-3
    )
    if zeros != "offset":
        assert (Q[:, columns] == 0).all()


@pytest.mark.parametrize("in_order", [False, True])
def test_the_codes_are_those_of_gptq_on_the_layer_without_its_columns(backend, rng, in_order):
    W, H, _ = loud_layer(rng)
    recipe = plain_recipe(
        bits=3,
        group_size=16,
        outlier_columns=3 / 40,
        scales="none",
        propagation_strength=0.0,
        activation_order=in_order,
    )
    layer, _ = solve(W, H, None, recipe, backend)
    gone, kept = [3, 17, 18], np.setdiff1d(np.arange(40), [3, 17, 18])
    inner = W.copy()
    inner[:, gone] = 0
    scales, offsets = plain.min_max(inner, 16, 3, "symmetric")
    damped = plain.damped(H, 0.01)
    across = damped[np.ix_(kept, gone)]
    left = damped[np.ix_(kept, kept)] - across @ np.linalg.solve(
        damped[np.ix_(gone, gone)], across.T
    )
    order = np.argsort(-np.diag(H)[kept], kind="stable") if in_order else np.arange(37)
    codes, _ = plain.optimal_brain_quantizer(
        W[:, kept][:, order],
        left[np.ix_(order, order)],
        scales[:, kept][:, order],
        offsets[:, kept][:, order],
        7,
    )
    np.testing.assert_array_equal(layer.codes[:, kept][:, order], codes)
    assert (layer.codes[:, gone] == 4).all()


def test_the_factor_before_the_columns_is_that_of_what_they_leave(backend, rng, tolerance):
    _, H, _ = loud_layer(rng)
    columns = np.array([3, 17, 18])
    order, found = factor_around(backend.asarray(H), columns, np.arange(40)[::-1], 0.01, backend)
    assert order[-3:].tolist() == columns.tolist() and sorted(order) == list(range(40))
    inverse = np.linalg.inv(plain.damped(H, 0.01))[np.ix_(order[:-3], order[:-3])]
    U = backend.to_numpy(found.factor)[:-3, :-3]
    np.testing.assert_allclose(U.T @ U, inverse, atol=max(tolerance, 1e-5) * abs(inverse).max())


@pytest.mark.parametrize("refit_strength", [None, 1.0])
@pytest.mark.parametrize("zeros", ["symmetric", "offset"])
def test_losses_in_the_report_are_those_of_the_layer_with_its_columns(
    backend, rng, zeros, refit_strength
):
    W, H, D = loud_layer(rng, drift=0.2)
    recipe = plain_recipe(
        bits=2,
        group_size=16,
        zeros=zeros,
        outlier_columns=0.05,
        propagation_damping=1.0,
        activation_order=True,
        scale_weighting="mean",
        refit_strength=refit_strength,
        **REFINED,
    )
    layer, report = solve(W, H, D, recipe, backend)
    V = W + 0.5 * np.linalg.solve(plain.damped(H, 1.0), (W @ D).T).T
    energy = plain.weighted_loss(W, 0 * W, H).sum()
    losses = list(report.losses.values())
    assert list(report.losses) == [
        "round to nearest",
        "solved",
        "swept",
        "annealed",
        "refitted",
        "alternated",
    ]
    assert losses[-1] < losses[0]
    if refit_strength is None:  # otherwise scales and columns follow another target at the end
        np.testing.assert_allclose(
            losses[-1], output_loss(layer.dequantized(), V, H) / energy, rtol=1e-3
        )
        assert (np.diff(losses[1:]) <= 2e-3 * losses[1]).all()


def test_columns_follow_the_drift_that_scales_are_refitted_to(backend, rng):
    W, X, X_hat = plain.random_layer(rng, drift=0.4, in_features=40, out_features=24)
    H, D = plain.moments(X, X_hat)
    found = []
    for strength in (None, 1.0):
        recipe = plain_recipe(bits=3, group_size=8, outlier_columns=0.1, refit_strength=strength)
        layer, _ = solve(W, H, D, recipe, backend)
        found.append(
            plain.activation_loss(layer.dequantized().astype(np.float64), W, X, X_hat).sum()
        )
    assert found[1] < found[0]


def test_a_group_of_nothing_but_outliers_is_solved(backend, rng):
    W, H, _ = loud_layer(rng, loud=1.0)
    gain = np.ones(40)
    gain[8:16] = 20
    for zeros in ("symmetric", "integer", "offset"):
        recipe = plain_recipe(
            bits=2,
            group_size=8,
            zeros=zeros,
            outlier_columns=0.2,
            propagation_strength=0,
            scale_refits=3,
            sweeps=1,
        )
        layer, _ = solve(W, gain[:, None] * H * gain, None, recipe, backend)
        assert layer.outliers.columns.tolist() == list(range(8, 16))
        np.testing.assert_allclose(
            layer.dequantized()[:, 8:16], W[:, 8:16], atol=0.2 * abs(W).max()
        )


def test_layers_of_one_input_choose_columns_of_their_own(backend, rng):
    W, H, _ = loud_layer(rng, loud=1.0)
    other = W.copy()
    other[:, 5] *= 10
    recipe = plain_recipe(bits=3, group_size=16, outlier_columns=0.025, propagation_strength=0.0)
    chosen = [
        solve(weight, H, None, recipe, backend)[0].outliers.columns.tolist()
        for weight in (W, other)
    ]
    assert chosen[1] == [5] != chosen[0]


def test_no_share_of_columns_leaves_everything_as_it_is(backend, rng):
    W, H, D = loud_layer(rng, drift=0.2)
    layer, report = solve(W, H, D, plain_recipe(bits=3, group_size=16, sweeps=1), backend)
    assert layer.outliers is None and report.outlier_columns == 0


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("bits", "zeros"), [(3, "symmetric"), (2, "offset")])
def test_outlier_columns_pay_on_tokens_that_they_were_not_fitted_to(bits, zeros):
    backend, means = load_backend("cpu"), []
    for share in (0.0, 0.01, 0.05):
        recipe, losses = (
            plain_recipe(bits=bits, group_size=64, zeros=zeros, outlier_columns=share, sweeps=2),
            [],
        )
        for W, H, held_out in trained.glass_split()[::3]:
            layer, _ = solve(W, H, None, recipe, backend)
            losses.append(
                output_loss(layer.dequantized(), W, held_out) / output_loss(0 * W, W, held_out)
            )
        means.append(float(np.exp(np.mean(np.log(losses)))))
    print(
        "held-out loss, geometric mean: without "
        f"{means[0]:.5f}, 1% {means[1]:.5f}, 5% {means[2]:.5f}"
    )
    assert means[2] < means[1] < means[0]
