"""The loss of a layer as a parabola in its group scales (and free offsets): normal equations and their solution."""

from dataclasses import dataclass

import numpy as np

from edgeq.grid import grouped, store_scales
from edgeq.protocols import Backend
from edgeq.types import Array, Grid

RIDGE = 1e-6  # of each diagonal entry: keeps the exact solve definite in float32


@dataclass(frozen=True, slots=True)
class ScaleSystem:
    """Per row, the loss of the unknowns x: x^T A x - 2 c^T x. Shapes: A (out, unknowns, unknowns); c (out, unknowns).

    The unknowns are the scales of all groups, on an offset grid followed by the offsets of all groups.
    """

    A: Array
    c: Array


def scale_system(features: list[Array], B: Array, H: Array, grid: Grid, backend: Backend) -> ScaleSystem:
    """The normal equations A_gk = f_g^T H_gk f_k, c_g = f_g^T b_g for each row.

    Shapes: each feature (out, in), one unknown per group of it.
    """
    rows = []
    for feature in features:
        for start, stop in grid.group_bounds(feature.shape[1]):
            through_H = feature[:, start:stop] @ H[start:stop]
            parts = [grouped(through_H * other, grid, backend).sum(axis=-1) for other in features]
            rows.append(backend.concatenate(parts, axis=1)[:, None, :])
    c = [grouped(feature * B, grid, backend).sum(axis=-1) for feature in features]
    return ScaleSystem(backend.concatenate(rows, axis=1), backend.concatenate(c, axis=1))


def system_loss(system: ScaleSystem, unknowns: Array) -> Array:
    """x^T A x - 2 c^T x of every row. Shapes: unknowns (out, unknowns) -> (out,)."""
    curved = (system.A * unknowns[:, None, :]).sum(axis=-1)
    return ((curved - 2 * system.c) * unknowns).sum(axis=-1)


def residual(system: ScaleSystem, unknowns: Array, at: int) -> Array:
    """(c - A x) of one unknown in every row. Shapes: (out,)."""
    return system.c[:, at] - (system.A[:, at] * unknowns).sum(axis=-1)


def solve_exactly(system: ScaleSystem, start: Array, grid: Grid, backend: Backend) -> Array:
    """The joint minimum over all unknowns of a row, rounded to storage; groups without features keep their value."""
    count = start.shape[1]
    eye = backend.asarray(np.eye(count))
    diagonal = (system.A * eye).sum(axis=-1)
    seen = diagonal > 0
    ridge = backend.where(seen, RIDGE * diagonal, 1.0)
    A = system.A + eye * ridge[:, None, :]
    L = backend.cholesky(A)
    right = backend.where(seen, system.c + ridge * start, start)[:, :, None]
    solved = backend.solve_triangular(L, backend.solve_triangular(L, right), transposed=True)[:, :, 0]
    groups = count // 2 if grid.zeros == "offset" else count
    parts = [store_scales(solved[:, :groups], grid, backend)]
    if groups < count:
        parts.append(backend.round_to(solved[:, groups:], grid.scale_dtype))
    return backend.concatenate(parts, axis=1)
