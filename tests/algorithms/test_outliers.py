import itertools
from dataclasses import replace

import numpy as np
import plain
import pytest
from layers import SolvedLayer, correlated_moment

from edgeq.algorithms.outlier_weights import (
    fit_weights,
    keep_largest,
    largest_eigenvalue,
    refine_with_weights,
    threshold_step,
)
from edgeq.algorithms.outliers import (
    add_columns,
    choose_columns,
    eliminate_columns,
    fit_columns,
    without_columns,
)
from edgeq.algorithms.problem import dequantize
from edgeq.algorithms.quantease import Sweeps, descend_codes
from edgeq.types import Grid, OutlierColumns

COLUMNS = np.array([3, 17, 18])


def dequantized(layer, solution=None):
    return dequantize(layer.problem, layer.solution if solution is None else solution)


def eliminated(layer, columns):
    return eliminate_columns(replace(layer.problem, outlier_columns=columns))


def in_float32(layer):
    """The same problem, with outlier values that float32 stores."""
    return replace(layer.problem, grid=replace(layer.grid, scale_dtype="float32"))


def loss_of(layer, Q):
    return plain.weighted_loss(layer.backend.to_numpy(Q).astype(np.float64), layer.V, layer.H)


def least_squares(V, H, Q, support):
    """The best values on a row's support, as least squares on a square root of H."""
    root = np.linalg.cholesky(H).T
    return np.linalg.lstsq(root[:, support], root @ (V - Q), rcond=None)[0]


def test_columns_are_fitted_as_least_squares_fits_them(backend, rng, tolerance):
    layer = SolvedLayer(rng, Grid(3, 16), backend)
    found = fit_columns(in_float32(layer), dequantized(layer), COLUMNS)
    Q = backend.to_numpy(dequantized(layer)).astype(np.float64)
    expected = [least_squares(v, layer.H, q, COLUMNS) for v, q in zip(layer.V, Q, strict=True)]
    atol = max(tolerance, 1e-6) * abs(np.array(expected)).max()
    np.testing.assert_allclose(backend.to_numpy(found.values), expected, atol=atol)


def test_values_are_rounded_to_what_is_stored(backend, rng):
    layer = SolvedLayer(rng, Grid(3, 16), backend)
    values = backend.to_numpy(fit_columns(layer.problem, dequantized(layer), COLUMNS).values)
    np.testing.assert_array_equal(values, values.astype(np.float16))


def test_added_columns_change_no_other(backend, rng):
    Q, values = rng.standard_normal((4, 9)), rng.standard_normal((4, 2))
    outliers = OutlierColumns(np.array([2, 7]), backend.asarray(values))
    expected = Q.copy()
    expected[:, [2, 7]] += values
    np.testing.assert_allclose(
        backend.to_numpy(add_columns(backend.asarray(Q), outliers, backend)), expected, rtol=1e-6
    )
    without = backend.to_numpy(without_columns(backend.asarray(Q), np.array([2, 7]), backend))
    assert (without[:, [2, 7]] == 0).all()
    np.testing.assert_allclose(without[:, 3:7], Q[:, 3:7], rtol=1e-6)


def test_no_columns_leave_everything_as_it_is(backend, rng):
    layer, none = SolvedLayer(rng, Grid(3, 16), backend), np.array([], dtype=np.int64)
    assert eliminate_columns(layer.problem) is layer.problem
    outliers = fit_columns(layer.problem, dequantized(layer), none)
    np.testing.assert_array_equal(
        backend.to_numpy(add_columns(dequantized(layer), outliers, backend)),
        backend.to_numpy(dequantized(layer)),
    )


def test_columns_are_chosen_by_what_their_error_costs(backend):
    V = backend.asarray(np.array([[1.0, 2.0, 0.0, 1.0], [1.0, 2.0, 9.0, 1.0]]))
    importance = backend.asarray(np.array([5.0, 1.0, 0.01, 5.0]))
    assert choose_columns(V, importance, backend, count=2).tolist() == [0, 3]
    assert choose_columns(V, importance, backend, count=3).tolist() == [0, 1, 3]
    assert choose_columns(V, importance, backend, count=0).tolist() == []


def test_eliminating_columns_leaves_the_loss_of_their_best_fit(backend, rng, tolerance):
    layer = SolvedLayer(rng, Grid(3, 16), backend)
    left = eliminated(layer, COLUMNS)
    H, B = (backend.to_numpy(array).astype(np.float64) for array in (left.H, left.B))
    differences = []
    for Q in rng.standard_normal((3, *layer.V.shape)) / 6:
        refitted = Q.copy()
        refitted[:, COLUMNS] += [
            least_squares(v, layer.H, q, COLUMNS) for v, q in zip(layer.V, Q, strict=True)
        ]
        differences.append(plain.quadratic(Q, B, H) - plain.quadratic(refitted, layer.B, layer.H))
    scale = abs(plain.quadratic(layer.V, layer.B, layer.H)).max()
    for other in differences[1:]:  # equal up to a constant of the row
        np.testing.assert_allclose(other, differences[0], atol=10 * tolerance * scale)


def refined(layer, columns):
    """Sweeps over the codes with the columns eliminated, then the columns' fit beside them."""
    found = descend_codes(eliminated(layer, columns), layer.solution, Sweeps(3))
    return found, fit_columns(layer.problem, dequantized(layer, found), columns)


@pytest.mark.parametrize("zeros", ["symmetric", "offset"])
def test_codes_and_columns_together_beat_columns_fitted_afterwards(backend, rng, zeros):
    layer = SolvedLayer(rng, Grid(2, 16, zeros), backend, out_features=16)
    Q = dequantized(layer)
    alone = add_columns(Q, fit_columns(layer.problem, Q, COLUMNS), backend)
    found, outliers = refined(layer, COLUMNS)
    together = add_columns(dequantized(layer, found), outliers, backend)
    before, after = loss_of(layer, alone), loss_of(layer, together)
    stored = 2.0**-10 * plain.weighted_loss(
        layer.V, 0 * layer.V, layer.H
    )  # values are rounded to float16
    assert (after <= before + stored).all()
    assert after.sum() < before.sum() < loss_of(layer, Q).sum()


def test_the_chosen_columns_are_among_the_best_pairs(backend):
    """Of all pairs of columns kept in full precision, the chosen one is in the best tenth."""
    rng = np.random.default_rng(3)
    layer = SolvedLayer(
        rng, Grid(2, None), backend, in_features=12, H=correlated_moment(rng, 12, loud=0.2)
    )
    importance = backend.asarray(np.diag(layer.H))
    chosen = choose_columns(backend.asarray(layer.V), importance, backend, count=2)
    losses = {}
    for pair in itertools.combinations(range(12), 2):
        columns = np.array(pair)
        found, outliers = refined(layer, columns)
        losses[pair] = loss_of(
            layer, add_columns(dequantized(layer, found), outliers, backend)
        ).sum()
    assert losses[tuple(chosen.tolist())] <= np.quantile(list(losses.values()), 0.1)


def test_the_largest_eigenvalue_is_never_underestimated_and_close(backend, rng):
    opposed, beside = np.array([[2.0, -1.0], [-1.0, 2.0]]), np.array([[1.0, 0.9], [0.9, 1.0]])
    apart = np.kron(np.diag([1.0, 0.0]), opposed) + np.kron(np.diag([0.0, 1.0]), beside)
    for H in (
        correlated_moment(rng, 30),
        np.diag([1.0, 5.0, 2.0]),
        np.ones((4, 4)),
        opposed,
        apart,
    ):
        exact = np.linalg.eigvalsh(H).max()
        assert exact * (1 - 1e-5) <= largest_eigenvalue(backend.asarray(H), backend) <= 1.1 * exact


def test_the_largest_weights_are_kept_the_first_of_equals(backend):
    E = backend.asarray(np.array([[1.0, -3.0, 2.0], [3.0, 0.5, -2.0]]))
    assert backend.to_numpy(keep_largest(E, 3, backend)).tolist() == [[0, -3, 2], [3, 0, 0]]


def test_single_weights_are_fitted_as_least_squares_fits_them(backend, rng, tolerance):
    layer = SolvedLayer(rng, Grid(3, 16), backend)
    E = np.where(rng.random(layer.V.shape) < 0.1, 1e-3, 0.0)
    found = fit_weights(layer.problem, dequantized(layer), backend.asarray(E))
    Q = backend.to_numpy(dequantized(layer)).astype(np.float64)
    expected = np.zeros_like(E)
    for row, v, q in zip(range(len(E)), layer.V, Q, strict=True):
        support = np.flatnonzero(E[row])
        expected[row, support] = least_squares(v, layer.H, q, support)
    atol = max(10 * tolerance, 1e-9) * abs(expected).max()
    np.testing.assert_allclose(backend.to_numpy(found), expected, atol=atol)


def test_no_thresholding_step_raises_the_loss(backend, rng):
    layer = SolvedLayer(rng, Grid(2, 16), backend)
    Q, eigenvalue = dequantized(layer), largest_eigenvalue(layer.problem.H, backend)
    E, losses = 0 * Q, [loss_of(layer, Q).sum()]
    for _ in range(20):
        E = threshold_step(layer.problem, Q, E, eigenvalue=eigenvalue, count=24)
        losses.append(loss_of(layer, Q + E).sum())
    assert (np.diff(losses) <= layer.noise().sum()).all()
    assert losses[-1] < 0.9 * losses[0]


def test_codes_and_single_weights_by_turns_never_raise_the_loss(backend, rng):
    layer = SolvedLayer(rng, Grid(2, 16), backend)
    solution, E = layer.solution, 0 * dequantized(layer)
    losses = [loss_of(layer, dequantized(layer)).sum()]
    for _ in range(4):
        solution, E = refine_with_weights(layer.problem, solution, E, count=24, turns=1)
        losses.append(loss_of(layer, dequantized(layer, solution) + E).sum())
        assert np.count_nonzero(backend.to_numpy(E)) <= 24
    assert (np.diff(losses) <= layer.noise().sum()).all()
    assert losses[-1] < 0.7 * losses[0]


def test_an_unreachable_target_is_reached_with_every_column_in_full_precision(
    backend, rng, tolerance
):
    layer = SolvedLayer(rng, Grid(2, 16), backend)
    columns = np.arange(40)
    outliers = fit_columns(in_float32(layer), dequantized(layer), columns)
    found = backend.to_numpy(add_columns(dequantized(layer), outliers, backend))
    np.testing.assert_allclose(found, layer.V, atol=max(100 * tolerance, 1e-5) * abs(layer.V).max())
