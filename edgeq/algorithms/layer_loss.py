"""The loss of a layer from its moments alone, row by row: tr(Q H Q^T) - 2 <B, Q>, up to a
constant.
"""

from dataclasses import dataclass

from edgeq.grids.fitting import expand
from edgeq.protocols import Backend
from edgeq.types import Array, Grid, GroupScales


@dataclass(frozen=True, slots=True)
class Target:
    """What a layer's weight Q should minimise: tr(Q H Q^T) - 2 <B, Q>. B = V H makes V the target.

    V is given where B is of that form. Shapes: B and V (out, in); H (in, in).
    """

    B: Array
    H: Array
    V: Array | None = None

    def slack(self, Q: Array) -> Array:
        """B - Q H, half of the loss's fall in each weight. Shapes: (out, in)."""
        if self.V is None:
            return self.B - Q @ self.H
        return (self.V - Q) @ self.H  # no large numbers that cancel: a float32 backend needs that


def dequantize(codes: Array, fitted: GroupScales, grid: Grid, backend: Backend) -> Array:
    """The weights that codes stand for. Shapes: codes (out, in)."""
    in_features = codes.shape[1]
    scales = expand(fitted.scales, grid, in_features, backend)
    return scales * codes + expand(fitted.offsets, grid, in_features, backend)


def loss_change(old: Array, new: Array, target: Target) -> Array:
    """By how much the loss of each row grows from one weight to another.

    d H d^T - 2 <B - Q_old H, d>, with d = Q_new - Q_old: no constant that would swallow small
    differences.

    Shapes: old and new (out, in); the result (out,).
    """
    step = new - old
    return ((step @ target.H - 2 * target.slack(old)) * step).sum(axis=-1)


def keep_better_rows(old: Array, new: Array, change: Array, backend: Backend) -> Array:
    """Rows of the new array where the loss fell, of the old one elsewhere. Shapes: (out, ...);
    change (out,).
    """
    return backend.where((change < 0)[:, None], new, old)
