"""A few weights in full precision beside the codes: whole input columns, or single weights
anywhere.
"""

import numpy as np

from edgeq.algorithms.layer_loss import Target
from edgeq.protocols import Backend
from edgeq.types import Array, NumpyArray, OutlierColumns, ScaleDtype


def choose_columns(V: Array, importance: Array, backend: Backend, *, count: int) -> NumpyArray:
    """The input columns that would cost most to round: the largest importance_j * sum_r v_rj^2, in
    rising order.

    Shapes: V (out, in); importance (in,), the diagonal of H: on trained layers that chose better
    columns than 1 / diag H^-1 did.
    """
    score = backend.to_numpy(importance * (V * V).sum(axis=0))
    return np.sort(np.argsort(-score, kind="stable")[:count])


def fit_columns(
    Q: Array,
    columns: NumpyArray,
    target: Target,
    backend: Backend,
    *,
    dtype: ScaleDtype = "float16",
) -> OutlierColumns:
    """The best values of a set of columns beside a quantized weight: least squares on the support.

    E = (B - Q H)_C (H_CC)^-1,   one factor for all rows; the minimum of tr((Q+E) H (Q+E)^T) - 2 <B,
    Q+E>

    Shapes: Q (out, in). Raises: NotPositiveDefinite where H_CC is singular; damp H.
    """
    if not columns.size:
        return OutlierColumns(columns, Q[:, :0])
    among = backend.take(backend.take(target.H, columns, 0), columns, 1)
    L = backend.cholesky(among)
    right = backend.take(target.B - Q @ target.H, columns, 1).T
    values = backend.solve_triangular(L, backend.solve_triangular(L, right), transposed=True).T
    return OutlierColumns(columns, backend.round_to(values, dtype))


def add_columns(Q: Array, outliers: OutlierColumns, backend: Backend) -> Array:
    """The effective weight. Shapes: (out, in)."""
    if not outliers.columns.size:
        return Q
    placing = np.zeros((outliers.columns.size, Q.shape[1]))
    placing[np.arange(outliers.columns.size), outliers.columns] = 1
    return Q + outliers.values @ backend.asarray(placing)


def without_columns(V: Array, columns: NumpyArray, backend: Backend) -> Array:
    """V with zeros in some columns: the weight whose ranges the group scales should cover. Shapes:
    (out, in).
    """
    kept = np.ones((1, V.shape[1]))
    kept[0, columns] = 0
    return V * backend.asarray(kept)


def eliminate_columns(target: Target, columns: NumpyArray, backend: Backend) -> Target:
    """The target that is left once the columns are refitted exactly for whatever the other columns
    hold.

    H' = H - H_:C H_CC^-1 H_C:,   B' = B - B_C H_CC^-1 H_C:

    Any refiner that lowers the loss of this target lowers that of the layer with its outliers
    refitted; no turns are needed. H' is singular along the columns, where codes no longer matter.

    Source: Behdin et al., QuantEase, 2023, section 4, does turns instead.
    """
    if not columns.size:
        return target
    across = backend.take(target.H, columns, 0)
    L = backend.cholesky(backend.take(across, columns, 1))
    half = backend.solve_triangular(L, across)
    through = backend.solve_triangular(L, backend.take(target.B, columns, 1).T)
    kept = np.ones((1, target.H.shape[0]))
    kept[0, columns] = 0  # exact zeros where rounding would leave noise
    mask = backend.asarray(kept)
    return Target((target.B - through.T @ half) * mask, (target.H - half.T @ half) * mask * mask.T)
