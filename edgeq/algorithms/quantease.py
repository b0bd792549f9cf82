"""QuantEase: cyclic coordinate descent on the codes, each set to its best value given all the
others.
"""

from dataclasses import dataclass

import numpy as np

from edgeq.algorithms.damping import in_order
from edgeq.algorithms.layer_loss import Target, dequantize, keep_better_rows, loss_change
from edgeq.protocols import Backend
from edgeq.types import Array, Grid, GroupScales, NumpyArray

# of a step: a code moves only if that gains more than rounding noise, so that ties keep the old
# code
TIE = 1e-5
RELAXED_EVERY = 3
LAST_RELAXED = 25


@dataclass(frozen=True, slots=True)
class ColumnProblem:
    """A layer with one contiguous row per column, in the precision of bulk work. Shapes: H (in,
    in); others (in, out).

    slack is (B - Q H) of the codes that a descent starts from, taken in working precision: what
    moves away from them need not cancel. pull is 1 / (H_jj s_j): what turns a residual into code
    units.
    """

    slack: Array
    H: Array
    scales: Array
    pull: Array


def descend_codes(
    codes: Array,
    fitted: GroupScales,
    target: Target,
    grid: Grid,
    backend: Backend,
    *,
    sweeps: int = 1,
    relaxed: bool = False,
    order: NumpyArray | None = None,
) -> Array:
    """Lower tr(Q H Q^T) - 2 <B, Q> over the codes at fixed scales, from any codes: refines what a
    solver left.

    u_j = q_j + (B - Q H)_j / H_jj,   q_j <- the grid's point nearest u_j,   column after column in
    `order`

    No rounding sweep raises the loss of any row. With `relaxed`, every third sweep but the last
    writes u_j unrounded to leave local minima; each row then keeps the best codes it came across.

    Shapes: codes (out, in); scales and offsets (out, groups).
    Source: Behdin et al., QuantEase, 2023, algorithm 1 and its relaxation heuristic.
    """
    order = np.arange(codes.shape[1]) if order is None else order
    problem = column_problem(codes, fitted, target, grid, backend, order)
    work = backend.copy(backend.activations(backend.take(codes, order, axis=1)).T)
    moved: Array | None = None
    back, best = np.argsort(order), codes
    leaving = [
        relaxed and i % RELAXED_EVERY == 1 and i < min(sweeps - 1, LAST_RELAXED)
        for i in range(sweeps)
    ]
    for index in range(sweeps):
        rounding = not leaving[index]
        swept, moved = sweep(work, moved, problem, grid, backend, rounding=rounding)
        unchanged = not bool(abs(swept - work).max() > 0)
        work = swept
        if relaxed and rounding:
            best = better_codes(
                best, backend.asarray(backend.take(work, back, 0).T), fitted, target, grid, backend
            )
        if unchanged and not any(leaving[index:]):
            break
    return best if relaxed else backend.asarray(backend.take(work, back, axis=0).T)


def column_problem(
    codes: Array,
    fitted: GroupScales,
    target: Target,
    grid: Grid,
    backend: Backend,
    order: NumpyArray,
) -> ColumnProblem:
    """The problem with its columns in `order`, laid out for sweeps that start from `codes`."""
    slack, H = target.slack(dequantize(codes, fitted, grid, backend)), backend.activations(target.H)
    if (np.diff(order) != 1).any():
        slack, H = backend.take(slack, order, axis=1), in_order(H, order, backend)
    scales = backend.take(
        backend.copy(fitted.scales.T), grid.group_index(codes.shape[1])[order], axis=0
    )
    curvature = backend.take(backend.diagonal(target.H), order, 0).reshape(-1, 1)
    seen = curvature > 0
    pull = backend.where(seen, (1 - TIE) / backend.where(seen, curvature, 1.0), 0.0) / scales
    return ColumnProblem(
        backend.copy(backend.activations(slack).T),
        H,
        backend.activations(scales),
        backend.activations(pull),
    )


def sweep(
    codes: Array,
    moved: Array | None,
    problem: ColumnProblem,
    grid: Grid,
    backend: Backend,
    *,
    rounding: bool,
    block_size: int = 64,
) -> tuple[Array, Array]:
    """One pass over all columns; the residual of each block of them is one product with how far
    weights have moved.

    Shapes: codes, moved (None: nothing has) and the results (in, out).
    """
    codes, first = backend.copy(codes), moved is None
    moved = 0 * codes if moved is None else backend.copy(moved)
    for start in range(0, codes.shape[0], block_size):
        block = slice(start, min(start + block_size, codes.shape[0]))
        known = start if first else codes.shape[0]
        scales, pull, slack = problem.scales[block], problem.pull[block], problem.slack[block]
        wanted = (
            codes[block]
            + ((slack - problem.H[block, :known] @ moved[:known]) if known else slack) * pull
        )
        limit = grid.max_code if rounding else None
        moves = sweep_block(
            codes[block], wanted, problem.H[block, block], scales, pull, limit, backend
        )
        new = codes[block] + moves / scales
        codes[block] = backend.round_clip(new, 0, grid.max_code) if rounding else new
        moved[block] += moves
        backend.evaluate(codes, moved)
    return codes, moved


def sweep_block(
    codes: Array,
    wanted: Array,
    H: Array,
    scales: Array,
    pull: Array,
    max_code: int | None,
    backend: Backend,
) -> Array:
    """How far the weights of a block's columns move, each column after those before it; max_code
    None: no rounding.

    Shapes: H (columns, columns); the others and the result (columns, out).
    """
    moves = backend.copy(codes)
    for j in range(codes.shape[0]):
        target = wanted[j] - (H[j, :j] @ moves[:j]) * pull[j] if j else wanted[j]
        new = target if max_code is None else backend.round_clip(target, 0, max_code)
        moves[j] = (new - codes[j]) * scales[j]
    return moves


def better_codes(
    best: Array, new: Array, fitted: GroupScales, target: Target, grid: Grid, backend: Backend
) -> Array:
    """Row by row the codes of smaller loss. Shapes: (out, in)."""
    old, new_weight = (dequantize(codes, fitted, grid, backend) for codes in (best, new))
    return keep_better_rows(best, new, loss_change(old, new_weight, target), backend)
