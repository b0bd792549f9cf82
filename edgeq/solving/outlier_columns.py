"""Outlier columns of a layer: which ones, what solver and refinements see beside them, and their
values.
"""

import numpy as np

from edgeq.algorithms.damping import DampedFactor, factorise, inverse_upper_factor
from edgeq.algorithms.layer_loss import Target, dequantize
from edgeq.algorithms.outliers import add_columns, choose_columns, fit_columns
from edgeq.grids.fitting import expand, round_to_codes
from edgeq.protocols import Backend
from edgeq.types import Array, Grid, GroupScales, NumpyArray, OutlierColumns

NEXT_TO_NOTHING = (
    1e-6  # of the mean importance; not zero, since a group may consist of outlier columns
)


def no_columns() -> NumpyArray:
    return np.zeros(0, dtype=np.int64)


def columns_of(V: Array, H: Array, grid: Grid, backend: Backend) -> NumpyArray:
    """The outlier columns of a layer, in rising order; empty where its grid has none. Shapes: V
    (out, in); H (in, in).

    The diagonal of H is the layer's own or its site's: layers that share an input may choose
    different columns.
    """
    count = grid.outlier_count(V.shape[1])
    return choose_columns(V, backend.diagonal(H), backend, count=count) if count else no_columns()


def factor_around(
    H: Array, columns: NumpyArray, order: NumpyArray | None, damping: float, backend: Backend
) -> tuple[NumpyArray, DampedFactor]:
    """The solver's order with the outlier columns last, and its factor U of (H + lambda I)^-1 = U^T
    U in that order.

    The part of U before these columns is the factor of the problem in which they are refitted
    exactly for whatever the other columns hold, so that GPTQ solves that problem and what it does
    to the last columns reaches no others.

    Raises: NotPositiveDefinite.
    """
    order = np.arange(H.shape[0]) if order is None else order
    order = np.concatenate([order[~np.isin(order, columns)], columns])
    return order, factorise(H, damping, backend, inverse_upper_factor, order=order)


def importance_around(importance: Array, columns: NumpyArray, backend: Backend) -> Array:
    """Weights for the search of scales that leave outlier columns out. Shapes: (in,)."""
    kept = np.ones(importance.shape[0])
    kept[columns] = 0
    mask = backend.asarray(kept)
    return mask * importance + (1 - mask) * (NEXT_TO_NOTHING * importance.mean())


def fit_outliers(
    codes: Array,
    fitted: GroupScales,
    target: Target,
    columns: NumpyArray,
    grid: Grid,
    backend: Backend,
) -> tuple[Array, OutlierColumns]:
    """Codes that stand for zero in the outlier columns, or as near as the grid comes, and the
    columns' best values.

    A runtime that rounds activations then rounds none of these columns: their products are those of
    the values alone.

    Shapes: codes (out, in).
    """
    scales, offsets = (
        expand(part, grid, codes.shape[1], backend) for part in (fitted.scales, fitted.offsets)
    )
    zero = round_to_codes(0 * offsets, scales, offsets, grid, backend)
    chosen = np.zeros((1, codes.shape[1]))
    chosen[0, columns] = 1
    codes = backend.where(backend.asarray(chosen) > 0, zero, codes)
    Q = dequantize(codes, fitted, grid, backend)
    return codes, fit_columns(Q, columns, target, backend, dtype=grid.scale_dtype)


def weight_around(
    columns: NumpyArray,
    codes: Array,
    fitted: GroupScales,
    V: Array,
    H: Array,
    grid: Grid,
    backend: Backend,
) -> Array:
    """The weight that codes stand for, its outlier columns, if any, fitted beside them to V under
    H.

    Shapes: codes, V and the result (out, in); H (in, in), damped.
    """
    if not columns.size:
        return dequantize(codes, fitted, grid, backend)
    codes, outliers = fit_outliers(codes, fitted, Target(V @ H, H), columns, grid, backend)
    return add_columns(dequantize(codes, fitted, grid, backend), outliers, backend)


def plain_outliers(outliers: OutlierColumns, backend: Backend) -> OutlierColumns:
    """From backend arrays to plain data."""
    return OutlierColumns(
        outliers.columns.astype(np.int32), backend.to_numpy(outliers.values).astype(np.float32)
    )
