"""Fit scales to weights and round on a grid, in backend arrays.

Which range or scale is best for a layer is up to `edgeq.algorithms`; how scales of two levels are
made is said by `edgeq.grids.super_blocks`. Inside of algorithms, codes are levels: on a grid with a
table they are its values, on others the codes themselves.
"""

import itertools

from edgeq.dtypes import LARGEST, SMALLEST
from edgeq.protocols import Backend
from edgeq.types import Array, Grid, Solution


def store_scales(scales: Array, grid: Grid, backend: Backend) -> Array:
    """Round scales to the dtype that the container stores.

    They keep their sign and never reach infinity, nor zero from another value. On a table, which
    need not have a level for zero, zeros stay.
    """
    smallest, largest = SMALLEST[grid.scale_dtype], LARGEST[grid.scale_dtype]
    bounded = backend.where(scales < -largest, -largest, scales)
    bounded = backend.where(scales > largest, largest, bounded)
    stored = backend.round_to(bounded, grid.scale_dtype)
    too_small = abs(stored) < smallest
    kept = backend.where(too_small, backend.where(scales < 0, -smallest, smallest), stored)
    return backend.where(scales == 0, 0.0, kept) if grid.table else kept


def divisor(scales: Array, grid: Grid, backend: Backend) -> Array:
    """Give scales to divide by: all weights of a scale of zero are zero, whatever their levels."""
    return backend.where(scales == 0, 1.0, scales) if grid.table else scales


def offsets_for(scales: Array, zeros: Array | float, grid: Grid, backend: Backend) -> Array:
    """Give the offsets that stored scales and zero points lead to, as the container stores them.

    Units: zeros in code units.
    """
    offsets = -(scales * zeros)
    return backend.round_to(offsets, grid.scale_dtype) if grid.zeros == "offset" else offsets


def zero_points(solution: Solution, grid: Grid, backend: Backend) -> Array:
    """Give the whole zero points of a symmetric or integer grid.

    Shapes: (out, groups).
    """
    # 255 is the largest zero point of the widest grid, of 8 bits
    scales = divisor(solution.scales, grid, backend)
    return backend.round_clip(-solution.offsets / scales, 0, 255)


def grouped(A: Array, grid: Grid, backend: Backend) -> Array:
    """Split columns into groups, a short last group filled up with zeros.

    Shapes: (out, in) -> (out, groups, columns).
    """
    rows, columns = A.shape
    width, groups = grid.columns_per_group(columns), grid.group_count(columns)
    missing = width * groups - columns
    if missing:
        A = backend.concatenate([A, 0 * A[:, :missing]], axis=1)
    return A.reshape(rows, groups, width)


def expand(per_group: Array, grid: Grid, in_features: int, backend: Backend) -> Array:
    """Repeat a value per group for each of its columns.

    Shapes: (out, groups) -> (out, in).
    """
    return backend.take(per_group, grid.group_index(in_features), axis=1)


def group_range(groups: Array, backend: Backend) -> tuple[Array, Array]:
    """Find the smallest and largest weight per group, the range widened to contain zero."""
    low, high = backend.min_max(groups, axis=-1)
    return backend.where(low < 0, low, 0.0 * low), backend.where(high > 0, high, 0.0 * high)


def scales_for_range(low: Array, high: Array, grid: Grid, backend: Backend) -> Solution:
    """Fit the scales that spread codes over [low, high]; low <= 0 <= high.

    For scales of one level.
    """
    if grid.zeros == "symmetric":
        reach = backend.where(high > -low, high, -low)
        steps = max(map(abs, grid.table)) if grid.table else grid.max_code / 2
        scales = store_scales(reach / steps, grid, backend)
        return Solution(scales, offsets_for(scales, grid.middle, grid, backend))
    scales = store_scales((high - low) / grid.max_code, grid, backend)
    zeros = -low / scales
    if grid.zeros == "integer":
        zeros = backend.round_clip(zeros, 0, grid.max_code)
    return Solution(scales, offsets_for(scales, zeros, grid, backend))


def nearest_levels(x: Array, grid: Grid, backend: Backend) -> Array:
    """Choose the nearest level for each number of levels, half to even where they are even."""
    if grid.table and grid.table[-1] - grid.table[0] > grid.max_code:
        return backend.nearest(x, grid.table)
    return backend.round_clip(x, *grid.level_limits)


def round_to_codes(W: Array, scales: Array, offsets: Array, grid: Grid, backend: Backend) -> Array:
    """Choose the nearest code of each weight, half to even. Shapes broadcast."""
    return nearest_levels((W - offsets) / divisor(scales, grid, backend), grid, backend)


def level_gaps(codes: Array, grid: Grid, backend: Backend, *, upwards: bool) -> Array:
    """Give how far the next level is from each one, up or down: zero at the end of the grid."""
    if not grid.table:
        low, high = grid.level_limits
        return backend.clip(high - codes if upwards else codes - low, 0, 1)
    gaps = 0.0 * codes
    for low, high in itertools.pairwise(grid.table):
        gaps = backend.where(codes == (low if upwards else high), float(high - low), gaps)
    return gaps
