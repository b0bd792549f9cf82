"""Stage 2 of the group scales: codes frozen, scales and free offsets refitted to the error of the whole layer."""

from dataclasses import dataclass

import numpy as np

from edgeq.grid import expand, grouped, offsets_for, store_scales, zero_points
from edgeq.protocols import Backend
from edgeq.types import Array, Grid, GroupScales

SYSTEM_ELEMENTS = 2**25  # of one chunk of rows' normal equations
RIDGE = 1e-6  # of each diagonal entry: keeps the exact solve definite in float32


@dataclass(frozen=True, slots=True)
class ScaleSystem:
    """Per row, the loss of the unknowns x: x^T A x - 2 c^T x. Shapes: A (out, unknowns, unknowns); c (out, unknowns).

    The unknowns are the scales of all groups, on an offset grid followed by the offsets of all groups.
    """

    A: Array
    c: Array


def refit_scales(
    codes: Array,
    fitted: GroupScales,
    B: Array,
    H: Array,
    grid: Grid,
    backend: Backend,
    *,
    sweeps: int = 3,
    exact: bool = False,
) -> GroupScales:
    """Stage 2: minimise tr(Q H Q^T) - 2 <B, Q> over the scales (and free offsets) of Q, rounded to storage.

    With B = W (H + D) that is the true layer loss ||X W.T - X_hat Q.T||^2 up to a constant: the drift D of earlier
    layers takes part. No row's loss is raised. By coordinate descent, or solved exactly first when `exact`.

    Shapes: codes and B (out, in); H (in, in); scales and offsets (out, groups).
    Source: the second stage of "two-stage group-scale optimisation", arXiv 2602.02126.
    """
    rows = max(1, SYSTEM_ELEMENTS // (2 * grid.group_count(codes.shape[1])) ** 2)
    parts = []
    for start in range(0, codes.shape[0], rows):
        chunk = slice(start, start + rows)
        part = GroupScales(fitted.scales[chunk], fitted.offsets[chunk])
        parts.append(_refit_rows(codes[chunk], part, B[chunk], H, grid, backend, sweeps, exact))
        backend.evaluate(parts[-1].scales, parts[-1].offsets)
    return GroupScales(
        backend.concatenate([part.scales for part in parts], 0),
        backend.concatenate([part.offsets for part in parts], 0),
    )


def _refit_rows(
    codes: Array, fitted: GroupScales, B: Array, H: Array, grid: Grid, backend: Backend, sweeps: int, exact: bool
) -> GroupScales:
    if grid.zeros == "offset":
        system = scale_system([codes, 0 * codes + 1], B, H, grid, backend)
        unknowns = backend.concatenate([fitted.scales, fitted.offsets], axis=1)
        unknowns = descend(system, unknowns, grid, backend, sweeps, exact)
        groups = fitted.scales.shape[1]
        return GroupScales(unknowns[:, :groups], unknowns[:, groups:])
    zeros = zero_points(fitted, backend)
    features = codes - expand(zeros, grid, codes.shape[1], backend)
    scales = descend(scale_system([features], B, H, grid, backend), fitted.scales, grid, backend, sweeps, exact)
    return GroupScales(scales, offsets_for(scales, zeros, grid, backend))


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


def descend(system: ScaleSystem, start: Array, grid: Grid, backend: Backend, sweeps: int, exact: bool) -> Array:
    """Sweep over the groups, each set to its best storable values given the others; keep only what lowers the loss."""
    unknowns = backend.copy(_solve_exactly(system, start, grid, backend) if exact else start)
    groups = start.shape[1] // 2 if grid.zeros == "offset" else start.shape[1]
    for _ in range(sweeps):
        for group in range(groups):
            if grid.zeros == "offset":
                _improve_pair(system, unknowns, group, group + groups, grid, backend)
            else:
                _improve_scale(system, unknowns, group, grid, backend)
        backend.evaluate(unknowns)
    better = _loss(system, unknowns) <= _loss(system, start)
    return backend.where(better[:, None], unknowns, start)


def _loss(system: ScaleSystem, unknowns: Array) -> Array:
    curved = (system.A * unknowns[:, None, :]).sum(axis=-1)
    return ((curved - 2 * system.c) * unknowns).sum(axis=-1)


def _residual(system: ScaleSystem, unknowns: Array, at: int) -> Array:
    return system.c[:, at] - (system.A[:, at] * unknowns).sum(axis=-1)


def _improve_scale(system: ScaleSystem, unknowns: Array, at: int, grid: Grid, backend: Backend) -> None:
    """Move one scale to the storable value nearest the minimum of its parabola; a group of zeros keeps its scale."""
    curvature, residual = system.A[:, at, at], _residual(system, unknowns, at)
    step = residual / backend.where(curvature > 0, curvature, 1.0)
    step = store_scales(unknowns[:, at] + step, grid, backend) - unknowns[:, at]
    gain = step * (2 * residual - step * curvature)
    unknowns[:, at] += backend.where(gain > 0, step, 0.0)


def _improve_pair(system: ScaleSystem, unknowns: Array, scale: int, offset: int, grid: Grid, backend: Backend) -> None:
    """Move a scale and its offset together to their joint minimum, the offset making up for the scale's rounding."""
    A_s, A_o, A_so = system.A[:, scale, scale], system.A[:, offset, offset], system.A[:, scale, offset]
    r_s, r_o = _residual(system, unknowns, scale), _residual(system, unknowns, offset)
    determinant = A_s * A_o - A_so * A_so
    solvable = determinant > RIDGE * A_s * A_o
    step_s = backend.where(solvable, (r_s * A_o - r_o * A_so) / backend.where(solvable, determinant, 1.0), 0.0)
    step_s = store_scales(unknowns[:, scale] + step_s, grid, backend) - unknowns[:, scale]
    step_o = (r_o - A_so * step_s) / backend.where(A_o > 0, A_o, 1.0)
    step_o = backend.round_to(unknowns[:, offset] + step_o, grid.scale_dtype) - unknowns[:, offset]
    gain = step_s * (2 * r_s - step_s * A_s - 2 * step_o * A_so) + step_o * (2 * r_o - step_o * A_o)
    unknowns[:, scale] += backend.where(gain > 0, step_s, 0.0)
    unknowns[:, offset] += backend.where(gain > 0, step_o, 0.0)


def _solve_exactly(system: ScaleSystem, start: Array, grid: Grid, backend: Backend) -> Array:
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
