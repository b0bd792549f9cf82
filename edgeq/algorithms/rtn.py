"""Round to nearest: the solver that looks at nothing but the weight."""

from dataclasses import replace

from edgeq.algorithms.problem import Problem
from edgeq.grids.fitting import expand, round_to_codes
from edgeq.types import Solution


def round_to_nearest(problem: Problem, solution: Solution) -> Solution:
    """Choose the nearest code of every weight on the scales of a solution.

    Needs no second moment: also for matrices whose inputs are unknown.
    """
    V, grid, backend = problem.V, problem.grid, problem.backend
    scales = expand(solution.scales, grid, V.shape[1], backend)
    offsets = expand(solution.offsets, grid, V.shape[1], backend)
    return replace(solution, codes=round_to_codes(V, scales, offsets, grid, backend))
