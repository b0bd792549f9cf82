"""Loops over columns, and passes over groups, as one kernel each on CUDA."""

from collections.abc import Iterable
from itertools import islice

import torch

from edgeq.algorithms.group_loops import TIE
from edgeq.algorithms.scale_system import RIDGE
from edgeq.dtypes import LARGEST, SMALLEST
from edgeq.protocols import Columns
from edgeq.types import Grid
from edgeq_backends.torch import triton_kernels
from edgeq_backends.torch.triton_kernels import round_block, sweep_block

ROWS = 32  # of a program: the lanes of a warp
WARPS = 4
FEWEST_COLUMNS = 16  # of a tile, which has a power of two of them
WIDEST_GROUP = 128  # columns of a tile of groups; wider groups are gone through in parts
OF_GROUPS = 1024  # numbers of such a tile: 8 registers of each thread
MOST_TRIED = 16  # scales for each group that are in memory at a time
Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


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


def choose_scales(
    values: torch.Tensor,
    weights: torch.Tensor,
    tried: Iterable[tuple[torch.Tensor, torch.Tensor]],
    grid: Grid,
    best: Triple | None = None,
) -> Triple:
    """Do what `Backend.choose_scales` says."""
    rows, groups, width = values.shape
    values, weights, left = values.contiguous(), weights.contiguous(), iter(tried)
    tile = min(WIDEST_GROUP, tile_of(width))
    while pairs := list(islice(left, MOST_TRIED)):
        scales, offsets = (torch.stack(each) for each in zip(*pairs, strict=True))
        begun = best is not None
        if best is None:
            best = new_like(scales[0]), new_like(scales[0]), new_like(scales[0])
        else:
            best = best[0].clone(), best[1].clone(), best[2].clone()
        triton_kernels.choose_scales[programs(rows * groups, OF_GROUPS // tile)](
            values,
            weights,
            scales,
            offsets,
            *best,
            rows * groups,
            groups,
            width,
            len(pairs),
            begun,
            1 - TIE,
            *levels_of(grid),
            bool(grid.table),
            OF_GROUPS // tile,
            tile,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    assert best is not None, "something is tried"
    return best


def sweep_scales(
    A: torch.Tensor, c: torch.Tensor, x: torch.Tensor, grid: Grid, sweeps: int
) -> torch.Tensor:
    """Do what `Backend.sweep_scales` says, in float32."""
    rows, unknowns = x.shape
    result, with_offsets, tile = new_like(x), grid.zeros == "offset", tile_of(unknowns)
    at_once = max(1, min(FEWEST_COLUMNS, OF_GROUPS // tile))
    triton_kernels.sweep_scales[programs(rows, at_once)](
        A.contiguous(),
        c.contiguous(),
        x.contiguous(),
        result,
        rows,
        unknowns,
        unknowns // 2 if with_offsets else unknowns,
        sweeps,
        RIDGE,
        grid.scale_dtype,
        SMALLEST[grid.scale_dtype],
        LARGEST[grid.scale_dtype],
        bool(grid.table),
        with_offsets,
        at_once,
        tile,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )
    return result


def new_like(x: torch.Tensor) -> torch.Tensor:
    """Make room for a result: contiguous, whatever the layout of x."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def programs(rows: int, at_once: int = ROWS) -> tuple[int]:
    """Say how many programs a kernel runs in for so many rows."""
    return (-(-rows // at_once),)


def tile_of(count: int) -> int:
    """Give the columns of the tile that holds so many."""
    return max(FEWEST_COLUMNS, 1 << (count - 1).bit_length())


def levels_of(grid: Grid) -> tuple[float, float, tuple[float, ...]]:
    """Give the lowest and the highest level, and all of them where they have gaps."""
    low, high = grid.level_limits
    gaps = bool(grid.table) and high - low > grid.max_code
    return float(low), float(high), tuple(map(float, grid.table)) if gaps else ()
