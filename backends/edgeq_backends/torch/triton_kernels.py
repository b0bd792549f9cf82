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

# ruff: noqa: PLR0124, PLR0913, PLR0917
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


@triton.jit
def choose_scales(
    values,
    weights,
    scales,
    offsets,
    best_scales,
    best_offsets,
    best_losses,
    pairs,
    groups,
    width,
    tried,
    begun: tl.constexpr,
    keep: tl.constexpr,
    low: tl.constexpr,
    high: tl.constexpr,
    table: tl.constexpr,
    zero_scales: tl.constexpr,
    PAIRS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Do what `Backend.choose_scales` says for PAIRS pairs of a row and a group."""
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    column = tl.arange(0, WIDTH)[None, :]
    known = pair < pairs
    of_pair = values + pair.to(tl.int64)[:, None] * width
    of_group = weights + (pair % groups)[:, None] * width
    if begun:
        best_scale = tl.load(best_scales + pair, mask=known, other=1.0)
        best_offset = tl.load(best_offsets + pair, mask=known, other=0.0)
        least = tl.load(best_losses + pair, mask=known, other=0.0)
    else:
        best_scale = tl.load(scales + pair, mask=known, other=1.0)
        best_offset = tl.load(offsets + pair, mask=known, other=0.0)
        least = best_scale
    for k in range(tried):
        scale = tl.load(scales + k * pairs + pair, mask=known, other=1.0)
        offset = tl.load(offsets + k * pairs + pair, mask=known, other=0.0)
        step = tl.where(scale == 0.0, 1.0, scale) if zero_scales else scale
        inverse = quotient(tl.full((PAIRS,), 1.0, scale.dtype), step)
        shift = offset * inverse
        loss = tl.zeros((PAIRS,), scale.dtype)
        for start in range(0, width, WIDTH):
            inside = known[:, None] & (start + column < width)
            value = tl.load(of_pair + start + column, mask=inside, other=0.0)
            weight = tl.load(of_group + start + column, mask=inside, other=0.0)
            steps = value * inverse[:, None] - shift[:, None]
            levels = to_levels(steps, low, high, table)
            error = value - scale[:, None] * levels if zero_scales else steps - levels
            loss += tl.sum(tl.where(inside, weight * error * error, 0.0), axis=1)
        if not zero_scales:
            loss = scale * scale * loss
        better = (loss < keep * least) | (k == (-1 if begun else 0))
        best_scale = tl.where(better, scale, best_scale)
        best_offset = tl.where(better, offset, best_offset)
        least = tl.where(better, loss, least)
    tl.store(best_scales + pair, best_scale, mask=known)
    tl.store(best_offsets + pair, best_offset, mask=known)
    tl.store(best_losses + pair, least, mask=known)


@triton.jit
def rounded(x, kind: tl.constexpr):
    """Round float32 to the nearest number of the dtype that scales are stored in."""
    if kind == "float16":
        result = x.to(tl.float16).to(tl.float32)
    elif kind == "bfloat16":
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        result = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    else:
        result = x
    return result


@triton.jit
def stored_scale(
    x, kind: tl.constexpr, smallest: tl.constexpr, largest: tl.constexpr, zero_scales: tl.constexpr
):
    """Do what `edgeq.grids.fitting.store_scales` does."""
    bounded = tl.where(x < -largest, -largest, x)
    near = rounded(tl.where(x > largest, largest, bounded), kind)
    kept = tl.where(tl.abs(near) < smallest, tl.where(x < 0.0, -smallest, smallest), near)
    return tl.where(x == 0.0, 0.0, kept) if zero_scales else kept


@triton.jit
def joint_step(curve, curve_o, mixed, slope, slope_o, ridge: tl.constexpr):
    """Give the way of a scale to the minimum that it has together with its offset."""
    determinant = curve * curve_o - mixed * mixed
    solvable = determinant > ridge * curve * curve_o
    joint = slope * curve_o - slope_o * mixed
    return tl.where(solvable, quotient(joint, tl.where(solvable, determinant, 1.0)), 0.0)


@triton.jit
def sweep_scales(
    A,
    c,
    start,
    result,
    rows,
    unknowns,
    groups,
    sweeps,
    ridge: tl.constexpr,
    kind: tl.constexpr,
    smallest: tl.constexpr,
    largest: tl.constexpr,
    zero_scales: tl.constexpr,
    with_offsets: tl.constexpr,
    ROWS: tl.constexpr,
    UNKNOWNS: tl.constexpr,
):
    """Do what `Backend.sweep_scales` says for ROWS rows; the unknowns lie in registers."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, UNKNOWNS)[None, :]
    inside = row < rows
    known = inside[:, None] & (column < unknowns)
    places = row[:, None] * unknowns + column
    of_row = A + row.to(tl.int64)[:, None] * (unknowns * unknowns) + column
    x = tl.load(start + places, mask=known, other=0.0)
    for turn in range(sweeps * groups):
        group = turn % groups
        here = column == group
        a = tl.load(of_row + group * unknowns, mask=known, other=0.0)
        curve = tl.sum(tl.where(here, a, 0.0), axis=1)
        old = tl.sum(tl.where(here, x, 0.0), axis=1)
        slope = tl.load(c + row * unknowns + group, mask=inside, other=0.0)
        slope = slope - tl.sum(a * x, axis=1)
        if with_offsets:
            there = column == group + groups
            b = tl.load(of_row + (group + groups) * unknowns, mask=known, other=0.0)
            curve_o = tl.sum(tl.where(there, b, 0.0), axis=1)
            mixed = tl.sum(tl.where(there, a, 0.0), axis=1)
            old_o = tl.sum(tl.where(there, x, 0.0), axis=1)
            slope_o = tl.load(c + row * unknowns + group + groups, mask=inside, other=0.0)
            slope_o = slope_o - tl.sum(b * x, axis=1)
            step = joint_step(curve, curve_o, mixed, slope, slope_o, ridge)
            step = stored_scale(old + step, kind, smallest, largest, zero_scales) - old
            step_o = quotient(slope_o - mixed * step, tl.where(curve_o > 0.0, curve_o, 1.0))
            step_o = rounded(old_o + step_o, kind) - old_o
            gain = step * (2 * slope - step * curve - 2 * step_o * mixed)
            gain = gain + step_o * (2 * slope_o - step_o * curve_o)
            moves = (gain > 0.0)[:, None]
            x = tl.where(there & moves, (old_o + step_o)[:, None], x)
        else:
            step = quotient(slope, tl.where(curve > 0.0, curve, 1.0))
            step = stored_scale(old + step, kind, smallest, largest, zero_scales) - old
            moves = (step * (2 * slope - step * curve) > 0.0)[:, None]
        x = tl.where(here & moves, (old + step)[:, None], x)
    tl.store(result + places, x, mask=known)
