"""The loops over columns on Apple's GPUs: one Metal kernel for a block, one thread for each row.

What they compute is specified by `edgeq.algorithms.column_loops`. A thread keeps what it hands on
from column to column in its registers, which is why the number of columns is known when a kernel
is compiled; the matrix that all threads read lies in memory that they share.

MLX writes the signatures, and compiles a body when it meets new template arguments.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from edgeq.protocols import Columns
from edgeq.types import Grid
from edgeq_backends.half_steps import half_step_limits, nearest_by_half_step

MOST_COLUMNS = 64  # of a block, whose matrix then takes half of the memory that threads share
ROWS_TOGETHER = 32  # share one copy of that matrix: as many threads as run in step

LEVELS = """
// The nearest level, half to even where levels are even. NaN stays NaN, which clamp would lose.
// limits are those of levels, or twice those of a table with gaps, looked up by half steps.
template <bool GAPS, typename Limits, typename Table>
inline float nearest_level(float x, Limits limits, Table nearest) {
    if (x != x) {
        return x;
    }
    if (GAPS) {
        float step = metal::clamp(metal::ceil(2 * x), limits[0], limits[1]);
        return nearest[int(step - limits[0])];
    }
    return metal::clamp(metal::rint(x), limits[0], limits[1]);
}
"""

SHARE = """
    threadgroup float matrix[N * N];
    for (uint i = thread_index_in_threadgroup; i < N * N; i += threads_per_threadgroup.x) {
        matrix[i] = %s[i];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint rows = %s_shape[1];
    const uint row = thread_position_in_grid.x;
"""

ROUND = (
    SHARE % ("U", "columns")
    + """
    float work[N];
    for (int j = 0; j < N; ++j) {
        work[j] = columns[j * rows + row];
    }
    for (int j = 0; j < N; ++j) {
        const uint at = j * rows + row;
        const float scale = scales[at];
        const float offset = offsets[at];
        const float step = ZEROS && scale == 0 ? 1 : scale;
        const float code = nearest_level<GAPS>((work[j] - offset) / step, limits, nearest);
        const float error = (work[j] - (scale * code + offset)) / matrix[j * N + j];
        codes[at] = code;
        errors[at] = error;
        for (int k = j + 1; k < N; ++k) {
            work[k] -= matrix[j * N + k] * error;
        }
    }
"""
)

SWEEP = (
    SHARE % ("H", "codes")
    + """
    float moved[N];
    for (int j = 0; j < N; ++j) {
        const uint at = j * rows + row;
        float product = 0;
        for (int k = 0; k < j; ++k) {
            product += matrix[j * N + k] * moved[k];
        }
        float code = wanted[at] - product * pull[at];
        if (ROUNDING) {
            code = nearest_level<GAPS>(code, limits, nearest);
        }
        moved[j] = (code - codes[at]) * scales[at];
        moves[at] = moved[j];
    }
"""
)

KERNELS: Mapping[str, Mapping[str, Any]] = {
    "round_columns": {
        "input_names": ["columns", "U", "scales", "offsets", "limits", "nearest"],
        "output_names": ["codes", "errors"],
        "source": ROUND,
    },
    "sweep_columns": {
        "input_names": ["H", "scales", "pull", "codes", "wanted", "limits", "nearest"],
        "output_names": ["moves"],
        "source": SWEEP,
    },
}


def runs_here() -> bool:
    """Say whether arrays are computed on a GPU for which Metal compiles kernels."""
    return mx.metal.is_available() and mx.default_device().type == mx.DeviceType.gpu


def round_columns(
    columns: mx.array, U: mx.array, scales: mx.array, offsets: mx.array, grid: Grid
) -> tuple[mx.array, mx.array]:
    """Do what `Backend.round_columns` says."""
    codes, errors = kernel("round_columns")(
        inputs=[columns, U, scales, offsets, *levels_of(grid)],
        template=[("N", len(columns)), ("GAPS", has_gaps(grid)), ("ZEROS", bool(grid.table))],
        **results_of(columns, 2),
    )
    return codes, errors


def sweep_columns(
    columns: Columns, codes: mx.array, wanted: mx.array, *, rounding: bool
) -> mx.array:
    """Do what `Backend.sweep_columns` says."""
    grid = columns.grid
    moves: mx.array = kernel("sweep_columns")(
        inputs=[columns.H, columns.scales, columns.pull, codes, wanted, *levels_of(grid)],
        template=[("N", len(codes)), ("GAPS", has_gaps(grid)), ("ROUNDING", rounding)],
        **results_of(codes, 1),
    )[0]
    return moves


@cache
def kernel(name: str) -> Any:
    """Make a kernel, which MLX compiles when it runs."""
    return mx.fast.metal_kernel(name=f"edgeq_{name}", header=LEVELS, **KERNELS[name])


def has_gaps(grid: Grid) -> bool:
    """Say whether levels of a grid lie further apart than one."""
    low, high = grid.level_limits
    return high - low > grid.max_code


@cache
def levels_of(grid: Grid) -> tuple[mx.array, mx.array]:
    """Give the limits of levels and the nearest ones by half steps; none where they have no gaps.

    Shapes: (2,) and (half steps,).
    """
    if not has_gaps(grid):
        return mx.array(grid.level_limits, mx.float32), mx.zeros(1)
    nearest = nearest_by_half_step(grid.table).astype(np.float32)
    return mx.array(half_step_limits(grid.table), mx.float32), mx.array(nearest)


def results_of(like: mx.array, count: int) -> dict[str, Any]:
    """Ask for results in the shape of a block, from one thread for each of its rows."""
    rows = like.shape[1]
    return {
        "grid": (rows, 1, 1),
        "threadgroup": (ROWS_TOGETHER, 1, 1),
        "output_shapes": [like.shape] * count,
        "output_dtypes": [mx.float32] * count,
    }
