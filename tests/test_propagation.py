"""How a site's layers make up for inherited error when calibration tokens are few."""

import numpy as np
import plain
import pytest

from edgeq.algorithms.problem import Problem
from edgeq.recipe.recipe import make_recipe
from edgeq.recipe.settings import defaults
from edgeq.solving.propagation import correct, prepare_propagation
from edgeq.types import LayerStatistics

INPUTS = 40


def statistics(H, D, backend, *, tokens, paired_tokens=None):
    paired_H = None if paired_tokens is None else backend.asarray(H)
    return LayerStatistics(backend.asarray(H), backend.asarray(D), tokens, paired_H, paired_tokens)


def corrected(W, found, recipe, backend):
    problem = Problem(backend.asarray(W), found.H, recipe.grid_of("layer"), backend, D=found.D)
    return correct("layer", problem, prepare_propagation(found, None, recipe, backend), recipe)


@pytest.mark.parametrize(
    ("tokens", "paired_tokens", "few"),
    [(79, None, True), (80, None, False), (1000, 79, True), (1000, 80, False)],
)
def test_fewer_than_two_tokens_for_each_input_are_damped_and_reported(
    backend, rng, tolerance, tokens, paired_tokens, few
):
    W, X, X_hat = plain.random_layer(rng, tokens=500, drift=0.3, in_features=INPUTS)
    H, D = plain.moments(X, X_hat)
    recipe = make_recipe({})
    found = corrected(
        W, statistics(H, D, backend, tokens=tokens, paired_tokens=paired_tokens), recipe, backend
    )
    damping = 1.0 if few else defaults("balanced")["propagation_damping"]
    assert (found.damping, found.few_tokens, found.retries) == (damping, few, 0)
    expected = W + 0.5 * np.linalg.solve(plain.damped(H, damping), (W @ D).T).T
    np.testing.assert_allclose(
        backend.to_numpy(found.V), expected, atol=10 * tolerance * abs(expected).max()
    )


def test_more_damping_than_that_is_left_as_it_is(backend, rng):
    W, X, X_hat = plain.random_layer(rng, tokens=500, drift=0.3, in_features=INPUTS)
    few = statistics(*plain.moments(X, X_hat), backend, tokens=10)
    found = corrected(W, few, make_recipe({"propagation_damping": 5.0}), backend)
    assert (found.damping, found.few_tokens) == (5.0, False)


@pytest.mark.parametrize("per_input", [1, 1.5])
def test_few_tokens_do_not_make_a_layer_worse_on_others(backend, per_input):
    """Held-out error after the correction as a share of that before; the drift is mostly noise that
    does not repeat.
    """
    recipe, tokens, ruled, unruled = make_recipe({}), int(per_input * INPUTS), [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        W, X, _ = plain.random_layer(rng, tokens=tokens + 4000, in_features=INPUTS)
        bend = 0.3 * rng.standard_normal((INPUTS, INPUTS)) / np.sqrt(INPUTS)
        X_hat = X + 0.1 * (X @ bend + rng.standard_normal(X.shape))
        H, D = plain.moments(X[:tokens], X_hat[:tokens])
        before = plain.activation_loss(W, W, X[tokens:], X_hat[tokens:]).sum()
        for stated, shares in ((tokens, ruled), (10 * INPUTS, unruled)):
            V = corrected(W, statistics(H, D, backend, tokens=stated), recipe, backend).V
            after = plain.activation_loss(backend.to_numpy(V), W, X[tokens:], X_hat[tokens:]).sum()
            shares.append(after / before)
    assert max(ruled) <= 1
    assert np.mean(unruled) > 1
