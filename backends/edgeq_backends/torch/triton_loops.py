"""The loops over the columns of a block as one kernel each, on CUDA."""

import torch

from edgeq.protocols import Columns
from edgeq.types import Grid
from edgeq_backends.torch.triton_kernels import round_block, sweep_block

ROWS = 32  # of a program: the lanes of a warp
WARPS = 4
FEWEST_COLUMNS = 16  # of a tile, which has a power of two of them


def round_columns(
    columns: torch.Tensor,
    U: torch.Tensor,
    scales: torch.Tensor,
    offsets: torch.Tensor,
    grid: Grid,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what `Backend.round_columns` says."""
    count, rows = columns.shape
    codes, errors = new_like(columns), new_like(columns)
    round_block[programs(rows)](
        columns.contiguous(),
        U,
        scales.contiguous(),
        offsets.contiguous(),
        codes,
        errors,
        rows,
        count,
        *U.stride(),
        *levels_of(grid),
        bool(grid.table),
        tile_of(count),
        ROWS,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )
    return codes, errors


def sweep_columns(
    columns: Columns, codes: torch.Tensor, wanted: torch.Tensor, *, rounding: bool
) -> torch.Tensor:
    """Do what `Backend.sweep_columns` says."""
    count, rows = codes.shape
    H, moves = columns.H, new_like(codes)
    sweep_block[programs(rows)](
        H,
        columns.scales.contiguous(),
        columns.pull.contiguous(),
        codes.contiguous(),
        wanted.contiguous(),
        moves,
        rows,
        count,
        *H.stride(),
        *levels_of(columns.grid),
        rounding,
        tile_of(count),
        ROWS,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )
    return moves


def new_like(x: torch.Tensor) -> torch.Tensor:
    """Make room for a result: contiguous, whatever the layout of x."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def programs(rows: int) -> tuple[int]:
    """Say how many programs a kernel runs in for so many rows."""
    return (-(-rows // ROWS),)


def tile_of(count: int) -> int:
    """Give the columns of the tile that holds so many."""
    return max(FEWEST_COLUMNS, 1 << (count - 1).bit_length())


def levels_of(grid: Grid) -> tuple[float, float, tuple[float, ...]]:
    """Give the lowest and the highest level, and all of them where they have gaps."""
    low, high = grid.level_limits
    gaps = bool(grid.table) and high - low > grid.max_code
    return float(low), float(high), tuple(map(float, grid.table)) if gaps else ()
