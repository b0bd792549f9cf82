"""Round to nearest: the solver that looks at nothing but the weight."""

from edgeq.grids.fitting import expand, round_to_codes
from edgeq.protocols import Backend
from edgeq.types import Array, Grid, GroupScales


def round_to_nearest(V: Array, fitted: GroupScales, grid: Grid, backend: Backend) -> Array:
    """The nearest code of every weight. Shapes: (out, in) -> codes (out, in)."""
    in_features = V.shape[1]
    scales = expand(fitted.scales, grid, in_features, backend)
    offsets = expand(fitted.offsets, grid, in_features, backend)
    return round_to_codes(V, scales, offsets, grid, backend)
