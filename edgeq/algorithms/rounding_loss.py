"""What rounding to nearest costs in each group, as the searches for scales weigh it."""

from dataclasses import dataclass

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
    one = [(fitted.scales, fitted.offsets)]
    return groups.backend.choose_scales(groups.values, groups.weights, one, groups.grid)[2]
