"""The loops over columns in MLX: in NumPy on the CPU, whose memory both share."""

import mlx.core as mx
import numpy as np

from edgeq.protocols import Columns
from edgeq.types import Grid, NumpyArray
from edgeq_backends import numpy_loops


class MlxColumnLoops:
    """Offers both loops to the MLX backend."""

    def round_columns(
        self, columns: mx.array, U: mx.array, scales: mx.array, offsets: mx.array, grid: Grid
    ) -> tuple[mx.array, mx.array]:
        mx.eval(columns, U, scales, offsets)
        codes, errors = numpy_loops.round_columns(
            shared(columns), shared(U), shared(scales), shared(offsets), grid
        )
        return mx.array(codes), mx.array(errors)

    def sweep_columns(
        self, columns: Columns, codes: mx.array, wanted: mx.array, *, rounding: bool
    ) -> mx.array:
        mx.eval(columns.H, columns.scales, columns.pull, codes, wanted)
        here = Columns(
            shared(columns.H), shared(columns.scales), shared(columns.pull), columns.grid
        )
        moves = numpy_loops.sweep_columns(here, shared(codes), shared(wanted), rounding=rounding)
        return mx.array(moves)


def shared(x: mx.array) -> NumpyArray:
    """Look at an array's own memory, for reading."""
    return np.array(x, copy=False)
