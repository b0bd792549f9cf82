"""The loops over columns in MLX: a Metal kernel on Apple's GPUs, NumPy elsewhere."""

import mlx.core as mx

from edgeq.algorithms.column_loops import ColumnLoops
from edgeq.protocols import Columns
from edgeq.types import Grid
from edgeq_backends import numpy_loops
from edgeq_backends.mlx import metal_loops
from edgeq_backends.mlx.in_numpy import look_at


class MlxColumnLoops(ColumnLoops):
    """Offers both loops to the MLX backend."""

    def round_columns(
        self, columns: mx.array, U: mx.array, scales: mx.array, offsets: mx.array, grid: Grid
    ) -> tuple[mx.array, mx.array]:
        if runs_in_metal(columns):
            return metal_loops.round_columns(columns, U, scales, offsets, grid)
        block, factor, steps, shifts = look_at(columns, U, scales, offsets)
        codes, errors = numpy_loops.round_columns(block, factor, steps, shifts, grid)
        return mx.array(codes), mx.array(errors)

    def sweep_columns(
        self, columns: Columns, codes: mx.array, wanted: mx.array, *, rounding: bool
    ) -> mx.array:
        if runs_in_metal(codes):
            return metal_loops.sweep_columns(columns, codes, wanted, rounding=rounding)
        H, scales, pull, before, best = look_at(
            columns.H, columns.scales, columns.pull, codes, wanted
        )
        here = Columns(H, scales, pull, columns.grid)
        return mx.array(numpy_loops.sweep_columns(here, before, best, rounding=rounding))


def runs_in_metal(block: mx.array) -> bool:
    """Say whether a block is computed by a kernel; wider ones than the core asks for are not."""
    return metal_loops.runs_here() and len(block) <= metal_loops.MOST_COLUMNS
