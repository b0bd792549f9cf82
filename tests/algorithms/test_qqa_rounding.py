from dataclasses import replace

import numpy as np
import plain
import pytest
from layers import ZEROS, SolvedLayer, correlated_moment

from edgeq.algorithms import qqa_rounding
from edgeq.algorithms.qqa import Annealing
from edgeq.algorithms.qqa_rounding import (
    anneal_codes,
    anneal_window,
    annealing_cost,
    make_window,
    rows_at_once,
    window_around,
)
from edgeq.algorithms.quantease import Sweeps, descend_codes
from edgeq.registry import load_backend
from edgeq.types import Grid

SHORT = Annealing(steps=120, learning_rate=0.3, evaluate_every=60)


def annealed(layer, solution=None, settings=Annealing(), **options):  # noqa: B008, it is frozen
    solution = layer.solution if solution is None else solution
    return anneal_codes(layer.problem, solution, settings, **options)


def swept(layer):
    return descend_codes(layer.problem, layer.solution, Sweeps(5))


def window_of(layer, base):
    return make_window(layer.problem, base, layer.backend.activations(layer.problem.H))


def base_around(layer, solution):
    return layer.with_codes(window_around(layer.problem, solution))


@pytest.mark.parametrize("zeros", ZEROS)
def test_no_row_comes_out_worse_and_the_sum_comes_out_better(backend, rng, zeros):
    layer = SolvedLayer(rng, Grid(2, 16, zeros), backend, out_features=16)
    start = swept(layer)
    before, after = layer.losses(start), layer.losses(annealed(layer, start, settings=SHORT))
    assert (after <= before + layer.noise()).all()
    assert after.sum() < 0.98 * before.sum()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_one_round_gains_three_percent_on_a_solved_and_swept_layer(one_thread, bits):
    rng, backend = np.random.default_rng(bits), load_backend("cpu")
    H = correlated_moment(rng, 256, loud=0.01)
    layer = SolvedLayer(
        rng, Grid(bits, 64, "integer"), backend, in_features=256, out_features=48, H=H
    )
    start = swept(layer)
    before, after = layer.losses(start), layer.losses(annealed(layer, start))
    assert (after <= before * (1 + 1e-9)).all()
    assert after.sum() <= 0.97 * before.sum()


def test_it_comes_within_one_percent_of_the_exhaustive_optimum_in_most_seeds(backend):
    close = 0
    for seed in range(10):
        layer = SolvedLayer(
            np.random.default_rng(seed), Grid(2, None), backend, in_features=12, out_features=1
        )
        optimum = plain.closest_codes(layer.V[0], layer.H, layer.scales[0], layer.offsets[0], 3)
        found = layer.losses(annealed(layer, settings=Annealing(steps=200, evaluate_every=100)))[0]
        assert found >= optimum - layer.noise()[0]
        close += found <= 1.01 * optimum
    assert close >= 8


def test_a_cold_window_of_a_row_is_mostly_solved_to_its_optimum(backend):
    close, worst = 0, 0.0
    choices = np.array(np.meshgrid(*[(0, 1)] * 12)).reshape(12, -1).T
    for seed in range(10):
        layer = SolvedLayer(
            np.random.default_rng(seed), Grid(3, None), backend, in_features=12, out_features=1
        )
        floors = np.clip(np.floor((layer.V - layer.offsets) / layer.scales), 0, 6)
        base = layer.with_codes(backend.asarray(floors))
        x = backend.to_numpy(anneal_window(window_of(layer, base), Annealing(), 1, backend))
        codes = floors + choices
        exact = plain.weighted_loss(
            layer.scales[0] * codes + layer.offsets[0], layer.V[0], layer.H
        ).min()
        ratio = layer.losses(layer.with_codes(backend.asarray(floors + x)))[0] / exact
        close, worst = close + (ratio <= 1.01), max(worst, ratio)
    assert close >= 7
    assert worst <= 1.15


@pytest.mark.parametrize("code", [0, 3])
def test_at_the_ends_of_the_grid_codes_stay_in_range_and_in_their_window(backend, rng, code):
    layer = SolvedLayer(rng, Grid(2, 16, "integer"), backend)
    start = layer.with_codes(layer.solution.codes * 0 + code)
    base = layer.numpy_codes(base_around(layer, start))
    assert set(np.unique(base)) <= {0, 1, 2}
    assert (np.isin(code - base, (0, 1))).all()
    found = annealed(layer, start, settings=SHORT, rounds=2)
    assert set(np.unique(layer.numpy_codes(found))) <= {0, 1, 2, 3}
    assert (layer.losses(found) <= layer.losses(start) + layer.noise()).all()


def test_the_window_holds_the_neighbour_that_the_residual_points_to(backend, rng):
    layer = SolvedLayer(rng, Grid(3, None), backend)
    start = layer.numpy_codes()
    base = layer.numpy_codes(base_around(layer, layer.solution))
    other = np.where(base == start, base + 1, base)
    slope = ((layer.scales * start + layer.offsets - layer.V) @ layer.H) * layer.scales
    inside = (start > 0) & (start < 7)
    assert (np.sign(other - start) == -np.sign(slope))[inside].all()


def test_the_loss_and_gradient_of_a_window_are_those_of_the_layer(backend, rng):
    layer = SolvedLayer(rng, Grid(3, 16), backend)
    base = base_around(layer, layer.solution)
    window, x = window_of(layer, base), rng.random((2, 6, 40))
    array = backend.activations(backend.asarray(x))
    value = backend.to_numpy(window.value(array)).astype(np.float64)
    codes = layer.numpy_codes(base)
    Q = layer.scales * (codes + x) + layer.offsets
    energy = plain.weighted_loss(layer.V, 0 * layer.V, layer.H).max()
    for replica in range(2):
        moved = layer.with_codes(backend.asarray(codes + x[replica]))
        expected = layer.losses(moved) - layer.losses(base)
        np.testing.assert_allclose(value[replica], expected, atol=1e-5 * energy)
        units = layer.scales**2 * np.diag(layer.H)
        gradient = 2 * layer.scales * ((Q[replica] - layer.V) @ layer.H) / units
        found = backend.to_numpy(window.gradient(array))[replica]
        np.testing.assert_allclose(found, gradient, atol=1e-4 * abs(gradient).max())


def test_rows_in_chunks_are_bounded_in_memory_and_no_worse(backend, rng, monkeypatch):
    layer = SolvedLayer(rng, Grid(2, 16), backend, out_features=7)
    monkeypatch.setattr(qqa_rounding, "ELEMENTS_AT_ONCE", 3 * 40)
    assert rows_at_once(40, 1) == 3
    assert rows_at_once(40, 2) == 1
    found = annealed(layer, settings=SHORT)
    assert tuple(found.codes.shape) == (7, 40)
    assert (layer.losses(found) <= layer.losses(layer.solution) + layer.noise()).all()


def test_one_seed_gives_the_same_codes_and_another_backend_the_same_loss(backend, rng):
    layer = SolvedLayer(rng, Grid(3, 16), backend, out_features=32)
    first, second = (annealed(layer, settings=SHORT) for _ in range(2))
    np.testing.assert_array_equal(layer.numpy_codes(first), layer.numpy_codes(second))
    reference = SolvedLayer(
        np.random.default_rng(20261122), Grid(3, 16), load_backend("reference"), out_features=32
    )
    losses = [item.losses(annealed(item, settings=SHORT)).sum() for item in (layer, reference)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_the_cost_of_a_run_is_known_beforehand():
    settings = Annealing(steps=200, evaluate_every=25)
    once = annealing_cost(settings)
    assert once == 2 * 208  # multiplications and additions, for each weight and input column
    assert annealing_cost(settings, rounds=3, replicas=2) == 6 * once


def test_communicating_replicas_lower_the_loss_and_raise_no_row(backend, rng):
    layer = SolvedLayer(rng, Grid(2, 16), backend, out_features=16)
    start = swept(layer)
    settings = replace(SHORT, communication=0.1)
    before, after = (
        layer.losses(item) for item in (start, annealed(layer, start, settings, replicas=4))
    )
    assert (after <= before + layer.noise()).all()
    assert after.sum() < 0.99 * before.sum()
