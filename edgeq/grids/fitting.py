"""Fit scales to weights and round on a grid, in backend arrays.

Which range or scale is best for a layer is up to `edgeq.algorithms`.
"""

from edgeq.dtypes import LARGEST, SMALLEST
from edgeq.protocols import Backend
from edgeq.types import Array, Grid, Solution


def store_scales(scales: Array, grid: Grid, backend: Backend) -> Array:
    """Round scales to the dtype that the container stores.

    They keep their sign and never reach zero or infinity.
    """
    smallest, largest = SMALLEST[grid.scale_dtype], LARGEST[grid.scale_dtype]
    bounded = backend.where(scales < -largest, -largest, scales)
    bounded = backend.where(scales > largest, largest, bounded)
    stored = backend.round_to(bounded, grid.scale_dtype)
    too_small = abs(stored) < smallest
    return backend.where(too_small, backend.where(scales < 0, -smallest, smallest), stored)


def offsets_for(scales: Array, zeros: Array | float, grid: Grid, backend: Backend) -> Array:
    """Give the offsets that stored scales and zero points lead to, as the container stores them.

    Units: zeros in code units.
    """
    offsets = -(scales * zeros)
    return backend.round_to(offsets, grid.scale_dtype) if grid.zeros == "offset" else offsets


def zero_points(solution: Solution, backend: Backend) -> Array:
    """Give the whole zero points of a symmetric or integer grid.

    Shapes: (out, groups).
    """
    # 255 is the largest zero point of the widest grid, of 8 bits
    return backend.round_clip(-solution.offsets / solution.scales, 0, 255)


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


def fit_min_max(W: Array, grid: Grid, backend: Backend) -> Solution:
    """Fit scales that cover the range of each group.

    That is [min(0, min w), max(0, max w)], or +-max |w| on a symmetric grid.

    Shapes: W (out, in) -> scales and offsets (out, groups).
    Source: Frantar et al., GPTQ, ICLR 2023 (the grid of its public code).
    """
    low, high = group_range(grouped(W, grid, backend), backend)
    return scales_for_range(low, high, grid, backend)


def group_range(groups: Array, backend: Backend) -> tuple[Array, Array]:
    """Find the smallest and largest weight per group, the range widened to contain zero."""
    low, high = backend.min_max(groups, axis=-1)
    return backend.where(low < 0, low, 0.0 * low), backend.where(high > 0, high, 0.0 * high)


def scales_for_range(low: Array, high: Array, grid: Grid, backend: Backend) -> Solution:
    """Fit the scales that spread codes over [low, high]; low <= 0 <= high."""
    if grid.zeros == "symmetric":
        reach = backend.where(high > -low, high, -low)
        scales = store_scales(2 * reach / grid.max_code, grid, backend)
        return Solution(scales, offsets_for(scales, grid.middle, grid, backend))
    scales = store_scales((high - low) / grid.max_code, grid, backend)
    zeros = -low / scales
    if grid.zeros == "integer":
        zeros = backend.round_clip(zeros, 0, grid.max_code)
    return Solution(scales, offsets_for(scales, zeros, grid, backend))


def round_to_codes(W: Array, scales: Array, offsets: Array, grid: Grid, backend: Backend) -> Array:
    """Choose the nearest code of each weight, half to even. Shapes broadcast."""
    return backend.round_clip((W - offsets) / scales, 0, grid.max_code)
