"""Scales of two levels: a float16 for each super-block of a row, times an integer for each group.

What a grid has of them is said by `edgeq.types.SuperBlocks`; which floats and integers are best for
a layer is up to `edgeq.algorithms`.
"""

from dataclasses import replace

import numpy as np

from edgeq.dtypes import LARGEST
from edgeq.grids.fitting import group_range, grouped, scales_for_range, store_scales
from edgeq.protocols import Backend
from edgeq.types import Array, Grid, Solution, SuperBlocks


def blocks_of(grid: Grid) -> SuperBlocks:
    """Give the super-blocks of a grid that has them."""
    assert grid.super_blocks is not None
    return grid.super_blocks


def free_grid(grid: Grid) -> Grid:
    """Give the same levels with a float32 scale (and offset) for each group."""
    return replace(grid, super_blocks=None)


def float_grid(grid: Grid) -> Grid:
    """Give the grid that the floats of super-blocks are stored by: one group for each of them."""
    return Grid(grid.bits, blocks_of(grid).columns, grid.zeros)


def groups_per_block(grid: Grid) -> int:
    """Count the groups of a super-block."""
    assert grid.group_size is not None
    return blocks_of(grid).columns // grid.group_size


def by_block(per_group: Array, grid: Grid) -> Array:
    """Split groups by super-block.

    Shapes: (out, groups) -> (out, super-blocks, groups of each).
    """
    return per_group.reshape(per_group.shape[0], -1, groups_per_block(grid))


def for_groups(per_block: Array, grid: Grid, backend: Backend) -> Array:
    """Repeat a value of a super-block for each of its groups.

    Shapes: (out, super-blocks) -> (out, groups).
    """
    count = groups_per_block(grid)
    index = np.arange(per_block.shape[1] * count, dtype=np.int64) // count
    return backend.take(per_block, index, axis=1)


def nearest_sub_scales(wanted: Array, grid: Grid, backend: Backend) -> Array:
    """Round to integers that scales may be multiples by.

    None is zero where zero is a level: a group of zeros then lies on that level, and its scale can
    still be divided by.
    """
    low, high = blocks_of(grid).scale_limits
    found = backend.round_clip(wanted, low, high)
    if grid.table:
        return found
    smallest = backend.where(wanted < 0, -1.0, 1.0) if low < 0 else 1.0
    return backend.where(found == 0, smallest, found)


def nearest_sub_minima(wanted: Array, grid: Grid, backend: Backend) -> Array:
    """Round to integers that offsets may be multiples by."""
    limits = blocks_of(grid).minimum_limits
    assert limits is not None
    return backend.round_clip(wanted, *limits)


def composed(
    super_scales: Array,
    sub_scales: Array,
    super_minima: Array | None,
    sub_minima: Array | None,
    grid: Grid,
    backend: Backend,
) -> Solution:
    """Multiply both levels out.

    Shapes: super_scales and super_minima (out, super-blocks); sub_scales and sub_minima (out,
    groups); None on a symmetric grid.
    """
    scales = for_groups(super_scales, grid, backend) * sub_scales
    if super_minima is None or sub_minima is None:
        offsets = -(scales * grid.middle)
    else:
        offsets = -(for_groups(super_minima, grid, backend) * sub_minima)
    return Solution(scales, offsets, super_scales=super_scales, super_minima=super_minima)


def sub_scales_of(solution: Solution, grid: Grid, backend: Backend) -> Array:
    """Give the integers that scales are multiples by. Shapes: (out, groups)."""
    return backend.round_clip(
        solution.scales / for_groups(solution.super_scales, grid, backend),
        *blocks_of(grid).scale_limits,
    )


def sub_minima_of(solution: Solution, grid: Grid, backend: Backend) -> Array:
    """Give the integers that offsets are multiples by. Shapes: (out, groups)."""
    floats = for_groups(solution.super_minima, grid, backend)
    floats = backend.where(floats == 0, 1.0, floats)
    return nearest_sub_minima(-solution.offsets / floats, grid, backend)


def largest_of_block(per_group: Array, grid: Grid, backend: Backend) -> Array:
    """Find the value of each super-block that is furthest from zero, with its sign.

    Shapes: (out, groups) -> (out, super-blocks).
    """
    low, high = backend.min_max(by_block(per_group, grid), axis=-1)
    return backend.where(-low > high, low, high)


def minima_of(fitted: Solution, backend: Backend) -> Array:
    """Give how far below zero groups start; integers of minima stand for no other offsets.

    Shapes: (out, groups).
    """
    return backend.where(fitted.offsets < 0, -fitted.offsets, 0.0)


def store_floats(floats: Array, grid: Grid, backend: Backend) -> Array:
    """Round the scales of super-blocks to float16; they keep their sign and never reach zero."""
    return store_scales(floats, float_grid(grid), backend)


def store_minima(minima: Array, backend: Backend) -> Array:
    """Round the minima of super-blocks to float16."""
    largest = LARGEST["float16"]
    return backend.round_to(backend.clip(minima, -largest, largest), "float16")


def split_into_levels(fitted: Solution, grid: Grid, backend: Backend) -> Solution:
    """Store scales in two levels, so that the largest of each super-block takes the last integer.

    Shapes: scales and offsets (out, groups).
    """
    low, high = blocks_of(grid).scale_limits
    reach = largest_of_block(fitted.scales, grid, backend)
    # two's complement reaches further down than up
    super_scales = store_floats(reach / (low if low < 0 else high), grid, backend)
    wanted = fitted.scales / for_groups(super_scales, grid, backend)
    sub_scales = nearest_sub_scales(wanted, grid, backend)
    limits = blocks_of(grid).minimum_limits
    if limits is None:
        return composed(super_scales, sub_scales, None, None, grid, backend)
    minima = minima_of(fitted, backend)
    super_minima = store_minima(largest_of_block(minima, grid, backend) / limits[1], backend)
    of_groups = for_groups(super_minima, grid, backend)
    wanted = minima / backend.where(of_groups == 0, 1.0, of_groups)
    sub_minima = nearest_sub_minima(wanted, grid, backend)
    return composed(super_scales, sub_scales, super_minima, sub_minima, grid, backend)


def fit_min_max(W: Array, grid: Grid, backend: Backend) -> Solution:
    """Fit scales that cover the range of each group.

    That is [min(0, min w), max(0, max w)], or +-max |w| on a symmetric grid.

    Shapes: W (out, in) -> scales and offsets (out, groups).
    Source: Frantar et al., GPTQ, ICLR 2023 (the grid of its public code).
    """
    low, high = group_range(grouped(W, grid, backend), backend)
    fitted = scales_for_range(low, high, free_grid(grid), backend)
    return fitted if grid.super_blocks is None else split_into_levels(fitted, grid, backend)
