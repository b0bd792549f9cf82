"""Statistics of which a part is held out or has no full-precision stream, and the strength that is
chosen with them.
"""

import math

import numpy as np
import plain
import pytest
from recipes import plain_recipe
from test_layer import FakeSite

from edgeq.algorithms.problem import Problem
from edgeq.algorithms.propagation_choice import DAMPINGS, STRENGTHS
from edgeq.recipe.recipe import Override
from edgeq.registry import load_backend
from edgeq.solving.layer import solve_layer
from edgeq.solving.propagation import correct, prepare_propagation
from edgeq.solving.site import Layer, prepare_site
from edgeq.solving.statistics import accumulate, accumulate_split
from edgeq.stopwatch import Stopwatch


def corrected(W, fit, strength, damping):
    H, D = plain.moments(*fit)
    return W + strength * np.linalg.solve(plain.damped(H, damping), (W @ D).T).T


def problem_of(W, statistics, recipe, backend):
    return Problem(
        backend.asarray(W), statistics.H, recipe.grid_of("layer"), backend, D=statistics.D
    )


def test_a_share_of_the_tokens_is_held_out_and_both_parts_add_up(backend, rng, tolerance):
    _, X, X_hat = plain.random_layer(rng, drift=0.2)
    total, split = accumulate_split(FakeSite(X, X_hat, cuts=(100,)), backend)
    held = np.r_[75:100, 100 + (len(X) - 100) - math.ceil(0.25 * (len(X) - 100)) : len(X)]
    for found, tokens in (
        (total, np.arange(len(X))),
        (split.held_out, held),
        (split.fit, np.delete(np.arange(len(X)), held)),
    ):
        H, D = plain.moments(X[tokens], X_hat[tokens])
        assert found.n_tokens == len(tokens)
        np.testing.assert_allclose(backend.to_numpy(found.H), H, atol=tolerance)
        np.testing.assert_allclose(backend.to_numpy(found.D), D, atol=tolerance)


def test_the_held_out_tokens_do_not_depend_on_how_many_windows_run_together(rng):
    backend = load_backend("reference")
    X = rng.standard_normal((6, 16, 8))
    X_hat = X + 0.1 * rng.standard_normal(X.shape)

    def split(*cuts):
        site = FakeSite(X, X_hat)
        site.pairs = list(zip(np.split(X, cuts), np.split(X_hat, cuts), strict=True))
        return accumulate_split(site, backend)[1]

    expected = plain.moments(X[:, 12:].reshape(-1, 8), X_hat[:, 12:].reshape(-1, 8))
    for found in (split(), split(1, 3), split(2, 4, 5)):
        assert found.held_out.n_tokens == 6 * 4
        np.testing.assert_allclose(found.held_out.H, expected[0], atol=1e-12)
        np.testing.assert_allclose(found.held_out.D, expected[1], atol=1e-12)


def test_a_stated_strength_beside_automatic_ones_keeps_the_damping_of_the_recipe(
    backend, rng, tolerance
):
    W, X, X_hat = plain.random_layer(rng, drift=0.2)
    fixed = Override("fixed", {"propagation_strength": 0.3})
    recipe = plain_recipe(
        bits=3,
        group_size=16,
        propagation_strength="auto",
        propagation_damping=0.07,
        overrides=(fixed,),
    )
    statistics, split = accumulate_split(FakeSite(X, X_hat), backend)
    prepared = prepare_propagation(statistics, split, recipe, backend)
    problem = problem_of(W, statistics, recipe, backend)
    found = correct("fixed", problem, prepared, recipe)
    assert (found.strength, found.damping, found.held_out_gain) == (0.3, 0.07, None)
    np.testing.assert_allclose(
        backend.to_numpy(found.V), corrected(W, (X, X_hat), 0.3, 0.07), atol=tolerance
    )
    assert correct("other", problem, prepared, recipe).held_out_gain is not None


def test_drift_is_the_mean_over_the_tokens_that_both_streams_run_on(backend, rng, tolerance):
    _, X, X_hat = plain.random_layer(rng, drift=0.2)
    site = FakeSite(X, X_hat, cuts=(130,))
    site.pairs[1] = (None, site.pairs[1][1])
    found = accumulate(site, backend, drift=True)
    np.testing.assert_allclose(
        backend.to_numpy(found.D), plain.moments(X[:130], X_hat[:130])[1], atol=tolerance
    )
    np.testing.assert_allclose(
        backend.to_numpy(found.H), plain.moments(X, X_hat)[0], atol=tolerance
    )


def test_an_automatic_strength_is_the_best_of_the_held_out_tokens(backend, rng):
    W, X, X_hat = plain.random_layer(rng, drift=0.2)
    recipe = plain_recipe(bits=3, group_size=16, propagation_strength="auto")
    statistics, split = accumulate_split(FakeSite(X, X_hat), backend)
    site = prepare_site(statistics, recipe, backend, split=split)
    layer = Layer("layer", backend.asarray(W), recipe.grid_of("layer"), site, recipe)
    _, report = solve_layer(layer, Stopwatch())
    cut = len(X) - math.ceil(0.25 * len(X))
    fit, held_out = (X[:cut], X_hat[:cut]), (X[cut:], X_hat[cut:])
    losses = {
        (strength, damping): plain.activation_loss(
            corrected(W, fit, strength, damping), W, *held_out
        ).sum()
        for strength in STRENGTHS
        for damping in DAMPINGS
    }
    assert losses[report.propagation_strength, report.propagation_damping] == pytest.approx(
        min(losses.values()), rel=1e-6
    )
    assert report.held_out_gain > 0


def test_a_drift_that_follows_from_the_inputs_is_undone_by_any_of_their_tokens(rng):
    """X - X_hat = K X_hat: the correction is exact with the second moment of the same tokens, and
    not with another.
    """
    backend = load_backend("cpu")
    W, X_hat, _ = plain.random_layer(rng)
    X = X_hat + X_hat @ (0.1 * rng.standard_normal((X_hat.shape[1], X_hat.shape[1])))
    site = FakeSite(X, X_hat, cuts=(60,))
    site.pairs[1] = (None, site.pairs[1][1])
    recipe = plain_recipe(bits=3, group_size=16, propagation_strength=1.0, propagation_damping=1e-6)
    statistics = accumulate(site, backend, drift=True)
    prepared = prepare_propagation(statistics, None, recipe, backend)
    V = correct("layer", problem_of(W, statistics, recipe, backend), prepared, recipe).V
    unexplained = plain.activation_loss(backend.to_numpy(V), W, X, X_hat).sum()
    assert unexplained < 1e-6 * plain.activation_loss(W, W, X, X_hat).sum()
