from dataclasses import replace
from typing import Any

import numpy as np
import plain
import pytest
import trained
from recipes import plain_recipe

from edgeq.registry import load_backend
from edgeq.solving.layer import solve_layer, solve_without_statistics
from edgeq.solving.row_chunks import solve_stacked
from edgeq.solving.site import Layer, prepare_site
from edgeq.solving.statistics import accumulate
from edgeq.stopwatch import Stopwatch
from edgeq.types import LayerStatistics


class FakeSite:
    """A site that hands out activations cut into uneven batches."""

    name = "layer"
    lends = ()

    def __init__(self, X, X_hat, cuts=(), shape=None):
        self.pairs: list[Any] = (
            list(zip(np.split(X, cuts), np.split(X_hat, cuts), strict=True))
            if X is not None
            else []
        )
        if X is None:
            self.pairs = [(None, part) for part in np.split(X_hat, cuts)]
        if shape is not None:
            self.pairs = [tuple(part.reshape(shape) for part in pair) for pair in self.pairs]

    def batches(self):
        yield from self.pairs

    def tokens(self, batch):
        return None


def solve(W, statistics, recipe, backend, *, name="layer"):
    site = prepare_site(statistics, recipe, backend)
    layer = Layer(name, backend.asarray(W), recipe.grid_of(name), site, recipe)
    return solve_layer(layer, Stopwatch())


def statistics_of(H, D, backend, n_tokens=300):
    return LayerStatistics(backend.asarray(H), None if D is None else backend.asarray(D), n_tokens)


def test_statistics_of_uneven_batches_are_those_of_one_piece(backend, rng, tolerance):
    _, X, X_hat = plain.random_layer(rng, drift=0.2)
    found = accumulate(FakeSite(X, X_hat, cuts=(1, 130, 131)), backend, drift=True)
    H, D = plain.moments(X, X_hat)
    np.testing.assert_allclose(backend.to_numpy(found.H), H, atol=tolerance)
    np.testing.assert_allclose(backend.to_numpy(found.D), D, atol=tolerance)
    assert found.n_tokens == 300


def test_windows_of_a_batch_are_so_many_more_tokens(backend, rng, tolerance):
    _, X, X_hat = plain.random_layer(rng, drift=0.2)
    found = accumulate(FakeSite(X, X_hat, shape=(3, 100, 24)), backend, drift=True)
    np.testing.assert_allclose(
        backend.to_numpy(found.H), plain.moments(X, X_hat)[0], atol=tolerance
    )
    assert found.n_tokens == 300


def test_there_is_no_drift_where_streams_are_equal_or_nobody_asks(backend, rng):
    _, X, X_hat = plain.random_layer(rng, drift=0.2)
    assert accumulate(FakeSite(X, X, cuts=(7,)), backend, drift=True).D is None
    assert accumulate(FakeSite(X, X_hat), backend, drift=False).D is None
    assert accumulate(FakeSite(None, X_hat), backend, drift=True).D is None


def test_drift_of_one_batch_counts_over_all_tokens(backend, rng, tolerance):
    _, X, X_hat = plain.random_layer(rng, drift=0.2)
    X_hat[:200] = X[:200]
    found = accumulate(FakeSite(X, X_hat, cuts=(200,)), backend, drift=True)
    np.testing.assert_allclose(
        backend.to_numpy(found.D), plain.moments(X, X_hat)[1], atol=tolerance
    )


def test_drift_from_the_difference_is_more_exact_than_a_difference_of_moments(rng):
    cpu = load_backend("cpu")
    X = rng.standard_normal((4000, 64)).astype(np.float32)
    X_hat = (X + 1e-3 * rng.standard_normal(X.shape)).astype(np.float32)
    exact = plain.moments(X.astype(np.float64), X_hat.astype(np.float64))[1]
    D = cpu.to_numpy(accumulate(FakeSite(X, X_hat, cuts=(1000, 2500)), cpu, drift=True).D)
    subtracted = (X.T @ X_hat - X_hat.T @ X_hat) / np.float32(len(X))
    errors = [np.linalg.norm(found - exact) / np.linalg.norm(exact) for found in (D, subtracted)]
    assert errors[0] < 1e-5
    assert errors[1] > 10 * errors[0]


@pytest.mark.parametrize(
    "recipe",
    [plain_recipe(bits=3, group_size=8), plain_recipe(bits=2, group_size="row", zeros="offset")],
)
def test_a_layer_solved_from_batches_is_the_layer_solved_from_all_activations(backend, rng, recipe):
    W, X, X_hat = plain.random_layer(rng, drift=0.2, in_features=45)
    from_batches = accumulate(FakeSite(X, X_hat, cuts=(17, 200)), backend, drift=True)
    found, report = solve(W, from_batches, recipe, backend)
    expected, _ = solve(W, statistics_of(*plain.moments(X, X_hat), backend), recipe, backend)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_allclose(
        found.dequantized(), expected.dequantized(), rtol=2.0**-9
    )  # scales: a float16 step
    assert report.propagation_strength > 0


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("zeros", ["symmetric", "integer", "offset"])
def test_codes_are_those_of_the_plain_road_through_correction_and_compensation(
    backend, rng, zeros, strength
):
    W, X, X_hat = plain.random_layer(rng, drift=0.2, in_features=45)
    H, D = plain.moments(X, X_hat)
    recipe = plain_recipe(
        bits=3,
        group_size=16,
        zeros=zeros,
        scales="none",
        propagation_strength=strength,
        propagation_damping=1.0,
    )
    layer, report = solve(W, statistics_of(H, D, backend), recipe, backend)
    V = W + strength * np.linalg.solve(plain.damped(H, 1.0), (W @ D).T).T
    scales, offsets = plain.min_max(V, 16, 3, zeros)
    codes, _ = plain.optimal_brain_quantizer(V, plain.damped(H, 0.01), scales, offsets, 7)
    np.testing.assert_array_equal(layer.codes, codes)
    np.testing.assert_allclose(layer.dequantized(), scales * codes + offsets, rtol=2.0**-9)
    assert report.losses.keys() == {"round to nearest", "solved"}


def test_the_report_states_losses_as_shares_of_the_output(backend, rng, tolerance):
    W, X, X_hat = plain.random_layer(rng, drift=0.2, in_features=40)
    H, D = plain.moments(X, X_hat)
    layer, report = solve(
        W,
        statistics_of(H, D, backend),
        plain_recipe(bits=3, group_size=16, propagation_damping=1.0),
        backend,
        name="some layer",
    )
    V = W + 0.5 * np.linalg.solve(plain.damped(H, 1.0), (W @ D).T).T
    energy = plain.weighted_loss(W, 0 * W, H).sum()
    scales, offsets = plain.min_max(V, 16, 3, "symmetric")
    nearest = scales * plain.nearest(V, scales, offsets, 7) + offsets
    expected = {"round to nearest": nearest, "refitted": layer.dequantized().astype(np.float64)}
    for stage, Q in expected.items():
        loss = plain.weighted_loss(Q, V, H).sum() / energy
        np.testing.assert_allclose(
            report.losses[stage], loss, rtol=max(tolerance, 1e-6)
        )  # dequantized to float32
    assert report.losses["refitted"] <= report.losses["solved"] < report.losses["round to nearest"]
    assert (report.name, report.shape, report.bits, report.group_size) == (
        "some layer",
        (6, 40),
        3,
        16,
    )
    assert (report.damping, report.damping_retries, report.dead_columns) == (0.01, 0, 0)


def test_a_refit_with_drift_of_its_own_comes_closest_to_the_original_output(backend, rng):
    W, X, X_hat = plain.random_layer(rng, drift=0.4, in_features=40, out_features=24)
    statistics = statistics_of(*plain.moments(X, X_hat), backend)
    losses = []
    for strength in (None, 0.0, 1.0):
        layer, _ = solve(
            W, statistics, plain_recipe(bits=3, group_size=8, refit_strength=strength), backend
        )
        losses.append(
            plain.activation_loss(layer.dequantized().astype(np.float64), W, X, X_hat).sum()
        )
    assert losses[2] < min(losses[:2])


def test_a_matrix_without_statistics_is_rounded_with_all_columns_alike(backend, rng, monkeypatch):
    monkeypatch.setattr("edgeq.solving.layer.ROWS_AT_ONCE", 3)
    W = rng.standard_normal((7, 40)).astype(np.float32)
    recipe = plain_recipe(group_size=16, scales="none")
    layer = solve_without_statistics(W, recipe.grid_of("embedding"), recipe, backend)
    scales, offsets = plain.min_max(W.astype(np.float64), 16, 4, "symmetric")
    np.testing.assert_array_equal(
        layer.codes, plain.nearest(W.astype(np.float64), scales, offsets, 15)
    )
    assert layer.scales.shape == (7, 3)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_torch_chooses_the_codes_of_the_reference_on_trained_weights(bits):
    """In full precision, and in float32, where a tie may fall the other way."""
    layers, recipe = trained.glass_layers(), plain_recipe(bits=bits)
    assert len(layers) == 28
    assert {W.shape[1] for W, _, _ in layers.values()} == {128, 341}
    backends = (
        load_backend("reference"),
        load_backend("cpu", exact=True),
        load_backend("cpu"),
    )
    shares, losses = {}, []
    for name, (W, H, D) in layers.items():
        solved = [
            solve(W, statistics_of(H, D, backend, 2048), recipe, backend, name=name)
            for backend in backends
        ]
        codes = [layer.codes for layer, _ in solved]
        shares[name] = min((codes[0] == other).mean() for other in codes[1:])
        losses.append([report.losses["refitted"] for _, report in solved])
    worst = min(shares, key=shares.get)
    expected, exact, found = np.array(losses).T
    assert shares[worst] >= 0.999, f"{worst}: {shares[worst]:.5%} of the codes are equal"
    np.testing.assert_allclose(exact, expected, rtol=1e-4)
    assert found.sum() == pytest.approx(expected.sum(), rel=1e-4)
    print(
        f"{bits} bits: {shares[worst]:.5%} in {worst}, loss {abs(found / expected - 1).max():.1e}"
    )


@pytest.mark.parametrize("zeros", ["symmetric", "offset"])
def test_layers_of_one_input_come_out_of_a_stack_as_they_do_alone(backend, rng, zeros):
    W, X, X_hat = plain.random_layer(rng, drift=0.2)
    H, D = plain.moments(X, X_hat)
    recipe = plain_recipe(bits=3, group_size=16, zeros=zeros, sweeps=2)
    site = prepare_site(statistics_of(H, D, backend), recipe, backend)
    rows = {"first": 3, "second": len(W) - 3}
    weights = {"first": W[:3], "second": W[3:]}
    stack = Layer("first", backend.asarray(W), recipe.grid_of("first"), site, recipe, rows)
    solved, reports = solve_stacked(stack, Stopwatch())
    for name, layer, report in zip(rows, solved, reports, strict=True):
        alone = replace(stack, name=name, W=backend.asarray(weights[name]), rows={})
        expected, of_it = solve_layer(alone, Stopwatch())
        np.testing.assert_array_equal(layer.codes, expected.codes)
        np.testing.assert_allclose(layer.scales, expected.scales, rtol=1e-3)
        np.testing.assert_allclose(layer.offsets, expected.offsets, rtol=1e-3, atol=1e-6)
        assert replace(report, losses={}) == replace(of_it, losses={})
        assert report.losses == pytest.approx(of_it.losses, rel=1e-4)


STAGES = {
    "sweeps": (plain_recipe(bits=3, group_size=16, sweeps=2), ["solved", "swept", "refitted"]),
    "relaxed": (
        plain_recipe(bits=3, group_size=16, sweeps=10, relaxed_sweeps=True),
        ["solved", "swept", "refitted"],
    ),
    "exactly": (
        plain_recipe(bits=3, group_size=16, sweeps=2, refit_exactly=True),
        ["solved", "swept", "refitted"],
    ),
    "solver": (
        plain_recipe(bits=3, group_size=16, solver="quantease", scales="first"),
        ["solved", "swept"],
    ),
    "annealing": (
        plain_recipe(bits=3, group_size=16, anneal_rounds=1, anneal_steps=60),
        ["solved", "annealed", "refitted"],
    ),
    "turns": (
        plain_recipe(bits=3, group_size=16, alternations=2),
        ["solved", "refitted", "alternated"],
    ),
    "everything": (
        plain_recipe(
            bits=2,
            group_size=16,
            zeros="offset",
            sweeps=2,
            anneal_rounds=1,
            anneal_steps=60,
            alternations=1,
            activation_order=True,
            scale_weighting="mean",
            scale_candidates=9,
            scale_refits=3,
        ),
        ["solved", "swept", "annealed", "refitted", "alternated"],
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_each_refinement_has_its_loss_in_the_report_and_lowers_it(backend, rng, name):
    recipe, stages = STAGES[name]
    W, X, X_hat = plain.random_layer(rng, drift=0.2, in_features=45, out_features=32)
    H, D = plain.moments(X, X_hat)
    layer, report = solve(W, statistics_of(plain.damped(H, 1e-3), D, backend), recipe, backend)
    assert list(report.losses) == ["round to nearest", *stages]
    losses = [report.losses[stage] for stage in stages]
    assert (
        np.diff(losses) <= 2e-3 * losses[0]
    ).all()  # measured without the damping that they are solved with
    assert losses[-1] < losses[0]
    assert layer.codes.max() <= recipe.grid_of("layer").max_code


def test_without_refinements_the_solver_named_quantease_sweeps_and_gptq_does_not(backend, rng):
    W, X, X_hat = plain.random_layer(rng, drift=0.2, in_features=45, out_features=16)
    statistics = statistics_of(*plain.moments(X, X_hat), backend)
    gptq, _ = solve(W, statistics, plain_recipe(bits=3, group_size=16, sweeps=5), backend)
    named, _ = solve(
        W, statistics, plain_recipe(bits=3, group_size=16, solver="quantease"), backend
    )
    np.testing.assert_array_equal(gptq.codes, named.codes)


def test_scales_may_be_weighed_by_what_is_left_of_an_error_once_others_made_up_for_it(backend, rng):
    X = plain.random_layer(rng, in_features=45)[1]
    H = plain.moments(X, X)[0]
    conditional = 1 / np.diag(np.linalg.inv(plain.damped(H, 0.01)))
    expected = {
        "diagonal": np.diag(H),
        "conditional": conditional,
        "mean": np.sqrt(np.diag(H) * conditional),
    }
    for weighting, values in expected.items():
        for in_order in (False, True):
            recipe = plain_recipe(scale_weighting=weighting, activation_order=in_order)
            found = prepare_site(statistics_of(H, None, backend), recipe, backend).importance
            np.testing.assert_allclose(backend.to_numpy(found), values, rtol=1e-4)


@pytest.mark.usefixtures("one_thread")
def test_sweeps_and_annealing_pay_on_tokens_that_they_were_not_fitted_to():
    backend, totals = load_backend("cpu"), []
    for refinements in ({}, {"sweeps": 5}, {"sweeps": 5, "anneal_rounds": 1, "anneal_steps": 100}):
        recipe, shares = plain_recipe(bits=3, scales="first", **refinements), []
        for W, H, held_out in trained.glass_split()[::3]:
            layer, _ = solve(W, statistics_of(H, None, backend, 2048), recipe, backend)
            lost = plain.weighted_loss(layer.dequantized().astype(np.float64), W, held_out).sum()
            shares.append(lost / plain.weighted_loss(W, 0 * W, held_out).sum())
        totals.append(float(np.mean(np.log(shares))))
    gptq, swept, annealed = np.exp(totals)
    print(f"held-out loss, geometric mean: {gptq:.5f}, swept {swept:.5f}, annealed {annealed:.5f}")
    assert annealed < swept < gptq
