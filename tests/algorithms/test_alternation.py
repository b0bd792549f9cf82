from dataclasses import replace

import numpy as np
import plain
import pytest
from layers import ZEROS, SolvedLayer

from edgeq.algorithms.alternation import Turns, alternate
from edgeq.algorithms.quantease import Sweeps
from edgeq.types import Grid


def turned(layer, *, count, sweeps, truth=None):
    problem = replace(layer.problem, truth=truth)
    return alternate(problem, layer.solution, Turns(count, Sweeps(sweeps)))


@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("bits", [2, 3])
def test_each_turn_lowers_the_loss_of_every_row_or_leaves_it(backend, rng, zeros, bits):
    layer = SolvedLayer(rng, Grid(bits, 16, zeros), backend, out_features=10)
    before = layer.losses(layer.solution)
    start = before.sum()
    for count in (1, 2, 3):
        after = layer.losses(turned(layer, count=count, sweeps=2))
        assert (after <= before + layer.noise()).all()
        before = after
    assert before.sum() < 0.95 * start


@pytest.mark.parametrize("zeros", ZEROS)
def test_scales_and_offsets_stay_what_the_container_stores(backend, rng, zeros):
    layer = SolvedLayer(rng, Grid(3, 16, zeros), backend)
    found = turned(layer, count=2, sweeps=1)
    scales, offsets = (
        backend.to_numpy(array).astype(np.float64) for array in (found.scales, found.offsets)
    )
    np.testing.assert_array_equal(scales, scales.astype(np.float16))
    if zeros == "offset":
        np.testing.assert_array_equal(offsets, offsets.astype(np.float16))
    else:
        zero_points = -offsets / scales
        np.testing.assert_array_equal(zero_points, np.rint(zero_points))
    assert set(np.unique(layer.numpy_codes(found))) <= set(range(8))


def test_towards_a_truth_of_their_own_scales_never_lose_by_it(backend, rng):
    layer = SolvedLayer(rng, Grid(3, 16), backend, drift=0.4)
    D = plain.moments(layer.X, layer.X_hat)[1]
    truth = layer.W @ layer.H + layer.W @ D
    best = layer.W + np.linalg.solve(layer.H, (layer.W @ D).T).T

    def true_losses(solution):
        scales, offsets = plain.column_values(solution, layer.grid, 40, backend)
        return plain.weighted_loss(scales * layer.numpy_codes(solution) + offsets, best, layer.H)

    before = true_losses(layer.solution)
    after = true_losses(turned(layer, truth=backend.asarray(truth), count=3, sweeps=2))
    assert (after <= before + layer.noise()).all()
    assert after.sum() < before.sum()
