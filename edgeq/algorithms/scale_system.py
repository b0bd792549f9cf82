"""State the loss of a layer as a parabola in its group scales and free offsets, and solve it.

`edgeq.algorithms.scale_refit` descends on it with steps that the container can store.
"""

from dataclasses import dataclass

import numpy as np

from edgeq.algorithms.problem import Problem
from edgeq.grids.fitting import grouped, store_scales
from edgeq.protocols import Backend
from edgeq.types import Array, Grid

RIDGE = 1e-6  # of each diagonal entry: keeps the exact solve definite in float32


@dataclass(frozen=True, slots=True)
class ScaleSystem:
    """Hold, for each row, the loss of the unknowns x: x^T A x - 2 c^T x.

    The unknowns are the scales of all groups, on an offset grid followed by the offsets of all
    groups.

    Shapes: A (out, unknowns, unknowns); c (out, unknowns).
    """

    A: Array
    c: Array
    grid: Grid
    backend: Backend


def scale_system(problem: Problem, feature: Array, *, with_offsets: bool = False) -> ScaleSystem:
    """Make the normal equations A_gk = f_g^T H_gk f_k, c_g = f_g^T b_g of each row.

    feature is what a scale multiplies: codes, less zero points where those are fixed. With offsets,
    a second feature of ones follows: its products need sums of H over groups only.

    Shapes: feature (out, in).
    """
    B, H, grid, backend = problem.linear_term(), problem.H, problem.grid, problem.backend
    A = scale_products(problem, feature)
    c = grouped(feature * B, grid, backend).sum(axis=-1)
    if not with_offsets:
        return ScaleSystem(A, c, grid, backend)
    sums = grouped(H, grid, backend).sum(axis=-1)
    across = [
        feature[:, start:stop] @ sums[start:stop]
        for start, stop in grid.group_bounds(feature.shape[1])
    ]
    mixed = backend.concatenate([part[:, None, :] for part in across], axis=1)
    mirrored = backend.concatenate([part[:, :, None] for part in across], axis=2)
    offsets = grouped(sums.T, grid, backend).sum(axis=-1)[None] + 0 * A
    upper = backend.concatenate([A, mixed], axis=2)
    lower = backend.concatenate([mirrored, offsets], axis=2)
    c = backend.concatenate([c, grouped(B, grid, backend).sum(axis=-1)], axis=1)
    return ScaleSystem(backend.concatenate([upper, lower], axis=1), c, grid, backend)


def scale_products(problem: Problem, feature: Array) -> Array:
    """Multiply A_gk = f_g^T H_gk f_k out for every row, a symmetric matrix.

    Shapes: (out, in) -> (out, groups, groups).
    """
    H, backend = problem.H, problem.backend
    bounds = list(problem.grid.group_bounds(feature.shape[1]))
    A = backend.copy(backend.asarray(np.zeros((feature.shape[0], len(bounds), len(bounds)))))
    for group, (start, stop) in enumerate(bounds):
        through_H = (feature[:, start:stop] @ H[start:stop, start:]) * feature[:, start:]
        products = group_sums(through_H, bounds[0][1], backend)
        A[:, group, group:] = products
        A[:, group:, group] = products
    return A


def group_sums(A: Array, width: int, backend: Backend) -> Array:
    """Add columns up group by group, the last group perhaps shorter.

    Shapes: (out, columns) -> (out, groups).
    """
    whole = A.shape[1] // width * width
    sums = A[:, :whole].reshape(A.shape[0], -1, width).sum(axis=-1)
    if whole == A.shape[1]:
        return sums
    return backend.concatenate([sums, A[:, whole:].sum(axis=-1)[:, None]], axis=1)


def system_loss(system: ScaleSystem, unknowns: Array) -> Array:
    """Give x^T A x - 2 c^T x of every row.

    Shapes: unknowns (out, unknowns) -> (out,).
    """
    curved = (system.A * unknowns[:, None, :]).sum(axis=-1)
    return ((curved - 2 * system.c) * unknowns).sum(axis=-1)


def residual(system: ScaleSystem, unknowns: Array, at: int) -> Array:
    """Give (c - A x) of one unknown in every row.

    Shapes: (out,).
    """
    return system.c[:, at] - (system.A[:, at] * unknowns).sum(axis=-1)


def solve_exactly(system: ScaleSystem, start: Array) -> Array:
    """Find the joint minimum over all unknowns of a row, rounded to storage.

    Groups without features keep their value.

    Shapes: start and result (out, unknowns).
    """
    grid, backend, count = system.grid, system.backend, start.shape[1]
    eye = backend.asarray(np.eye(count))
    diagonal = (system.A * eye).sum(axis=-1)
    seen = diagonal > 0
    ridge = backend.where(seen, RIDGE * diagonal, 1.0)
    A = system.A + eye * ridge[:, None, :]
    L = backend.cholesky(A)
    right = backend.where(seen, system.c + ridge * start, start)[:, :, None]
    half_solved = backend.solve_triangular(L, right)
    solved = backend.solve_triangular(L, half_solved, transposed=True)[:, :, 0]
    groups = count // 2 if grid.zeros == "offset" else count
    parts = [store_scales(solved[:, :groups], grid, backend)]
    if groups < count:
        parts.append(backend.round_to(solved[:, groups:], grid.scale_dtype))
    return backend.concatenate(parts, axis=1)
