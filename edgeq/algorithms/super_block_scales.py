"""Stage 1 for scales of two levels: floats of super-blocks and integers of groups, chosen together.

Starts from the scale (and offset) that each group would have by itself, which
`edgeq.algorithms.group_scale` finds.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from edgeq.algorithms.rounding_loss import Groups, rounding_loss
from edgeq.algorithms.super_block_scan import around, features_of, scanned, taken_where
from edgeq.grids.super_blocks import (
    by_block,
    composed,
    for_groups,
    nearest_sub_minima,
    nearest_sub_scales,
    split_into_levels,
    store_floats,
    store_minima,
    sub_minima_of,
    sub_scales_of,
)
from edgeq.types import Array, Grid, Solution

TURNS = 3  # of integers and floats; the loss hardly falls in a fourth
FACTORS = (0.5, 2.0)  # of floats: between which others are tried
SINGULAR = 1e-6  # of the product of both curvatures: below it a float and a minimum do the same


def fit_super_blocks(
    groups: Groups, free: Solution, grid: Grid, *, reach: int = 1, floats: int = 0
) -> Solution:
    """Choose the floats and integers whose rounding error weighs least on the output.

    min over d, m of sum_j importance_j (v_j - Q(v_j))^2 in each super-block: d is first chosen by
    how the loss rises around the groups' own scales, then integers, rounded weights and floats take
    turns, floats by least squares. No turn raises the loss of a super-block. reach says how far
    integers are tried to move in a turn, floats how many more of these are tried by the loss.

    Shapes: those of `Groups`, whose grid has scales of one level; free has these scales.
    Source: stage 1 of "two-stage group-scale optimisation", arXiv 2602.02126, on llama.cpp's grids.
    """
    best = scanned(around(groups, free), grid, groups)
    plainly = split_into_levels(free, grid, groups.backend)
    best, loss = better_blocks(groups, grid, (best, rounding_loss(groups, best)), plainly)
    start, loss = refined(groups, grid, (best, loss), reach)
    best = start
    for by_scale, by_minimum in factors(grid, floats):
        other = refloated(groups, grid, start, by_scale, by_minimum)
        moved, _ = move_integers(groups, grid, (other, rounding_loss(groups, other)), reach)
        for new in (moved, least_squares(groups, grid, moved)):
            best, loss = better_blocks(groups, grid, (best, loss), new)
    return refined(groups, grid, (best, loss), reach)[0] if floats else best


def refined(
    groups: Groups, grid: Grid, best: tuple[Solution, Array], reach: int
) -> tuple[Solution, Array]:
    """Improve integers and floats by turns."""
    for _ in range(TURNS):
        best = move_integers(groups, grid, best, reach)
        best = better_blocks(groups, grid, best, least_squares(groups, grid, best[0]))
        groups.backend.evaluate(best[0].scales, best[0].offsets, best[0].super_scales, best[1])
    return best


def factors(grid: Grid, count: int) -> Iterator[tuple[float, float]]:
    """List by what floats and minima of super-blocks are multiplied to try others.

    Where integers reach further down than up, floats of the other sign are others too.
    """
    tried = np.linspace(*FACTORS, count)
    if grid.zeros == "offset":
        yield from itertools.product(tried.tolist(), repeat=2)
    else:
        yield from ((sign * float(factor), 1.0) for factor in tried for sign in (1, -1))


def refloated(
    groups: Groups, grid: Grid, fitted: Solution, by_scale: float, by_minimum: float
) -> Solution:
    """Multiply the floats of super-blocks, and choose the nearest integers for them."""
    backend = groups.backend
    super_scales = store_floats(by_scale * fitted.super_scales, grid, backend)
    wanted = fitted.scales / for_groups(super_scales, grid, backend)
    sub_scales = nearest_sub_scales(wanted, grid, backend)
    if fitted.super_minima is None:
        return composed(super_scales, sub_scales, None, None, grid, backend)
    super_minima = store_minima(by_minimum * fitted.super_minima, backend)
    units = for_groups(super_minima, grid, backend)
    wanted = -fitted.offsets / backend.where(units == 0, 1.0, units)
    sub_minima = nearest_sub_minima(wanted, grid, backend)
    return composed(super_scales, sub_scales, super_minima, sub_minima, grid, backend)


def better_blocks(
    groups: Groups, grid: Grid, best: tuple[Solution, Array], new: Solution
) -> tuple[Solution, Array]:
    """Take another solution in the super-blocks where its rounding loss is smaller.

    Shapes: losses (out, groups).
    """
    fitted, loss = best
    new_loss = rounding_loss(groups, new)
    better = by_block(new_loss, grid).sum(axis=-1) < by_block(loss, grid).sum(axis=-1)
    kept = groups.backend.where(for_groups(better, grid, groups.backend), new_loss, loss)
    return taken_where(better, new, fitted, grid, groups), kept


def move_integers(
    groups: Groups, grid: Grid, best: tuple[Solution, Array], reach: int
) -> tuple[Solution, Array]:
    """Move the integers of each group by at most reach where that lowers its rounding loss.

    Shapes: losses (out, groups).
    """
    backend, (fitted, loss) = groups.backend, best
    sub_scales, sub_minima = sub_scales_of(fitted, grid, backend), None
    if fitted.super_minima is not None:
        sub_minima = sub_minima_of(fitted, grid, backend)
    steps = range(-reach, reach + 1)
    for by_scale, by_minimum in itertools.product(steps, steps if sub_minima is not None else (0,)):
        scales, minima = nearest_sub_scales(sub_scales + by_scale, grid, backend), None
        if sub_minima is not None:
            minima = nearest_sub_minima(sub_minima + by_minimum, grid, backend)
        moved = composed(fitted.super_scales, scales, fitted.super_minima, minima, grid, backend)
        new_loss = rounding_loss(groups, moved)
        better = new_loss < loss
        sub_scales = backend.where(better, scales, sub_scales)
        if sub_minima is not None:
            sub_minima = backend.where(better, minima, sub_minima)
        loss = backend.where(better, new_loss, loss)
    moved = composed(
        fitted.super_scales, sub_scales, fitted.super_minima, sub_minima, grid, backend
    )
    return moved, loss


def least_squares(groups: Groups, grid: Grid, fitted: Solution) -> Solution:
    """Fit the floats of super-blocks best to the weights with codes and integers held fixed."""
    backend = groups.backend
    features = features_of(groups, fitted)
    sub_scales = sub_scales_of(fitted, grid, backend)

    def total(per_group: Array) -> Array:
        return by_block(per_group, grid).sum(axis=-1)

    weighted = groups.weights * features
    a = total(sub_scales * sub_scales * (weighted * features).sum(axis=-1))
    right = total(sub_scales * (weighted * groups.values).sum(axis=-1))
    alone = backend.where(a > 0, right / backend.where(a > 0, a, 1.0), fitted.super_scales)
    if fitted.super_minima is None:
        floats = store_floats(alone, grid, backend)
        return composed(floats, sub_scales, None, None, grid, backend)
    sub_minima = sub_minima_of(fitted, grid, backend)
    b = -total(sub_scales * sub_minima * weighted.sum(axis=-1))
    c = total(sub_minima * sub_minima * groups.weights.sum(axis=-1))
    below = -total(sub_minima * (groups.weights * groups.values).sum(axis=-1))
    determinant = a * c - b * b
    solvable = determinant > SINGULAR * a * c
    joint = (right * c - below * b) / backend.where(solvable, determinant, 1.0)
    floats = backend.where(solvable, joint, fitted.super_scales)
    floats = store_floats(floats, grid, backend)
    minima = (below - b * floats) / backend.where(c > 0, c, 1.0)
    minima = store_minima(backend.where(c > 0, minima, fitted.super_minima), backend)
    return composed(floats, sub_scales, minima, sub_minima, grid, backend)
