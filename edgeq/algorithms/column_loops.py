"""The loops over the columns of a block: the one part of a solve where nothing runs side by side.

They are verbs of backends, since what such a loop costs is the start of its operations. Here they
stand as they are specified, in terms of the other verbs.
"""

from collections.abc import Sequence

from edgeq.grids.fitting import nearest_levels, round_to_codes
from edgeq.protocols import Backend, Columns
from edgeq.types import Array, Grid


class ColumnLoops:
    """Offers both loops to a backend that has no faster ones of its own."""

    notes: Sequence[str] = ()
    columns_at_once = 64
    """Wide enough for products between blocks, narrow enough for a CPU's cache."""

    def round_columns(
        self: Backend, columns: Array, U: Array, scales: Array, offsets: Array, grid: Grid
    ) -> tuple[Array, Array]:
        work, codes, errors = self.copy(columns), self.copy(columns), self.copy(columns)
        pivots = self.to_numpy(self.diagonal(U))
        for j in range(columns.shape[0]):
            codes[j] = round_to_codes(work[j], scales[j], offsets[j], grid, self)
            errors[j] = (work[j] - (scales[j] * codes[j] + offsets[j])) / float(pivots[j])
            work[j + 1 :] -= U[j, j + 1 :].reshape(-1, 1) * errors[j]
        return codes, errors

    def sweep_columns(
        self: Backend, columns: Columns, codes: Array, wanted: Array, *, rounding: bool
    ) -> Array:
        moves = self.copy(codes)
        for j in range(codes.shape[0]):
            new = wanted[j]
            if j:
                new = new - (columns.H[j, :j] @ moves[:j]) * columns.pull[j]
            if rounding:
                new = nearest_levels(new, columns.grid, self)
            moves[j] = (new - codes[j]) * columns.scales[j]
        return moves
