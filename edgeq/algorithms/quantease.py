"""QuantEase: cyclic coordinate descent on the codes, each set to its best given the others."""

from dataclasses import dataclass, replace

import numpy as np

from edgeq.algorithms.damping import in_order
from edgeq.algorithms.problem import Problem, better_rows, dequantize
from edgeq.grids.fitting import divisor, nearest_levels
from edgeq.protocols import Backend, Columns
from edgeq.types import Array, NumpyArray, Solution

# Of a step: a code moves only if that gains more than rounding noise; ties keep the old code.
TIE = 1e-5
RELAXED_EVERY = 3  # as in the paper's heuristic
LAST_RELAXED = 25  # its last sweeps round, so that they settle
STEEPEST = 2.0**120  # of a pull: finite in float32, where no residual times infinity is a number


@dataclass(frozen=True, slots=True)
class Sweeps:
    """Say how often codes are gone through, and whether some sweeps leave them unrounded."""

    count: int = 1
    relaxed: bool = False


ONE_SWEEP = Sweeps()


@dataclass(frozen=True, slots=True)
class ColumnProblem:
    """Hold columns of a layer, one contiguous row for each, in the precision of bulk work.

    slack is (B - Q H) of the codes that a descent starts from, taken in working precision: what
    moves away from them need not cancel. Their pull is 1 / (H_jj s_j).

    Shapes: slack (columns, out).
    """

    slack: Array
    columns: Columns
    backend: Backend


def descend_codes(problem: Problem, solution: Solution, sweeps: Sweeps = ONE_SWEEP) -> Solution:
    """Lower tr(Q H Q^T) - 2 <B, Q> over the codes at fixed scales: refines what a solver left.

    u_j = q_j + (B - Q H)_j / H_jj,   q_j <- the grid's point nearest u_j

    goes through column after column in the problem's order. No rounding sweep raises the loss of
    any row. Where they are relaxed, every third sweep but the last writes u_j unrounded to leave
    local minima; each row then keeps the best codes it came across.

    Source: Behdin et al., QuantEase, 2023, algorithm 1 and its relaxation heuristic.
    """
    backend, count, relaxed = problem.backend, sweeps.count, sweeps.relaxed
    in_features = solution.codes.shape[1]
    order = np.arange(in_features) if problem.order is None else problem.order
    laid_out = column_problem(problem, solution, order)
    work = backend.copy(backend.activations(backend.take(solution.codes, order, axis=1)).T)
    back = np.argsort(order)

    def with_codes(codes: Array) -> Solution:
        return replace(solution, codes=backend.asarray(backend.take(codes, back, axis=0).T))

    moved: Array | None = None
    best = solution
    rounded_from = min(count - 1, LAST_RELAXED)
    leaving = [relaxed and i % RELAXED_EVERY == 1 and i < rounded_from for i in range(count)]
    for index in range(count):
        rounding = not leaving[index]
        swept, moved = sweep(laid_out, work, moved, rounding=rounding)
        unchanged = not bool(abs(swept - work).max() > 0)
        work = swept
        if relaxed and rounding:
            best = better_rows(problem, best, with_codes(work))
        if unchanged and not any(leaving[index:]):
            break
    return best if relaxed else with_codes(work)


def column_problem(problem: Problem, solution: Solution, order: NumpyArray) -> ColumnProblem:
    """Lay a problem out for sweeps in `order` that start from the codes of a solution."""
    grid, backend = problem.grid, problem.backend
    slack, H = problem.slack(dequantize(problem, solution)), backend.activations(problem.H)
    if (np.diff(order) != 1).any():
        slack, H = backend.take(slack, order, axis=1), in_order(H, order, backend)
    groups = grid.group_index(solution.codes.shape[1])[order]
    scales = backend.take(backend.copy(solution.scales.T), groups, axis=0)
    curvature = backend.take(backend.diagonal(problem.H), order, 0).reshape(-1, 1)
    seen = curvature > 0
    pull = backend.where(seen, (1 - TIE) / backend.where(seen, curvature, 1.0), 0.0)
    pull = backend.clip(pull / divisor(scales, grid, backend), -STEEPEST, STEEPEST)
    return ColumnProblem(
        backend.copy(backend.activations(slack).T),
        Columns(H, backend.activations(scales), backend.activations(pull), grid),
        backend,
    )


def sweep(
    problem: ColumnProblem,
    codes: Array,
    moved: Array | None,
    *,
    rounding: bool,
    block_size: int | None = None,
) -> tuple[Array, Array]:
    """Go once through all columns, block by block: codes, and how far weights have moved since.

    The residual of each block, of the backend's choice where none is given, is one product with
    that.

    Shapes: codes, moved (None: nothing has) and the results (in, out).
    """
    columns, backend = problem.columns, problem.backend
    codes, first = backend.copy(codes), moved is None
    moved = 0 * codes if moved is None else backend.copy(moved)
    at_once = block_size or backend.columns_at_once
    for start in range(0, codes.shape[0], at_once):
        block = slice(start, min(start + at_once, codes.shape[0]))
        known = start if first else codes.shape[0]
        of_block = replace(
            columns,
            H=columns.H[block, block],
            scales=columns.scales[block],
            pull=columns.pull[block],
        )
        slack = problem.slack[block]
        if known:
            slack = slack - columns.H[block, :known] @ moved[:known]
        wanted = codes[block] + slack * of_block.pull
        moves = backend.sweep_columns(of_block, codes[block], wanted, rounding=rounding)
        new = codes[block] + moves / divisor(of_block.scales, columns.grid, backend)
        codes[block] = nearest_levels(new, columns.grid, backend) if rounding else new
        moved[block] += moves
        backend.evaluate(codes, moved)
    return codes, moved
