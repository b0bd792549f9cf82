"""Stage 2 of the group scales: codes frozen, scales and free offsets refitted to the error of the
whole layer.
"""

from edgeq.algorithms.scale_system import (
    RIDGE,
    ScaleSystem,
    residual,
    scale_system,
    solve_exactly,
    system_loss,
)
from edgeq.grids.fitting import expand, offsets_for, store_scales, zero_points
from edgeq.protocols import Backend
from edgeq.types import Array, Grid, GroupScales

__all__ = ["ScaleSystem", "descend", "refit_scales", "scale_system"]

SYSTEM_ELEMENTS = 2**25  # of one chunk of rows' normal equations
ROWS_AT_ONCE = 128  # what is made of them on the way fits a cache


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
    """Stage 2: minimise tr(Q H Q^T) - 2 <B, Q> over the scales (and free offsets) of Q, rounded to
    storage.

    With B = W (H + D) that is the true layer loss ||X W.T - X_hat Q.T||^2 up to a constant: the
    drift D of earlier layers takes part. No row's loss is raised. By coordinate descent, or solved
    exactly first when `exact`.

    Shapes: codes and B (out, in); H (in, in); scales and offsets (out, groups).
    Source: the second stage of "two-stage group-scale optimisation", arXiv 2602.02126.
    """
    rows = min(ROWS_AT_ONCE, max(1, SYSTEM_ELEMENTS // (2 * grid.group_count(codes.shape[1])) ** 2))
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
    codes: Array,
    fitted: GroupScales,
    B: Array,
    H: Array,
    grid: Grid,
    backend: Backend,
    sweeps: int,
    exact: bool,
) -> GroupScales:
    if grid.zeros == "offset":
        system = scale_system(codes, B, H, grid, backend, with_offsets=True)
        unknowns = backend.concatenate([fitted.scales, fitted.offsets], axis=1)
        unknowns = descend(system, unknowns, grid, backend, sweeps, exact)
        groups = fitted.scales.shape[1]
        return GroupScales(unknowns[:, :groups], unknowns[:, groups:])
    zeros = zero_points(fitted, backend)
    features = codes - expand(zeros, grid, codes.shape[1], backend)
    scales = descend(
        scale_system(features, B, H, grid, backend), fitted.scales, grid, backend, sweeps, exact
    )
    return GroupScales(scales, offsets_for(scales, zeros, grid, backend))


def descend(
    system: ScaleSystem, start: Array, grid: Grid, backend: Backend, sweeps: int, exact: bool
) -> Array:
    """Sweep over the groups, each set to its best storable values given the others; keep only what
    lowers the loss.
    """
    unknowns = backend.copy(solve_exactly(system, start, grid, backend) if exact else start)
    groups = start.shape[1] // 2 if grid.zeros == "offset" else start.shape[1]
    for _ in range(sweeps):
        for group in range(groups):
            if grid.zeros == "offset":
                _improve_pair(system, unknowns, group, group + groups, grid, backend)
            else:
                _improve_scale(system, unknowns, group, grid, backend)
        backend.evaluate(unknowns)
    better = system_loss(system, unknowns) <= system_loss(system, start)
    return backend.where(better[:, None], unknowns, start)


def _improve_scale(
    system: ScaleSystem, unknowns: Array, at: int, grid: Grid, backend: Backend
) -> None:
    """Move one scale to the storable value nearest the minimum of its parabola; a group of zeros
    keeps its scale.
    """
    curvature, slope = system.A[:, at, at], residual(system, unknowns, at)
    step = slope / backend.where(curvature > 0, curvature, 1.0)
    step = store_scales(unknowns[:, at] + step, grid, backend) - unknowns[:, at]
    gain = step * (2 * slope - step * curvature)
    unknowns[:, at] += backend.where(gain > 0, step, 0.0)


def _improve_pair(
    system: ScaleSystem, unknowns: Array, scale: int, offset: int, grid: Grid, backend: Backend
) -> None:
    """Move a scale and its offset together to their joint minimum, the offset making up for the
    scale's rounding.
    """
    A_s, A_o, A_so = (
        system.A[:, scale, scale],
        system.A[:, offset, offset],
        system.A[:, scale, offset],
    )
    r_s, r_o = residual(system, unknowns, scale), residual(system, unknowns, offset)
    determinant = A_s * A_o - A_so * A_so
    solvable = determinant > RIDGE * A_s * A_o
    step_s = backend.where(
        solvable, (r_s * A_o - r_o * A_so) / backend.where(solvable, determinant, 1.0), 0.0
    )
    step_s = store_scales(unknowns[:, scale] + step_s, grid, backend) - unknowns[:, scale]
    step_o = (r_o - A_so * step_s) / backend.where(A_o > 0, A_o, 1.0)
    step_o = backend.round_to(unknowns[:, offset] + step_o, grid.scale_dtype) - unknowns[:, offset]
    gain = step_s * (2 * r_s - step_s * A_s - 2 * step_o * A_so) + step_o * (2 * r_o - step_o * A_o)
    unknowns[:, scale] += backend.where(gain > 0, step_s, 0.0)
    unknowns[:, offset] += backend.where(gain > 0, step_o, 0.0)
