"""Refine codes and scales by turns: sweeps over the codes, then a refit of the scales."""

from dataclasses import dataclass

from edgeq.algorithms.problem import Problem, better_rows
from edgeq.algorithms.quantease import Sweeps, descend_codes
from edgeq.algorithms.scale_descent import REFIT, Refit
from edgeq.algorithms.scale_refit import refit_scales
from edgeq.types import Solution

THREE_SWEEPS = Sweeps(3)


@dataclass(frozen=True, slots=True)
class Turns:
    """Say how often codes and scales take turns, and what each turn does."""

    count: int = 1
    sweeps: Sweeps = THREE_SWEEPS
    refit: Refit = REFIT


def alternate(problem: Problem, solution: Solution, turns: Turns) -> Solution:
    """Minimise tr(Q H Q^T) - 2 <B, Q> over codes and scales by turns, each ending with a refit.

    Both halves lower the loss of every row or leave it. Where scales have a truth of their own,
    codes chosen for B may raise the loss towards it; each row then keeps its best turn.
    """
    for _ in range(turns.count):
        swept = descend_codes(problem, solution, turns.sweeps)
        turned = refit_scales(problem, swept, turns.refit)
        if problem.truth is None:
            solution = turned
        else:
            solution = better_rows(problem.towards_truth(), solution, turned)
    return solution
