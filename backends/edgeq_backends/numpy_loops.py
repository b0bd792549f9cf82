"""The loops over columns on a CPU, in NumPy: its operations start faster than a framework's.

What they compute is specified by `edgeq.algorithms.column_loops`. There, each column hands its
error on; here, each fetches what those before it did to it, by one product.
"""

import numpy as np

from edgeq.protocols import Columns
from edgeq.types import Grid, NumpyArray
from edgeq_backends.half_steps import nearest_in_table


def round_columns(
    columns: NumpyArray, U: NumpyArray, scales: NumpyArray, offsets: NumpyArray, grid: Grid
) -> tuple[NumpyArray, NumpyArray]:
    """Do what `Backend.round_columns` says."""
    codes, errors, left = np.empty_like(columns), np.empty_like(columns), np.empty_like(columns[0])
    steps = np.where(scales == 0, 1, scales) if grid.table else scales
    shares = np.ascontiguousarray(U.T)
    for j in range(len(columns)):
        code, error = codes[j], errors[j]
        np.dot(shares[j, :j], errors[:j], out=left)
        np.subtract(columns[j], left, out=left)
        np.subtract(left, offsets[j], out=code)
        np.divide(code, steps[j], out=code)
        to_levels(code, grid)
        np.multiply(scales[j], code, out=error)
        np.add(error, offsets[j], out=error)
        np.subtract(left, error, out=error)
        np.divide(error, U[j, j], out=error)
    return codes, errors


def sweep_columns(
    columns: Columns, codes: NumpyArray, wanted: NumpyArray, *, rounding: bool
) -> NumpyArray:
    """Do what `Backend.sweep_columns` says."""
    H, scales, pull, grid = columns.H, columns.scales, columns.pull, columns.grid
    moves, new = np.empty_like(codes), np.empty_like(codes[0])
    for j in range(len(codes)):
        np.dot(H[j, :j], moves[:j], out=new)
        np.multiply(new, pull[j], out=new)
        np.subtract(wanted[j], new, out=new)
        if rounding:
            to_levels(new, grid)
        np.subtract(new, codes[j], out=new)
        np.multiply(new, scales[j], out=moves[j])
    return moves


def to_levels(x: NumpyArray, grid: Grid) -> None:
    """Choose the nearest levels, half to even where they are even, in the place of x."""
    low, high = grid.level_limits
    if grid.table and high - low > grid.max_code:
        x[...] = nearest_in_table(x, grid.table)
        return
    np.rint(x, out=x)
    np.maximum(x, low, out=x)
    np.minimum(x, high, out=x)
