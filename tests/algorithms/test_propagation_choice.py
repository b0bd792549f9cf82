import numpy as np
import plain
import pytest

from edgeq.algorithms.propagation_choice import (
    DAMPINGS,
    STRENGTHS,
    choose_propagation,
    make_correctors,
)
from edgeq.types import LayerStatistics


def split(rng, *, fit_tokens, drift=0.3):
    """W, and X and X_hat of tokens to fit to and of others, with drift that has a repeatable and a
    random part.
    """
    W, X, X_hat = plain.random_layer(rng, tokens=fit_tokens + 600, drift=drift)
    return W, (X[:fit_tokens], X_hat[:fit_tokens]), (X[fit_tokens:], X_hat[fit_tokens:])


def statistics(pair, backend):
    H, D = plain.moments(*pair)
    return LayerStatistics(backend.asarray(H), backend.asarray(D), len(pair[0]))


def chosen(W, fit, held_out, backend, **options):
    fitted = statistics(fit, backend)
    correctors = make_correctors(fitted, backend)
    return choose_propagation(
        backend.asarray(W), fitted, statistics(held_out, backend), correctors, backend, **options
    )


def corrected(W, fit, strength, damping):
    H, D = plain.moments(*fit)
    return W + strength * np.linalg.solve(plain.damped(H, damping), (W @ D).T).T


def test_errors_are_those_of_the_activations_less_what_all_settings_share(backend, rng, tolerance):
    W, fit, held_out = split(rng, fit_tokens=200)
    choice = chosen(W, fit, held_out, backend)
    assert len(choice.curve) == len(STRENGTHS) * len(DAMPINGS)
    energy = plain.weighted_loss(W, 0 * W, plain.moments(*held_out)[0]).sum()
    uncorrected = plain.activation_loss(W, W, *held_out).sum()
    for trial in choice.curve:
        V = corrected(W, fit, trial.strength, trial.damping)
        expected = (plain.activation_loss(V, W, *held_out).sum() - uncorrected) / energy
        assert trial.error == pytest.approx(expected, abs=tolerance)


def test_the_best_trial_has_the_smallest_error_on_held_out_activations(backend, rng):
    W, fit, held_out = split(rng, fit_tokens=60)
    choice = chosen(W, fit, held_out, backend)
    losses = {
        (trial.strength, trial.damping): plain.activation_loss(
            corrected(W, fit, trial.strength, trial.damping), W, *held_out
        ).sum()
        for trial in choice.curve
    }
    assert losses[choice.best.strength, choice.best.damping] <= min(losses.values()) * (1 + 1e-6)
    assert choice.best.error <= 0


def test_few_tokens_call_for_restraint_and_many_for_full_strength(backend, rng):
    W, fit, held_out = split(rng, fit_tokens=30)
    few = chosen(W, fit, held_out, backend).best
    W, fit, held_out = split(rng, fit_tokens=5000)
    many = chosen(W, fit, held_out, backend).best
    assert (many.strength, many.damping) == (1.0, 0.01)
    assert (few.strength, -few.damping) < (many.strength, -many.damping)


def test_without_drift_nothing_is_corrected(backend, rng):
    W, fit, _ = split(rng, fit_tokens=100)
    H = backend.asarray(plain.moments(*fit)[0])
    same = LayerStatistics(H, None, 100)
    choice = choose_propagation(
        backend.asarray(W), same, same, make_correctors(same, backend), backend
    )
    assert (choice.best.strength, choice.best.error) == (0.0, 0.0)
    assert {trial.error for trial in choice.curve} == {0.0}


def test_rounding_noise_does_not_move_the_choice(backend, rng):
    """Errors of rounding that is blind to the strength add the same to every trial, up to their own
    spread.
    """
    W, fit, held_out = split(rng, fit_tokens=120)
    choice = chosen(W, fit, held_out, backend)
    noise = 0.05 * W.std() * rng.standard_normal(W.shape)
    losses = [
        plain.activation_loss(corrected(W, fit, t.strength, t.damping) + noise, W, *held_out).sum()
        for t in choice.curve
    ]
    best = choice.curve[int(np.argmin(losses))]
    energy = plain.weighted_loss(W, 0 * W, plain.moments(*held_out)[0]).sum()
    assert (
        best.error - choice.best.error < 0.1 * plain.activation_loss(W, W, *held_out).sum() / energy
    )


def test_a_damping_that_had_to_be_raised_is_reported(backend):
    H = np.diag([1.0, 1.0, -0.02, 2.02])
    raised = make_correctors(
        LayerStatistics(backend.asarray(H), None, 9), backend, dampings=(1e-3,)
    )
    assert raised[0].damping == pytest.approx(0.1)
