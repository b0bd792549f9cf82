"""Triton's kernels against the loops as they are specified, in shapes and numbers that trip them
up: interpreted where there is no GPU.
"""

import itertools
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgeq.grids.types import GRIDS
from edgeq.protocols import Columns
from edgeq.types import Grid
from edgeq_backends.torch.backend import TorchBackend
from edgeq_backends.torch.column_loops import find_kernels, plain

pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds, and on Linux only")
from edgeq_backends.torch import triton_loops

SYMMETRIC, INTEGER, OFFSET = (Grid(3, 32, zeros) for zeros in ("symmetric", "integer", "offset"))
GRIDS_TRIED = {
    "symmetric": SYMMETRIC,
    "integer": INTEGER,
    "offset": OFFSET,
    "table with gaps": GRIDS["IQ4_NL"],
    "table without": GRIDS["TQ2_0"],
}
SHAPES = {
    "one row": (63, 1),
    "one column": (1, 3),
    "one number": (1, 1),
    "rows of two programs": (6, triton_loops.ROWS + 1),
}
"""Columns and rows."""


@pytest.fixture(scope="module")
def backend():
    return TorchBackend("cuda" if torch.cuda.is_available() else "cpu")


def on(backend, array):
    return backend.asarray(np.asarray(array))


def block(rng, grid, count, rows):
    """Columns, the factor's block, scales and offsets; a scale of zero where the grid has them."""
    scales = rng.uniform(0.2, 0.6, (count, rows)) * rng.choice([-1, 1], (count, rows))
    if grid.table:
        scales[0, 0] = 0
    offsets = {"symmetric": -scales * grid.middle, "integer": -3 * scales}.get(
        grid.zeros, rng.standard_normal((count, rows))
    )
    U = np.triu(rng.standard_normal((count, count))) / count**0.5
    np.fill_diagonal(U, rng.uniform(0.5, 1, count))
    return rng.standard_normal((count, rows)), U, scales, offsets


def assert_rounded_alike(backend, arrays, grid):
    columns, U, scales, offsets = arrays
    with np.errstate(all="ignore"):  # the interpreter is NumPy
        found = triton_loops.round_columns(columns, U, scales, offsets, grid)
    expected = plain(backend).round_columns(*arrays, grid)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(ours), backend.to_numpy(theirs))
    return backend.to_numpy(found[0])


@pytest.mark.parametrize("name", GRIDS_TRIED)
def test_columns_are_rounded_as_by_the_plain_loop(backend, rng, name):
    grid = GRIDS_TRIED[name]
    arrays = [on(backend, array) for array in block(rng, grid, 11, 5)]
    codes = assert_rounded_alike(backend, arrays, grid)
    assert len(np.unique(codes)) > 2


@pytest.mark.parametrize("name", SHAPES)
def test_blocks_of_any_shape_are_rounded_as_by_the_plain_loop(backend, rng, name):
    arrays = [on(backend, array) for array in block(rng, OFFSET, *SHAPES[name])]
    assert_rounded_alike(backend, arrays, OFFSET)


def test_halves_go_to_even_and_what_is_no_number_stays_none(backend):
    column = [[-0.5, 0.5, 1.5, 2.5, 3.5, 9e9, -9e9, np.inf, -np.inf, np.nan]]
    one = np.ones_like(column)
    arrays = [on(backend, array) for array in (column, [[1.0]], one, 0 * one)]
    codes = assert_rounded_alike(backend, arrays, SYMMETRIC)
    np.testing.assert_array_equal(codes, [[0, 0, 2, 2, 4, 7, 0, 7, 0, np.nan]])


def test_the_lower_of_two_levels_as_near_is_taken_and_nan_stays_nan(backend):
    table = GRIDS["IQ4_NL"].table
    middles = [(low + high) / 2 for low, high in itertools.pairwise(table)]
    column = [[*middles, *(np.nextafter(np.float32(middles), 999)), -500.0, 500.0, np.nan]]
    one = np.ones_like(column)
    arrays = [on(backend, array) for array in (column, [[1.0]], one, 0 * one)]
    codes = assert_rounded_alike(backend, arrays, GRIDS["IQ4_NL"])
    np.testing.assert_array_equal(codes, [[*table[:-1], *table[1:], table[0], table[-1], np.nan]])


def test_an_infinite_error_leaves_the_columns_before_it_alone(backend, rng):
    columns, U, scales, offsets = block(rng, OFFSET, 5, 3)
    columns[2, 1] = np.inf
    arrays = [on(backend, array) for array in (columns, U, scales, offsets)]
    codes = assert_rounded_alike(backend, arrays, OFFSET)
    assert np.isfinite(codes[:3]).all()
    assert np.isin(codes[3:, 1], [0, OFFSET.max_code]).all()


def test_views_of_any_layout_are_rounded_alike(backend, rng):
    columns, U, scales, offsets = block(rng, INTEGER, 9, 4)
    straight = [on(backend, array) for array in (columns, U, scales, offsets)]
    expected = plain(backend).round_columns(*straight, INTEGER)
    views = [on(backend, array.T.copy()).T for array in (columns, U, scales, offsets)]
    wide = on(backend, np.pad(U, 3))
    for factor in (views[1], wide[3:-3, 3:-3]):
        found = triton_loops.round_columns(views[0], factor, views[2], views[3], INTEGER)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(backend.to_numpy(ours), backend.to_numpy(theirs))


def exact_sweep(rng, grid, count, rows):
    """A sweep whose sums are exact in float32: every factor is a few bits wide."""
    H = rng.integers(-8, 9, (count, count)) / 8.0
    scales, pull = (2.0 ** rng.integers(-2, 1, (count, rows)) for _ in range(2))
    codes = rng.choice(grid.table or range(grid.max_code + 1), (count, rows)).astype(float)
    wanted = codes + rng.integers(-16, 17, (count, rows)) * (4 if grid.table else 0.25)
    return [H + H.T, scales, pull, codes, wanted]


@pytest.mark.parametrize("rounding", [True, False], ids=["rounding", "relaxed"])
@pytest.mark.parametrize("name", ["symmetric", "table with gaps"])
def test_columns_are_swept_as_by_the_plain_loop(backend, rng, name, rounding):
    assert_swept_alike(backend, rng, GRIDS_TRIED[name], (7, 5), rounding=rounding)


@pytest.mark.parametrize("name", SHAPES)
def test_blocks_of_any_shape_are_swept_as_by_the_plain_loop(backend, rng, name):
    assert_swept_alike(backend, rng, SYMMETRIC, SHAPES[name], rounding=True)


def assert_swept_alike(backend, rng, grid, shape, *, rounding):
    arrays = [on(backend, array) for array in exact_sweep(rng, grid, *shape)]
    H, scales, pull, codes, wanted = arrays
    columns = Columns(on(backend, np.pad(backend.to_numpy(H), 2))[2:-2, 2:-2], scales, pull, grid)
    found = triton_loops.sweep_columns(columns, codes, wanted, rounding=rounding)
    expected = plain(backend).sweep_columns(replace(columns, H=H), codes, wanted, rounding=rounding)
    moved = backend.to_numpy(found)
    np.testing.assert_allclose(
        moved, backend.to_numpy(expected), rtol=0 if rounding else 1e-4, atol=0
    )
    assert np.abs(moved).max() > 0 or shape == (1, 1)


def test_what_is_not_a_number_stays_that_in_a_sweep(backend, rng):
    H, scales, pull, codes, wanted = exact_sweep(rng, SYMMETRIC, 4, 3)
    wanted[1, 2] = np.nan
    H, scales, pull, codes, wanted = (on(backend, x) for x in (H, scales, pull, codes, wanted))
    columns = Columns(H, scales, pull, SYMMETRIC)
    found = triton_loops.sweep_columns(columns, codes, wanted, rounding=True)
    expected = plain(backend).sweep_columns(columns, codes, wanted, rounding=True)
    np.testing.assert_array_equal(backend.to_numpy(found), backend.to_numpy(expected))


def test_kernels_are_in_float64_where_arrays_are(backend, rng):
    precise = TorchBackend(backend.name)
    precise.precision = torch.float64
    arrays = [on(precise, array) for array in block(rng, INTEGER, 4, 3)]
    codes = assert_rounded_alike(precise, arrays, INTEGER)
    assert codes.dtype == np.float64


def test_a_backend_without_triton_says_what_that_costs(monkeypatch):
    assert find_kernels(torch.device("cpu")) == (triton_loops, "")
    monkeypatch.setitem(sys.modules, "edgeq_backends.torch.triton_loops", None)
    monkeypatch.delattr("edgeq_backends.torch.triton_loops")
    kernels, reason = find_kernels(torch.device("cpu"))
    assert kernels is None
    assert "Triton is not installed" in reason
