"""Whole input columns in full precision beside the codes: chosen, fitted and eliminated.

Single weights anywhere in a layer are `edgeq.algorithms.outlier_weights`.
"""

from dataclasses import replace

import numpy as np

from edgeq.algorithms.problem import Problem
from edgeq.protocols import Backend
from edgeq.types import Array, NumpyArray, OutlierColumns


def choose_columns(V: Array, importance: Array, backend: Backend, *, count: int) -> NumpyArray:
    """Choose the input columns that would cost most to round, in rising order.

    Those of the largest importance_j * sum_r v_rj^2. The diagonal of H as importance chose better
    columns on trained layers than 1 / diag H^-1 did.

    Shapes: V (out, in); importance (in,).
    """
    score = backend.to_numpy(importance * (V * V).sum(axis=0))
    return np.sort(np.argsort(-score, kind="stable")[:count])


def fit_columns(problem: Problem, Q: Array, columns: NumpyArray) -> OutlierColumns:
    """Fit the values of a set of columns beside a quantized weight: least squares on the support.

    E = (B - Q H)_C (H_CC)^-1,   one factor for all rows

    That is the minimum of tr((Q+E) H (Q+E)^T) - 2 <B, Q+E>, rounded to the grid's scale_dtype.

    Shapes: Q (out, in).
    Raises: NotPositiveDefinite where H_CC is singular; damp H.
    """
    backend = problem.backend
    if not columns.size:
        return OutlierColumns(columns, Q[:, :0])
    among = backend.take(backend.take(problem.H, columns, 0), columns, 1)
    L = backend.cholesky(among)
    right = backend.take(problem.linear_term() - Q @ problem.H, columns, 1).T
    values = backend.solve_triangular(L, backend.solve_triangular(L, right), transposed=True).T
    return OutlierColumns(columns, backend.round_to(values, problem.grid.scale_dtype))


def add_columns(Q: Array, outliers: OutlierColumns, backend: Backend) -> Array:
    """Add outlier columns to the weight that codes stand for.

    Shapes: (out, in).
    """
    if not outliers.columns.size:
        return Q
    placing = np.zeros((outliers.columns.size, Q.shape[1]))
    placing[np.arange(outliers.columns.size), outliers.columns] = 1
    return Q + outliers.values @ backend.asarray(placing)


def without_columns(V: Array, columns: NumpyArray, backend: Backend) -> Array:
    """Put zeros into some columns: the weight whose ranges the group scales should cover.

    Shapes: (out, in).
    """
    return V * backend.asarray(_kept(V.shape[1], columns))


def eliminate_columns(problem: Problem) -> Problem:
    """Leave the problem that remains once its outlier columns are refitted for whatever codes hold.

    H' = H - H_:C H_CC^-1 H_C:,   B' = B - B_C H_CC^-1 H_C:

    Any refiner that lowers the loss of this problem lowers that of the layer with its outliers
    refitted; no turns are needed. H' is singular along the columns, where codes no longer matter.

    Source: Behdin et al., QuantEase, 2023, section 4, does turns instead.
    """
    columns, H, backend = problem.outlier_columns, problem.H, problem.backend
    if not columns.size:
        return problem
    across = backend.take(H, columns, 0)
    L = backend.cholesky(backend.take(across, columns, 1))
    half = backend.solve_triangular(L, across)
    # exact zeros where rounding would leave noise
    mask = backend.asarray(_kept(H.shape[0], columns))

    def left_of(B: Array) -> Array:
        through = backend.solve_triangular(L, backend.take(B, columns, 1).T)
        return (B - through.T @ half) * mask

    return replace(
        problem,
        V=None,
        H=(H - half.T @ half) * mask * mask.T,
        B=left_of(problem.linear_term()),
        truth=None if problem.truth is None else left_of(problem.truth),
        whole=problem,
    )


def _kept(size: int, columns: NumpyArray) -> NumpyArray:
    """Mark all columns but some with ones.

    Shapes: (1, size).
    """
    kept = np.ones((1, size))
    kept[0, columns] = 0
    return kept
