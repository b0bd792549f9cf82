"""Find floats of super-blocks to start from: those whose integers come nearest to free scales.

`edgeq.algorithms.super_block_scales` goes on from there by the rounding loss itself.
"""

from dataclasses import dataclass

import numpy as np

from edgeq.algorithms.rounding_loss import Groups
from edgeq.grids.fitting import round_to_codes
from edgeq.grids.super_blocks import (
    blocks_of,
    by_block,
    composed,
    for_groups,
    largest_of_block,
    minima_of,
    nearest_sub_minima,
    nearest_sub_scales,
    store_floats,
    store_minima,
)
from edgeq.types import Array, Grid, Solution

# Of the last integer: where the largest scale of a super-block is tried to lie. Beyond it, that
# scale is cut, which pays where all others gain.
PLACES = np.linspace(0.6, 1.1, 21)


@dataclass(frozen=True, slots=True)
class Parabola:
    """State how the rounding loss of each group rises around the scale and offset it would have.

    a s^2 + 2 b s o + c o^2, in steps s of the scale and o of the offset, with the codes held.

    Shapes: (out, groups) each; b and c are None on a symmetric grid.
    """

    free: Solution
    a: Array
    b: Array = None
    c: Array = None


def features_of(groups: Groups, fitted: Solution) -> Array:
    """Give what scales multiply in each weight once it is rounded.

    Shapes: (out, groups, columns).
    """
    grid = groups.grid
    scales, offsets = fitted.scales[:, :, None], fitted.offsets[:, :, None]
    codes = round_to_codes(groups.values, scales, offsets, grid, groups.backend)
    return codes if grid.zeros == "offset" else codes - grid.middle


def around(groups: Groups, free: Solution) -> Parabola:
    """Expand the rounding loss around the scales that groups would have by themselves."""
    features = features_of(groups, free)
    a = (groups.weights * features * features).sum(axis=-1)
    if groups.grid.zeros == "symmetric":
        return Parabola(free, a)
    b = (groups.weights * features).sum(axis=-1)
    return Parabola(free, a, b, groups.weights.sum(axis=-1) + 0 * a)


def scanned(parabola: Parabola, grid: Grid, groups: Groups) -> Solution:
    """Find the floats whose nearest integers lose least by the parabolas of their groups."""
    backend, free = groups.backend, parabola.free
    limits = blocks_of(grid)
    top = largest_of_block(free.scales, grid, backend)
    last = limits.scale_limits[0] or limits.scale_limits[1]
    floats = [store_floats(top / (last * float(place)), grid, backend) for place in PLACES]
    if limits.minimum_limits is None:
        return least_of(
            [nearest_to(parabola, one, None, grid, groups) for one in floats], grid, groups
        )
    deepest = largest_of_block(minima_of(free, backend), grid, backend) / limits.minimum_limits[1]
    first = store_minima(deepest, backend)
    tried = [nearest_to(parabola, one, first, grid, groups) for one in floats]
    best = least_of(tried, grid, groups)
    minima = [store_minima(deepest / float(place), backend) for place in PLACES]
    tried = [nearest_to(parabola, best.super_scales, one, grid, groups) for one in minima]
    return least_of(tried, grid, groups)


def nearest_to(
    parabola: Parabola, floats: Array, minima: Array | None, grid: Grid, groups: Groups
) -> tuple[Solution, Array]:
    """Choose integers for given floats: a scale's nearest, and a minimum's that makes up for it.

    Gives the loss of each super-block too.
    """
    backend, free = groups.backend, parabola.free
    sub_scales = nearest_sub_scales(free.scales / for_groups(floats, grid, backend), grid, backend)
    step = for_groups(floats, grid, backend) * sub_scales - free.scales
    if minima is None:
        fitted = composed(floats, sub_scales, None, None, grid, backend)
        return fitted, by_block(parabola.a * step * step, grid).sum(axis=-1)
    wanted = parabola.b / backend.where(parabola.c > 0, parabola.c, 1.0) * step - free.offsets
    units = for_groups(minima, grid, backend)
    sub_minima = nearest_sub_minima(wanted / backend.where(units == 0, 1.0, units), grid, backend)
    fitted = composed(floats, sub_scales, minima, sub_minima, grid, backend)
    shift = fitted.offsets - free.offsets
    loss = parabola.a * step * step + (2 * parabola.b * step + parabola.c * shift) * shift
    return fitted, by_block(loss, grid).sum(axis=-1)


def least_of(tried: list[tuple[Solution, Array]], grid: Grid, groups: Groups) -> Solution:
    """Take, in each super-block, the solution of the least loss."""
    best, least = tried[0]
    for fitted, loss in tried[1:]:
        best = taken_where(loss < least, fitted, best, grid, groups)
        least = groups.backend.where(loss < least, loss, least)
    return best


def taken_where(
    better: Array, new: Solution, old: Solution, grid: Grid, groups: Groups
) -> Solution:
    """Take one solution in the super-blocks that a mask has, another one elsewhere."""
    backend = groups.backend
    of_groups = for_groups(better, grid, backend)
    minima = None
    if new.super_minima is not None:
        minima = backend.where(better, new.super_minima, old.super_minima)
    return Solution(
        backend.where(of_groups, new.scales, old.scales),
        backend.where(of_groups, new.offsets, old.offsets),
        super_scales=backend.where(better, new.super_scales, old.super_scales),
        super_minima=minima,
    )
