import itertools
from dataclasses import replace

import numpy as np
import plain
import pytest

from edgeq.algorithms import scale_refit
from edgeq.algorithms.group_scale import search_scales
from edgeq.algorithms.problem import Problem
from edgeq.algorithms.rtn import round_to_nearest
from edgeq.algorithms.scale_descent import Refit
from edgeq.algorithms.scale_refit import refit_scales
from edgeq.algorithms.scale_system import scale_system
from edgeq.types import Grid

ZEROS = ("symmetric", "integer", "offset")
FLOAT32_STEP = 2.0**-22  # scales are stored in float32 even where a backend computes in float64


class Layer:
    """A layer on drifted activations, rounded on stage 1 scales, and what stage 2 gets of it."""

    def __init__(self, rng, grid, backend, **sizes):
        self.W, self.X, self.X_hat = plain.random_layer(
            rng, **{"in_features": 45, "drift": 0.2, **sizes}
        )
        H, D = plain.moments(self.X, self.X_hat)
        self.grid, self.backend = grid, backend
        self.problem = Problem(
            backend.asarray(self.W),
            backend.asarray(H),
            grid,
            backend,
            truth=backend.asarray(self.W @ (H + D)),
            importance=backend.diagonal(backend.asarray(H)),
        )
        self.solution = round_to_nearest(self.problem, search_scales(self.problem))

    def refit(self, **options):
        return refit_scales(self.problem, self.solution, Refit(**options))

    def loss(self, solution):
        """||x W.T - x_hat Q.T||^2 per row, from the activations."""
        scales, offsets = plain.column_values(solution, self.grid, self.W.shape[1], self.backend)
        Q = scales * self.backend.to_numpy(solution.codes) + offsets
        return plain.activation_loss(Q, self.W, self.X, self.X_hat)

    def least_squares(self):
        """The best scales (then offsets) of every row, solved on the activations group by group."""
        codes = self.backend.to_numpy(self.solution.codes).astype(np.float64)
        bounds = list(self.grid.group_bounds(codes.shape[1]))
        zeros = -self.backend.to_numpy(self.solution.offsets) / self.backend.to_numpy(
            self.solution.scales
        )
        best = []
        for row, code in enumerate(codes):
            if self.grid.zeros == "offset":
                features = [self.X_hat[:, a:b] @ code[a:b] for a, b in bounds]
                features += [self.X_hat[:, a:b].sum(axis=1) for a, b in bounds]
            else:
                features = [
                    self.X_hat[:, a:b] @ (code[a:b] - np.rint(zero))
                    for (a, b), zero in zip(bounds, zeros[row], strict=True)
                ]
            best.append(
                np.linalg.lstsq(np.stack(features, axis=1), self.X @ self.W[row], rcond=None)[0]
            )
        return np.array(best)

    def unknowns(self, solution):
        arrays = [self.backend.to_numpy(solution.scales)]
        if self.grid.zeros == "offset":
            arrays.append(self.backend.to_numpy(solution.offsets))
        return np.concatenate(arrays, axis=1)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("bits", [2, 4])
def test_refit_never_raises_the_true_loss_of_a_row(backend, rng, tolerance, bits, zeros, exact):
    layer = Layer(rng, Grid(bits, 8, zeros), backend, out_features=32)
    before, after = layer.loss(layer.solution), layer.loss(layer.refit(exact=exact))
    assert (after <= before * (1 + tolerance)).all()
    assert after.sum() < before.sum()


@pytest.mark.parametrize("zeros", ZEROS)
def test_more_sweeps_never_raise_the_loss(backend, rng, tolerance, zeros):
    layer = Layer(rng, Grid(3, 8, zeros), backend)
    losses = [layer.loss(layer.refit(sweeps=sweeps)) for sweeps in range(6)]
    np.testing.assert_array_equal(losses[0], layer.loss(layer.solution))
    for before, after in itertools.pairwise(losses):
        assert (after <= before * (1 + tolerance)).all()


@pytest.mark.parametrize("zeros", ZEROS)
def test_sweeps_converge_to_least_squares_on_the_activations(backend, rng, tolerance, zeros):
    layer = Layer(rng, Grid(3, 16, zeros, "float32"), backend)
    found, best = layer.unknowns(layer.refit(sweeps=400)), layer.least_squares()
    assert abs(layer.unknowns(layer.solution) - best).max() > 0.01
    np.testing.assert_allclose(
        found, best, rtol=0, atol=max(tolerance, FLOAT32_STEP) * abs(best).max()
    )


@pytest.mark.parametrize("zeros", ZEROS)
def test_the_exact_solve_is_least_squares_on_the_activations(backend, rng, tolerance, zeros):
    layer = Layer(rng, Grid(3, 16, zeros, "float32"), backend)
    found, best = layer.unknowns(layer.refit(exact=True)), layer.least_squares()
    np.testing.assert_allclose(
        found, best, rtol=0, atol=max(tolerance, FLOAT32_STEP) * abs(best).max()
    )


def test_the_system_holds_the_moments_of_the_features_on_the_activations(backend, rng, tolerance):
    layer = Layer(rng, Grid(3, 16, "offset"), backend)
    codes = layer.backend.to_numpy(layer.solution.codes).astype(np.float64)
    system = scale_system(layer.problem.towards_truth(), layer.solution.codes, with_offsets=True)
    for row in range(len(codes)):
        per_group = [
            layer.X_hat[:, a:b] * code[a:b]
            for code in (codes[row], np.ones(45))
            for a, b in [(0, 16), (16, 32), (32, 45)]
        ]
        F = np.stack([feature.sum(axis=1) for feature in per_group], axis=1)
        A, c = F.T @ F / len(F), F.T @ (layer.X @ layer.W[row]) / len(F)
        np.testing.assert_allclose(
            backend.to_numpy(system.A)[row], A, atol=tolerance * abs(A).max()
        )
        np.testing.assert_allclose(
            backend.to_numpy(system.c)[row], c, atol=tolerance * abs(c).max()
        )


def test_free_offsets_are_never_worse_than_scales_only(backend, rng, tolerance):
    layer = Layer(rng, Grid(3, 8, "integer", "float32"), backend, out_features=32)
    scales_only = layer.loss(layer.refit(exact=True))
    layer.grid = Grid(3, 8, "offset", "float32")
    layer.problem = replace(layer.problem, grid=layer.grid)
    both = layer.loss(layer.refit(exact=True))
    assert (both <= scales_only * (1 + tolerance)).all()
    assert both.sum() < scales_only.sum()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("zeros", ZEROS)
def test_a_group_whose_codes_all_stand_for_zero_keeps_its_scale(backend, rng, zeros, exact):
    layer = Layer(rng, Grid(3, 15, zeros), backend)
    codes = backend.copy(layer.solution.codes)
    codes[:, 15:30] = backend.round_clip(
        0 * codes[:, 15:30] + {"symmetric": 4, "integer": 2, "offset": 0}[zeros], 0, 7
    )
    offsets = backend.copy(layer.solution.offsets)
    if zeros == "integer":
        offsets[:, 1] = -2 * layer.solution.scales[:, 1]
    layer.solution = replace(layer.solution, codes=codes, offsets=offsets)
    before, after = (
        backend.to_numpy(item.scales) for item in (layer.solution, layer.refit(exact=exact))
    )
    np.testing.assert_array_equal(after[:, 1], before[:, 1])
    assert (after[:, 0] != before[:, 0]).any()


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("zeros", ZEROS)
def test_refitted_values_are_those_that_the_container_stores(backend, rng, zeros, scale_dtype):
    layer = Layer(rng, Grid(3, 8, zeros, scale_dtype), backend)
    for exact in (False, True):
        refitted = layer.refit(exact=exact)
        for stored in layer.unknowns(refitted).T:
            np.testing.assert_array_equal(
                stored, backend.to_numpy(backend.round_to(backend.asarray(stored), scale_dtype))
            )
        if zeros != "offset":
            zero_points = -backend.to_numpy(refitted.offsets) / backend.to_numpy(refitted.scales)
            before = -backend.to_numpy(layer.solution.offsets) / backend.to_numpy(
                layer.solution.scales
            )
            np.testing.assert_array_equal(np.rint(zero_points), np.rint(before))
            np.testing.assert_array_equal(zero_points, np.rint(zero_points))


def test_rows_solved_in_chunks_are_the_rows_solved_at_once(backend, rng, monkeypatch):
    layer = Layer(rng, Grid(3, 16, "offset"), backend, out_features=7)
    at_once = layer.unknowns(layer.refit())
    monkeypatch.setattr(scale_refit, "SYSTEM_ELEMENTS", 3 * 36)  # three rows of 6 x 6
    np.testing.assert_allclose(
        layer.unknowns(layer.refit()), at_once, rtol=2.0**-10
    )  # at most one float16 step


def test_one_scale_per_row_is_its_one_dimensional_optimum(backend, rng, tolerance):
    layer = Layer(rng, Grid(3, None, "symmetric", "float32"), backend)
    found, best = layer.unknowns(layer.refit(sweeps=1)), layer.least_squares()
    np.testing.assert_allclose(found, best, rtol=max(tolerance, FLOAT32_STEP))


def test_inputs_are_left_as_they_were(backend, rng):
    layer = Layer(rng, Grid(3, 8, "offset"), backend)
    solution, problem = layer.solution, layer.problem
    arrays = (solution.codes, solution.scales, solution.offsets, problem.truth, problem.H)
    before = [backend.to_numpy(array).copy() for array in arrays]
    layer.refit(exact=True)
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(array), old)
