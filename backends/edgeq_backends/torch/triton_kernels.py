"""Triton's kernels of the loops over the columns of a block.

What they compute is specified by `edgeq.algorithms.column_loops`. A program has ROWS rows of the
layer and all columns of the block, as a tile (columns, rows) in registers: a lane of each warp is a
row, and the warps share the columns. Reads and writes of it then are whole lines of memory, the
arithmetic of a column needs no exchange but one sum over the warps, and a tile of 128 columns is 32
registers of each thread: two tiles of float32, with what goes along, are 180 of 255. Layers of
4,096 rows are 128 programs, about one for each of the 132 multiprocessors of an H100; of wider ones
two lie on each of them side by side. Fewer rows would leave lanes idle; with more, a layer of usual
width would leave multiprocessors idle.

Sums run in the order of the plain loop, and products are to be rounded before they are added
(enable_fp_fusion off): kernels give the numbers of the plain loop on any device.
"""

# ruff: noqa: PLR0913, PLR0917
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

# adding it to a number far smaller leaves no fraction
TO_WHOLE = tl.constexpr(1.5 * 2**23)
TO_WHOLE_64 = tl.constexpr(1.5 * 2**52)


@triton.jit
def to_levels(x, low: tl.constexpr, high: tl.constexpr, table: tl.constexpr):
    """Choose the nearest levels, half to even, or the lower of two as near on a table."""
    x = tl.clamp(x, low, high, propagate_nan=tl.PropagateNan.ALL)
    if len(table) == 0:
        whole = TO_WHOLE if x.dtype == tl.float32 else TO_WHOLE_64
        nearest = (x + whole) - whole
    else:
        nearest = table[0] + (x - x)  # NaN stays NaN
        for i in tl.static_range(1, len(table)):
            nearest = tl.where(x > 0.5 * (table[i - 1] + table[i]), table[i], nearest)
    return nearest


@triton.jit
def quotient(x, y):
    """Divide as IEEE 754 says; plain division of float32 is not as exact."""
    if x.dtype == tl.float32:
        result = tl.div_rn(x, y)
    else:
        result = x / y
    return result


@triton.jit
def round_block(
    columns,
    U,
    scales,
    offsets,
    codes,
    errors,
    rows,
    count,
    U_row,
    U_column,
    low: tl.constexpr,
    high: tl.constexpr,
    table: tl.constexpr,
    zero_scales: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Do what `Backend.round_columns` says for ROWS rows of one block."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = row < rows
    places = column[:, None] * rows + row[None, :]
    known = (column < count)[:, None] & inside[None, :]
    work = tl.load(columns + places, mask=known, other=0.0)
    chosen = work
    for j in range(count):
        here = (column == j)[:, None]
        left = tl.sum(tl.where(here, work, 0.0), axis=0)
        at = j * rows + row
        scale = tl.load(scales + at, mask=inside, other=1.0)
        offset = tl.load(offsets + at, mask=inside, other=0.0)
        later = (column > j) & (column < count)
        shares = tl.load(U + j * U_row + column * U_column, mask=later, other=0.0)
        step = tl.where(scale == 0.0, 1.0, scale) if zero_scales else scale
        code = to_levels(quotient(left - offset, step), low, high, table)
        error = left - (scale * code + offset)
        error = quotient(error, tl.load(U + j * (U_row + U_column)))
        moved = work - shares[:, None] * error[None, :]
        # what comes before keeps its numbers where an error is infinite, too
        work = tl.where(later[:, None], moved, tl.where(here, error[None, :], work))
        chosen = tl.where(here, code[None, :], chosen)
    tl.store(codes + places, chosen, mask=known)
    tl.store(errors + places, work, mask=known)


@triton.jit
def sweep_block(
    H,
    scales,
    pull,
    codes,
    wanted,
    moves,
    rows,
    count,
    H_row,
    H_column,
    low: tl.constexpr,
    high: tl.constexpr,
    table: tl.constexpr,
    rounding: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Do what `Backend.sweep_columns` says for ROWS rows of one block."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = row < rows
    places = column[:, None] * rows + row[None, :]
    # of columns that were gone through how far they moved, of others what that does to them
    work = tl.zeros((COLUMNS, ROWS), wanted.dtype.element_ty)
    for j in range(count):
        here = (column == j)[:, None]
        felt = tl.sum(tl.where(here, work, 0.0), axis=0)
        at = j * rows + row
        new = tl.load(wanted + at, mask=inside, other=0.0)
        new = new - felt * tl.load(pull + at, mask=inside, other=0.0)
        if rounding:
            new = to_levels(new, low, high, table)
        move = new - tl.load(codes + at, mask=inside, other=0.0)
        move = move * tl.load(scales + at, mask=inside, other=0.0)
        later = (column > j) & (column < count)
        shares = tl.load(H + j * H_column + column * H_row, mask=later, other=0.0)
        moved = work + shares[:, None] * move[None, :]
        work = tl.where(later[:, None], moved, tl.where(here, move[None, :], work))
    tl.store(moves + places, work, mask=(column < count)[:, None] & inside[None, :])
