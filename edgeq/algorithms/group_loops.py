"""The passes over all groups of a layer that are worth one operation: verbs of backends, too.

Here they stand as they are specified, in terms of the other verbs.
"""

from collections.abc import Iterable

from edgeq.algorithms.scale_descent import improve_pair, improve_scale
from edgeq.algorithms.scale_system import ScaleSystem
from edgeq.grids.fitting import divisor, nearest_levels
from edgeq.protocols import Backend
from edgeq.types import Array, Grid

# Relative: a scale and its mirror image often lose the same, and noise must not choose.
TIE = 1e-5


class GroupLoops:
    """Offers these passes to a backend that has no faster ones of its own."""

    def choose_scales(
        self: Backend,
        values: Array,
        weights: Array,
        tried: Iterable[tuple[Array, Array]],
        grid: Grid,
        best: tuple[Array, Array, Array] | None = None,
    ) -> tuple[Array, Array, Array]:
        for scales, offsets in tried:
            loss = loss_of_groups(values, weights, (scales, offsets), grid, self)
            if best is None:
                best = scales, offsets, loss
                continue
            better = loss < (1 - TIE) * best[2]
            new = zip((scales, offsets, loss), best, strict=True)
            best = tuple(self.where(better, other, kept) for other, kept in new)
            self.evaluate(*best)
        assert best is not None, "something is tried"
        return best

    def sweep_scales(self: Backend, A: Array, c: Array, x: Array, grid: Grid, sweeps: int) -> Array:
        system, unknowns = ScaleSystem(A, c, grid, self), self.copy(x)
        with_offsets = grid.zeros == "offset"
        groups = unknowns.shape[1] // 2 if with_offsets else unknowns.shape[1]
        for _ in range(sweeps):
            for group in range(groups):
                if with_offsets:
                    improve_pair(system, unknowns, group, group + groups)
                else:
                    improve_scale(system, unknowns, group)
            self.evaluate(unknowns)
        return unknowns


def loss_of_groups(
    values: Array, weights: Array, fitted: tuple[Array, Array], grid: Grid, backend: Backend
) -> Array:
    """Give the weighted squared rounding error per row and group, of scales and offsets.

    Shapes: those of `Backend.choose_scales`.
    """
    scales, offsets = fitted
    # in steps: one division per group, not per weight
    inverse = 1 / divisor(scales, grid, backend)
    steps = values * inverse[:, :, None] - (offsets * inverse)[:, :, None]
    levels = nearest_levels(steps, grid, backend)
    if grid.table:  # where scales may be zero, which no step is a multiple of
        error = values - scales[:, :, None] * levels
        return (weights * error * error).sum(axis=-1)
    error = steps - levels
    return scales * scales * (weights * error * error).sum(axis=-1)
