"""Blocks of columns for both loops over them, in shapes that trip kernels up, as plain arrays."""

from dataclasses import dataclass

import numpy as np

from edgeq.grids.types import GRIDS
from edgeq.protocols import Columns
from edgeq.types import Grid

SHAPES = ((1, 1), (1, 40), (7, 3), (63, 1), (63, 33))
"""Columns of a block, and rows of the layer."""
LEVELS = {
    "even": Grid(3, None),
    "offsets": Grid(4, None, "offset"),
    "table": GRIDS["IQ4_NL"],
    "table without gaps": GRIDS["TQ2_0"],
}
"""Grids by what is special about their levels."""


@dataclass(frozen=True)
class Block:
    """What the loops take; each array is exact in float32. Shapes: (columns, out) and squares."""

    grid: Grid
    columns: np.ndarray
    U: np.ndarray
    H: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray
    pull: np.ndarray
    codes: np.ndarray
    wanted: np.ndarray


def make_block(rng, count, rows, levels):
    """A block of correlated columns; on tables a row has scales of zero."""
    grid = LEVELS[levels]
    low, high = grid.level_limits
    mixing = rng.standard_normal((count, 2 * count + 1))
    H = mixing @ mixing.T / count + 0.1 * np.eye(count)
    U = np.linalg.cholesky(np.linalg.inv(H)).T
    scales = rng.uniform(0.5, 1.5, (count, rows)) / (high - low)
    if grid.table:
        scales[:, rows // 2] = 0
    offsets = -scales * (low + high) / 2 if grid.zeros == "offset" else np.zeros_like(scales)
    pull = 1 / (np.diag(H)[:, None] * np.where(scales == 0, 1, scales))
    codes = rng.choice(grid.table or np.arange(low, high + 1), (count, rows))
    wanted = codes + rng.standard_normal((count, rows)) * (high - low) / 8
    columns = rng.standard_normal((count, rows)) / 2
    arrays = (columns, U, (H + H.T) / 2, scales, offsets, pull, codes, wanted)
    exact = [array.astype(np.float32).astype(np.float64) for array in arrays]
    return Block(grid, *exact)


def rounded_by(backend, block):
    """What a backend makes of a block: codes and errors."""
    arrays = (block.columns, block.U, block.scales, block.offsets)
    found = backend.round_columns(*map(backend.asarray, arrays), block.grid)
    return tuple(map(backend.to_numpy, found))


def swept_by(backend, block, *, rounding):
    """How far a backend moves the weights of a block."""
    H, scales, pull = map(backend.asarray, (block.H, block.scales, block.pull))
    columns = Columns(H, scales, pull, block.grid)
    codes, wanted = backend.asarray(block.codes), backend.asarray(block.wanted)
    return backend.to_numpy(backend.sweep_columns(columns, codes, wanted, rounding=rounding))
