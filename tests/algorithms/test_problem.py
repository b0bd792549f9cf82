"""Problems and solutions: both forms of the linear term, rows kept by their loss, rows joined."""

from dataclasses import replace

import numpy as np
import pytest
from layers import ZEROS, SolvedLayer

from edgeq.algorithms.problem import Problem, better_rows, join_rows
from edgeq.types import Grid, OutlierColumns, QuantizedLinear, Solution


def test_a_weight_to_come_near_is_a_linear_term(backend, rng, tolerance):
    layer = SolvedLayer(rng, Grid(3, 16), backend)
    near_V = replace(layer.problem, V=backend.asarray(layer.V), B=None)
    Q = backend.asarray(rng.standard_normal(layer.V.shape))
    expected = layer.B - backend.to_numpy(Q).astype(np.float64) @ layer.H
    atol = 10 * tolerance * abs(layer.B).max()
    for problem in (layer.problem, near_V):
        np.testing.assert_allclose(backend.to_numpy(problem.linear_term()), layer.B, atol=atol)
        np.testing.assert_allclose(backend.to_numpy(problem.slack(Q)), expected, atol=atol)


def test_a_truth_of_its_own_takes_the_place_of_the_weight(backend, rng):
    W, truth = (backend.asarray(rng.standard_normal((2, 3))) for _ in range(2))
    problem = Problem(W, backend.asarray(np.eye(3)), Grid(3, None), backend)
    assert problem.towards_truth() is problem
    found = replace(problem, truth=truth).towards_truth()
    np.testing.assert_array_equal(backend.to_numpy(found.slack(0 * W)), backend.to_numpy(truth))


@pytest.mark.parametrize("zeros", ZEROS)
def test_each_row_keeps_the_solution_of_smaller_loss(backend, rng, zeros):
    layer = SolvedLayer(rng, Grid(3, 16, zeros), backend, out_features=12)
    worse = backend.copy(layer.solution.codes)
    worse[::2] = backend.clip(worse[::2] + 3, 0, 7)
    other = layer.with_codes(worse)
    losses = [layer.losses(item) for item in (layer.solution, other)]
    for pair in ((layer.solution, other), (other, layer.solution)):
        kept = layer.losses(better_rows(layer.problem, *pair))
        assert (kept <= np.minimum(*losses) + layer.noise()).all()
    assert losses[0].sum() < losses[1].sum()


def test_rows_put_together_are_those_that_were_cut(backend, rng):
    layer = SolvedLayer(rng, Grid(3, 16), backend, out_features=7)
    parts = [
        Solution(
            layer.solution.scales[rows], layer.solution.offsets[rows], layer.solution.codes[rows]
        )
        for rows in (slice(0, 3), slice(3, 4), slice(4, None))
    ]
    joined = join_rows(parts, backend.concatenate)
    for name in ("scales", "offsets", "codes"):
        np.testing.assert_array_equal(
            backend.to_numpy(getattr(joined, name)), backend.to_numpy(getattr(layer.solution, name))
        )
    scales_only = join_rows([replace(part, codes=None) for part in parts], backend.concatenate)
    assert scales_only.codes is None


def test_plain_rows_are_joined_alike_and_outliers_refused(rng):
    grid = Grid(3, 8)
    codes = rng.integers(0, 8, (5, 8)).astype(np.uint8)
    scales = rng.random((5, 1)).astype(np.float32)
    layer = QuantizedLinear(codes, scales, -4 * scales, grid)
    parts = [
        QuantizedLinear(codes[r], scales[r], -4 * scales[r], grid) for r in ([0, 1], [2, 3, 4])
    ]
    np.testing.assert_array_equal(
        join_rows(parts, np.concatenate).dequantized(), layer.dequantized()
    )
    outliers = OutlierColumns(np.array([1], np.int32), np.ones((2, 1), np.float32))
    with pytest.raises(AssertionError):
        join_rows([replace(parts[0], outliers=outliers), parts[1]], np.concatenate)
