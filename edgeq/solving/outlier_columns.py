"""Outlier columns of a layer: what solver and refinements see beside them, and their values.

The choice and the fit themselves are `edgeq.algorithms.outliers`.
"""

from dataclasses import replace

import numpy as np

from edgeq.algorithms.damping import DampedFactor, damped, factorise, inverse_upper_factor
from edgeq.algorithms.outliers import add_columns, choose_columns, fit_columns
from edgeq.algorithms.problem import Problem, dequantize
from edgeq.grids.fitting import expand, round_to_codes
from edgeq.protocols import Backend
from edgeq.solving.site import SiteFactors
from edgeq.types import Array, NumpyArray, OutlierColumns, Solution

# of the mean importance; not zero, since a group may consist of outlier columns
NEXT_TO_NOTHING = 1e-6


def solve_around(
    problem: Problem, columns: NumpyArray, site: SiteFactors
) -> tuple[Problem, DampedFactor]:
    """State the problem of a layer's other columns, and factor its second moment for the solver.

    In that problem the outlier columns are refitted exactly, whatever the other columns hold.

    Raises: NotPositiveDefinite.
    """
    H = site.statistics.H
    backend = problem.backend
    order, inverse = factor_around(H, columns, site.order, site.damping, backend)
    around = replace(
        problem,
        H=damped(H, inverse.damping, backend),
        U=inverse.factor,
        order=order,
        importance=importance_around(site.importance, columns, backend),
        outlier_columns=columns,
    )
    return around, inverse


def columns_of(problem: Problem, H: Array) -> NumpyArray:
    """Choose the outlier columns of a layer, in rising order; none where its grid has none.

    Layers that share an input may choose different columns. Shapes: H (in, in), not damped.
    """
    count = problem.grid.outlier_count(problem.V.shape[1])
    if not count:
        return problem.outlier_columns
    backend = problem.backend
    return choose_columns(problem.V, backend.diagonal(H), backend, count=count)


def factor_around(
    H: Array, columns: NumpyArray, order: NumpyArray | None, damping: float, backend: Backend
) -> tuple[NumpyArray, DampedFactor]:
    """Put outlier columns last in the solver's order, and factor (H + lambda I)^-1 = U^T U in it.

    The part of U before these columns is the factor of the problem in which they are refitted
    exactly for whatever the other columns hold, so that GPTQ solves that problem and what it does
    to the last columns reaches no others.

    Raises: NotPositiveDefinite.
    """
    order = np.arange(H.shape[0]) if order is None else order
    order = np.concatenate([order[~np.isin(order, columns)], columns])
    return order, factorise(H, damping, backend, inverse_upper_factor, order=order)


def importance_around(importance: Array, columns: NumpyArray, backend: Backend) -> Array:
    """Weigh columns for the search of scales, outlier columns next to nothing.

    Shapes: (in,).
    """
    kept = np.ones(importance.shape[0])
    kept[columns] = 0
    mask = backend.asarray(kept)
    return mask * importance + (1 - mask) * (NEXT_TO_NOTHING * importance.mean())


def fit_outliers(problem: Problem, solution: Solution) -> Solution:
    """Fit the values of the outlier columns, with the codes there as near to zero as they can be.

    A runtime that rounds activations then rounds none of these columns: their products are those of
    the values alone.
    """
    grid = problem.grid
    backend = problem.backend
    columns = problem.outlier_columns
    in_features = solution.codes.shape[1]
    scales = expand(solution.scales, grid, in_features, backend)
    offsets = expand(solution.offsets, grid, in_features, backend)
    zero = round_to_codes(0 * offsets, scales, offsets, grid, backend)
    chosen = np.zeros((1, in_features))
    chosen[0, columns] = 1
    codes = backend.where(backend.asarray(chosen) > 0, zero, solution.codes)
    solution = replace(solution, codes=codes)
    Q = dequantize(problem, solution)
    return replace(solution, outliers=fit_columns(problem, Q, columns))


def weight_of(problem: Problem, solution: Solution) -> Array:
    """Dequantize a solution, with outlier columns, where there are any, fitted to V beside it.

    Shapes: (out, in).
    """
    if not problem.outlier_columns.size:
        return dequantize(problem, solution)
    solution = fit_outliers(problem, solution)
    assert solution.outliers is not None
    return add_columns(dequantize(problem, solution), solution.outliers, problem.backend)


def plain_outliers(outliers: OutlierColumns, backend: Backend) -> OutlierColumns:
    """Turn outlier columns in backend arrays into plain data, as checkpoints store them."""
    values = backend.to_numpy(outliers.values).astype(np.float32)
    return OutlierColumns(outliers.columns.astype(np.int32), values)
