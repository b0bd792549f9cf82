"""Codes and scales by turns: sweeps over the codes at fixed scales, refits of the scales at fixed
codes.
"""

from dataclasses import dataclass

from edgeq.algorithms.layer_loss import Target, dequantize, keep_better_rows, loss_change
from edgeq.algorithms.quantease import descend_codes
from edgeq.algorithms.scale_refit import refit_scales
from edgeq.protocols import Backend
from edgeq.types import Array, Grid, GroupScales, NumpyArray


@dataclass(frozen=True, slots=True)
class Turns:
    """How often codes and scales take turns, and how: sweeps per turn, relaxed or not; refits
    solved exactly or not.
    """

    count: int = 1
    sweeps: int = 3
    relaxed: bool = False
    exact: bool = False


def alternate(
    codes: Array,
    fitted: GroupScales,
    target: Target,
    grid: Grid,
    backend: Backend,
    *,
    turns: Turns,
    truth: Array | None = None,
    order: NumpyArray | None = None,
) -> tuple[Array, GroupScales]:
    """Minimise tr(Q H Q^T) - 2 <B, Q> over codes and scales by turns, each turn ending with a refit
    of the scales.

    Both halves lower the loss of every row or leave it. `truth` is another linear term for the
    scales, such as one with the full drift of earlier layers; codes chosen for B may then raise its
    loss, and each row keeps its best turn.

    Shapes: codes and truth (out, in); scales and offsets (out, groups).
    """
    judge = target if truth is None else Target(truth, target.H)
    best = codes, fitted
    for _ in range(turns.count):
        codes, fitted = best
        codes = descend_codes(
            codes,
            fitted,
            target,
            grid,
            backend,
            sweeps=turns.sweeps,
            relaxed=turns.relaxed,
            order=order,
        )
        fitted = refit_scales(codes, fitted, judge.B, judge.H, grid, backend, exact=turns.exact)
        best = (
            (codes, fitted)
            if truth is None
            else better_rows(best, (codes, fitted), judge, grid, backend)
        )
    return best


def better_rows(
    old: tuple[Array, GroupScales],
    new: tuple[Array, GroupScales],
    target: Target,
    grid: Grid,
    backend: Backend,
) -> tuple[Array, GroupScales]:
    """Row by row the solution of smaller loss: the new one only where it is better."""
    weights = [dequantize(codes, fitted, grid, backend) for codes, fitted in (old, new)]
    change = loss_change(weights[0], weights[1], target)
    codes = keep_better_rows(old[0], new[0], change, backend)
    scales = keep_better_rows(old[1].scales, new[1].scales, change, backend)
    offsets = keep_better_rows(old[1].offsets, new[1].offsets, change, backend)
    return codes, GroupScales(scales, offsets)
