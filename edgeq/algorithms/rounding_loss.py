"""What rounding to nearest costs in each group, as the searches for scales weigh it."""

from dataclasses import dataclass

from edgeq.grids.fitting import divisor, nearest_levels
from edgeq.protocols import Backend
from edgeq.types import Array, Grid, Solution


@dataclass(frozen=True, slots=True)
class Groups:
    """Hold the weights of some rows by group, and what an error in each of them costs.

    Shapes: values (out, groups, columns); weights (1, groups, columns).
    """

    values: Array
    weights: Array
    grid: Grid
    backend: Backend


def rounding_loss(groups: Groups, fitted: Solution) -> Array:
    """Give the weighted squared rounding error per row and group.

    Shapes: (out, groups).
    """
    grid, backend = groups.grid, groups.backend
    # in steps: one division per group, not per weight
    inverse = 1 / divisor(fitted.scales, grid, backend)
    steps = groups.values * inverse[:, :, None] - (fitted.offsets * inverse)[:, :, None]
    levels = nearest_levels(steps, grid, backend)
    if grid.table:  # where scales may be zero, which no step is a multiple of
        error = groups.values - fitted.scales[:, :, None] * levels
        return (groups.weights * error * error).sum(axis=-1)
    error = steps - levels
    return fitted.scales * fitted.scales * (groups.weights * error * error).sum(axis=-1)
