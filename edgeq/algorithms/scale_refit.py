"""Stage 2 of the group scales: codes frozen, scales and free offsets refitted to the layer's error.

Stage 1, the search before the codes are chosen, is `edgeq.algorithms.group_scale`.
"""

from dataclasses import replace

from edgeq.algorithms.problem import Problem, join_rows, rows_of
from edgeq.algorithms.scale_descent import REFIT, Refit, descend
from edgeq.algorithms.scale_system import scale_system
from edgeq.algorithms.super_block_refit import refit_super_blocks
from edgeq.grids.fitting import expand, offsets_for, zero_points
from edgeq.types import Solution

SYSTEM_ELEMENTS = 2**25  # of one chunk of rows' normal equations, where a device holds no more


def refit_scales(problem: Problem, solution: Solution, refit: Refit = REFIT) -> Solution:
    """Minimise tr(Q H Q^T) - 2 <B, Q> over the scales (and free offsets) of Q, rounded to storage.

    With B = W (H + D) that is the true layer loss ||X W.T - X_hat Q.T||^2 up to a constant: the
    drift D of earlier layers takes part. The problem's truth, where it has one, is that B. No row's
    loss is raised.

    Source: the second stage of "two-stage group-scale optimisation", arXiv 2602.02126.
    """
    problem, backend = problem.towards_truth(), problem.backend
    codes, B = solution.codes, problem.linear_term()
    plain = problem.grid.super_blocks is None
    refit_rows = _refit_rows if plain else refit_super_blocks
    unknowns = problem.grid.group_count(codes.shape[1])
    unknowns *= 2 if problem.grid.zeros == "offset" else 1
    elements = max(SYSTEM_ELEMENTS, backend.rows_at_once(1))
    rows = min(backend.rows_at_once(codes.shape[1]), max(1, elements // unknowns**2))
    parts = []
    for start in range(0, codes.shape[0], rows):
        chunk = slice(start, start + rows)
        of_rows = replace(problem, V=None, B=B[chunk])
        parts.append(refit_rows(of_rows, rows_of(solution, chunk), refit))
        backend.evaluate(parts[-1].scales, parts[-1].offsets)
    joined = join_rows(parts, backend.concatenate)
    return replace(joined, codes=codes, outliers=solution.outliers)


def _refit_rows(problem: Problem, solution: Solution, refit: Refit) -> Solution:
    grid, backend, codes = problem.grid, problem.backend, solution.codes
    if grid.zeros == "offset":
        system = scale_system(problem, codes, with_offsets=True)
        unknowns = backend.concatenate([solution.scales, solution.offsets], axis=1)
        unknowns = descend(system, unknowns, refit)
        groups = solution.scales.shape[1]
        return Solution(unknowns[:, :groups], unknowns[:, groups:])
    zeros = zero_points(solution, grid, backend)
    features = codes - expand(zeros, grid, codes.shape[1], backend)
    scales = descend(scale_system(problem, features), solution.scales, refit)
    return Solution(scales, offsets_for(scales, zeros, grid, backend))
