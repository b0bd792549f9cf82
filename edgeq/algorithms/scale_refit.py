"""Stage 2 of the group scales: codes frozen, scales and free offsets refitted to the layer's error.

Stage 1, the search before the codes are chosen, is `edgeq.algorithms.group_scale`.
"""

from dataclasses import dataclass, replace

from edgeq.algorithms.problem import Problem, join_rows
from edgeq.algorithms.scale_system import (
    RIDGE,
    ScaleSystem,
    residual,
    scale_system,
    solve_exactly,
    system_loss,
)
from edgeq.grids.fitting import expand, offsets_for, store_scales, zero_points
from edgeq.types import Array, Solution

SYSTEM_ELEMENTS = 2**25  # of one chunk of rows' normal equations: 256 MiB in float64
ROWS_AT_ONCE = 128  # what is made of them on the way fits a cache


@dataclass(frozen=True, slots=True)
class Refit:
    """Say how often scales are gone through, and whether the system is solved exactly first."""

    sweeps: int = 3
    exact: bool = False


REFIT = Refit()


def refit_scales(problem: Problem, solution: Solution, refit: Refit = REFIT) -> Solution:
    """Minimise tr(Q H Q^T) - 2 <B, Q> over the scales (and free offsets) of Q, rounded to storage.

    With B = W (H + D) that is the true layer loss ||X W.T - X_hat Q.T||^2 up to a constant: the
    drift D of earlier layers takes part. The problem's truth, where it has one, is that B. No row's
    loss is raised.

    Source: the second stage of "two-stage group-scale optimisation", arXiv 2602.02126.
    """
    problem, backend = problem.towards_truth(), problem.backend
    codes, B = solution.codes, problem.linear_term()
    groups = problem.grid.group_count(codes.shape[1])
    rows = min(ROWS_AT_ONCE, max(1, SYSTEM_ELEMENTS // (2 * groups) ** 2))
    parts = []
    for start in range(0, codes.shape[0], rows):
        chunk = slice(start, start + rows)
        part = Solution(solution.scales[chunk], solution.offsets[chunk], codes[chunk])
        parts.append(_refit_rows(replace(problem, V=None, B=B[chunk]), part, refit))
        backend.evaluate(parts[-1].scales, parts[-1].offsets)
    joined = join_rows(parts, backend.concatenate)
    return replace(solution, scales=joined.scales, offsets=joined.offsets)


def _refit_rows(problem: Problem, solution: Solution, refit: Refit) -> Solution:
    grid, backend, codes = problem.grid, problem.backend, solution.codes
    if grid.zeros == "offset":
        system = scale_system(problem, codes, with_offsets=True)
        unknowns = backend.concatenate([solution.scales, solution.offsets], axis=1)
        unknowns = descend(system, unknowns, refit)
        groups = solution.scales.shape[1]
        return Solution(unknowns[:, :groups], unknowns[:, groups:])
    zeros = zero_points(solution, backend)
    features = codes - expand(zeros, grid, codes.shape[1], backend)
    scales = descend(scale_system(problem, features), solution.scales, refit)
    return Solution(scales, offsets_for(scales, zeros, grid, backend))


def descend(system: ScaleSystem, start: Array, refit: Refit) -> Array:
    """Sweep over the groups, each set to its best storable values given the others.

    Rows whose loss that does not lower keep their start.

    Shapes: start and result (out, unknowns).
    """
    backend, with_offsets = system.backend, system.grid.zeros == "offset"
    unknowns = backend.copy(solve_exactly(system, start) if refit.exact else start)
    groups = start.shape[1] // 2 if with_offsets else start.shape[1]
    for _ in range(refit.sweeps):
        for group in range(groups):
            if with_offsets:
                _improve_pair(system, unknowns, group, group + groups)
            else:
                _improve_scale(system, unknowns, group)
        backend.evaluate(unknowns)
    better = system_loss(system, unknowns) <= system_loss(system, start)
    return backend.where(better[:, None], unknowns, start)


def _improve_scale(system: ScaleSystem, unknowns: Array, at: int) -> None:
    """Move one scale to the storable value nearest the minimum of its parabola.

    A group of zeros keeps its scale.
    """
    backend = system.backend
    curvature, slope = system.A[:, at, at], residual(system, unknowns, at)
    step = slope / backend.where(curvature > 0, curvature, 1.0)
    step = store_scales(unknowns[:, at] + step, system.grid, backend) - unknowns[:, at]
    gain = step * (2 * slope - step * curvature)
    unknowns[:, at] += backend.where(gain > 0, step, 0.0)


def _improve_pair(system: ScaleSystem, unknowns: Array, scale: int, offset: int) -> None:
    """Move a scale and its offset to their joint minimum, the offset making up for its rounding."""
    backend, dtype = system.backend, system.grid.scale_dtype
    A_s, A_o = system.A[:, scale, scale], system.A[:, offset, offset]
    A_so = system.A[:, scale, offset]
    r_s, r_o = residual(system, unknowns, scale), residual(system, unknowns, offset)
    determinant = A_s * A_o - A_so * A_so
    solvable = determinant > RIDGE * A_s * A_o
    joint = (r_s * A_o - r_o * A_so) / backend.where(solvable, determinant, 1.0)
    step_s = backend.where(solvable, joint, 0.0)
    step_s = store_scales(unknowns[:, scale] + step_s, system.grid, backend) - unknowns[:, scale]
    step_o = (r_o - A_so * step_s) / backend.where(A_o > 0, A_o, 1.0)
    step_o = backend.round_to(unknowns[:, offset] + step_o, dtype) - unknowns[:, offset]
    gain = step_s * (2 * r_s - step_s * A_s - 2 * step_o * A_so) + step_o * (2 * r_o - step_o * A_o)
    unknowns[:, scale] += backend.where(gain > 0, step_s, 0.0)
    unknowns[:, offset] += backend.where(gain > 0, step_o, 0.0)
