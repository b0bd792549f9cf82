"""Solvers, searches and refits on llama.cpp's grids: tables of levels, scales of two levels."""

import itertools
import json
import os
from dataclasses import replace

import numpy as np
import plain
import pytest
from layers import SolvedLayer
from llama_cpp_rounding import ERRORS, TYPES, errors_of_llama_cpp, rows, weighted_errors
from present import are_present

from edgeq.algorithms.alternation import Turns, alternate
from edgeq.algorithms.gptq import solve_columns
from edgeq.algorithms.group_scale import ScaleSearch, search_scales
from edgeq.algorithms.problem import Problem, dequantize
from edgeq.algorithms.qqa import Annealing
from edgeq.algorithms.qqa_rounding import anneal_codes
from edgeq.algorithms.quantease import Sweeps, descend_codes
from edgeq.algorithms.rtn import round_to_nearest
from edgeq.algorithms.scale_descent import Refit
from edgeq.algorithms.scale_refit import refit_scales
from edgeq.grids.super_blocks import fit_min_max
from edgeq.grids.types import GRIDS, SPECIAL
from edgeq.registry import load_backend
from edgeq.solving.layer import quantized_linear
from edgeq.types import Grid, SuperBlocks

THOROUGH = ScaleSearch(candidates=24, refits=2)
TWO_LEVELS = [name for name, grid in SPECIAL.items() if grid.super_blocks]
ON_BACKENDS = [
    pytest.param("cuda", name, marks=pytest.mark.gpu) if kind == "cuda" else (kind, name)
    for name in SPECIAL
    for kind in ("reference", "cpu", "cuda")
]
ON_BACKENDS += [("mlx", "Q2_K"), ("mlx", "IQ4_XS")]  # one with minima, one with a table
TABLES = [name for name, grid in SPECIAL.items() if grid.table]


def solved_layer(rng, backend, name, **options):
    options = {"in_features": 256, "out_features": 5, **options}
    return SolvedLayer(rng, GRIDS[name], backend, **options)


def assert_storable(solution, grid, backend):
    """Every number is one that a block of the type holds, and products are exact."""
    numbers = {
        key: None if value is None else backend.to_numpy(value).astype(np.float64)
        for key, value in (
            ("codes", solution.codes),
            ("scales", solution.scales),
            ("offsets", solution.offsets),
            ("floats", solution.super_scales),
            ("minima", solution.super_minima),
        )
    }
    levels = grid.table or range(2**grid.bits)
    assert numbers["codes"] is None or set(np.unique(numbers["codes"])) <= set(levels)
    if grid.super_blocks is None:
        np.testing.assert_array_equal(numbers["scales"].astype(np.float16), numbers["scales"])
        return
    each = grid.super_blocks.columns // grid.group_size
    floats = numbers["floats"]
    np.testing.assert_array_equal(floats.astype(np.float16), floats)
    assert floats.all()
    integers = numbers["scales"] / floats.repeat(each, axis=1)
    low, high = grid.super_blocks.scale_limits
    assert (integers == np.rint(integers)).all()
    assert integers.min() >= low and integers.max() <= high
    if grid.zeros == "symmetric":
        np.testing.assert_array_equal(numbers["offsets"], -numbers["scales"] * grid.middle)
        return
    minima = numbers["minima"]
    np.testing.assert_array_equal(minima.astype(np.float16), minima)
    units = np.where(minima == 0, 1, minima).repeat(each, axis=1)
    integers = -numbers["offsets"] / units
    low, high = grid.super_blocks.minimum_limits
    assert (integers == np.rint(integers)).all()
    assert integers.min() >= low and integers.max() <= high


@pytest.mark.parametrize(("backend", "name"), ON_BACKENDS, indirect=["backend"])
def test_every_step_leaves_what_blocks_store_and_no_row_worse(backend, rng, name):
    layer = solved_layer(rng, backend, name)
    problem, grid = layer.problem, layer.grid
    steps = [
        lambda found: descend_codes(problem, found, Sweeps(2)),
        lambda found: anneal_codes(problem, found, Annealing(steps=20)),
        lambda found: refit_scales(problem, found, Refit()),
        lambda found: alternate(problem, found, Turns(1, Sweeps(1))),
    ]
    found, before = layer.solution, layer.losses(layer.solution)
    assert_storable(found, grid, backend)
    start = before.sum()
    for step in steps:
        found = step(found)
        after = layer.losses(found)
        assert_storable(found, grid, backend)
        assert (after <= before + layer.noise()).all()
        before = after
    assert before.sum() < 0.95 * start


@pytest.mark.parametrize("name", SPECIAL)
def test_backends_come_to_equal_losses(rng, one_thread, name):
    losses, codes = {}, {}
    others = are_present("cpu", "cuda", "mlx")
    for kind in ("reference", *others):
        layer = solved_layer(np.random.default_rng(3), load_backend(kind), name, out_features=16)
        found = descend_codes(layer.problem, layer.solution, Sweeps(2))
        found = refit_scales(layer.problem, found, Refit())
        losses[kind], codes[kind] = layer.losses(found).sum(), layer.numpy_codes(found)
    for kind in others:
        assert losses[kind] == pytest.approx(losses["reference"], rel=0.01)
        assert (codes[kind] == codes["reference"]).mean() > 0.97


@pytest.mark.parametrize("name", TABLES)
def test_sweeps_choose_what_trying_every_level_finds(backend, rng, name):
    layer = solved_layer(rng, backend, name, solver="rtn", out_features=3)
    codes = layer.numpy_codes()
    levels = np.array(layer.grid.table, dtype=np.float64)
    for row, column in itertools.product(range(3), range(256)):
        tried = []
        for level in levels:
            codes[row, column] = level
            Q = layer.scales[row] * codes[row]
            tried.append(Q @ layer.H @ Q - 2 * layer.B[row] @ Q)
        codes[row, column] = levels[np.argmin(tried)]
    found = layer.numpy_codes(descend_codes(layer.problem, layer.solution, Sweeps(1)))
    np.testing.assert_array_equal(found, codes)


@pytest.mark.parametrize(("backend", "name"), ON_BACKENDS, indirect=["backend"])
def test_uncorrelated_inputs_make_the_solver_plain_rounding(backend, rng, name):
    W = rng.standard_normal((4, 256))
    U = backend.asarray(np.diag(rng.uniform(0.5, 2, 256)))
    problem = Problem(backend.asarray(W), None, GRIDS[name], backend, U=U)
    scales = fit_min_max(problem.V, problem.grid, backend)
    assert_storable(scales, problem.grid, backend)
    solved = backend.to_numpy(solve_columns(problem, scales).codes)
    np.testing.assert_array_equal(solved, backend.to_numpy(round_to_nearest(problem, scales).codes))


@pytest.mark.parametrize("name", TWO_LEVELS)
def test_no_single_integer_is_better_after_a_refit(rng, name):
    layer = solved_layer(rng, load_backend("reference"), name, out_features=2)
    found = refit_scales(layer.problem, layer.solution, Refit(sweeps=60))
    best = layer.losses(found)
    each = layer.grid.super_blocks.columns // layer.grid.group_size
    units = {"scales": found.super_scales, "offsets": found.super_minima}
    for number, minima in itertools.product(range(found.scales.shape[1]), (False, True)):
        if minima and found.super_minima is None:
            continue
        for step in (-1, 1):
            moved = replace(found, scales=found.scales.copy(), offsets=found.offsets.copy())
            if minima:
                moved.offsets[:, number] -= step * units["offsets"][:, number // each]
                integers = np.rint(-moved.offsets[:, number] / units["offsets"][:, number // each])
                low, high = layer.grid.super_blocks.minimum_limits
            else:
                moved.scales[:, number] += step * units["scales"][:, number // each]
                integers = np.rint(moved.scales[:, number] / units["scales"][:, number // each])
                low, high = layer.grid.super_blocks.scale_limits
                if layer.grid.zeros == "symmetric":
                    moved.offsets[:, number] = -layer.grid.middle * moved.scales[:, number]
            held = (integers >= low) & (integers <= high) & (integers != 0)
            assert (layer.losses(moved)[held] >= best[held] - layer.noise()[held]).all()


@pytest.mark.parametrize("name", TYPES)
def test_rounding_is_no_worse_than_llama_cpp_with_the_same_importance(name):
    backend = load_backend("reference")
    weights, importance = rows()
    problem = Problem(weights.astype(np.float64), None, GRIDS[name], backend, importance=importance)
    found = round_to_nearest(problem, search_scales(problem, THOROUGH))
    errors = weighted_errors(quantized_linear(problem, found).dequantized(), weights, importance)
    theirs = np.array(json.loads(ERRORS.read_text(encoding="utf-8"))[name])
    worst = max(errors / theirs)
    print(f"{errors.sum() / theirs.sum():.3f} of llama.cpp's error, worst row {worst:.3f}")
    assert errors.sum() <= theirs.sum()
    assert (errors <= 1.01 * theirs).mean() > 0.9


@pytest.mark.slow
@pytest.mark.skipif(
    "LLAMA_CPP_LIBS" not in os.environ, reason="LLAMA_CPP_LIBS names no folder of llama.cpp's"
)
def test_errors_of_llama_cpp_are_those_that_are_kept():
    kept = json.loads(ERRORS.read_text(encoding="utf-8"))
    for name, errors in errors_of_llama_cpp(os.environ["LLAMA_CPP_LIBS"]).items():
        np.testing.assert_allclose(errors, kept[name], rtol=1e-6)


def float16_between(low, high, step):
    """Every so many float16 numbers of a range."""
    first, last = (int(np.float16(bound).view(np.uint16)) for bound in (low, high))
    return np.arange(first, last + 1, step, dtype=np.uint16).view(np.float16).astype(np.float64)


def least_symmetric(row, importance, grid, sign):
    """The least weighted error over floats of one sign and all integers, of one super-block."""
    low, high = grid.super_blocks.scale_limits
    top = 2 * abs(row).max() / grid.max_code / abs(low)
    scales = sign * np.outer(
        float16_between(0.4 * top, 2.2 * top, 4), [i for i in range(low, high + 1) if i]
    )
    total = np.zeros(len(scales))
    for values, weights in zip(row.reshape(-1, 4), importance.reshape(-1, 4), strict=True):
        codes = np.clip(np.rint(values / scales[..., None] + grid.middle), 0, grid.max_code)
        error = values - scales[..., None] * (codes - grid.middle)
        total = total + (weights * error**2).sum(axis=-1).min(axis=1)
    return total.min()


def least_with_minima(row, importance, grid):
    """The least weighted error over some floats and minima and all integers."""
    groups, last = row.reshape(-1, 4), grid.super_blocks.scale_limits[1]
    width = max(max(0, values.max()) - min(0, values.min()) for values in groups)
    top, deepest = width / grid.max_code / last, max(0, -row.min()) / last
    minima = float16_between(0.5 * deepest, 1.6 * deepest, 24)
    offsets = np.outer(minima, np.arange(last + 1))[:, :, None, None]
    best = np.inf
    for scale in float16_between(0.4 * top, 1.6 * top, 24):
        scales = (scale * np.arange(1, last + 1))[:, None]
        total = np.zeros(len(minima))
        for values, weights in zip(groups, importance.reshape(-1, 4), strict=True):
            codes = np.clip(np.rint((values + offsets) / scales), 0, grid.max_code)
            error = values + offsets - scales * codes
            total = total + (weights * error**2).sum(axis=-1).min(axis=(1, 2))
        best = min(best, total.min())
    return best


@pytest.mark.parametrize(
    ("bits", "limits", "minima"),
    [(3, (-4, 3), None), (4, (-8, 7), None), (2, (0, 5), (0, 5)), (3, (0, 7), (0, 7))],
)
def test_twelve_columns_come_within_one_percent_of_trying_everything(rng, bits, limits, minima):
    backend = load_backend("reference")
    blocks = SuperBlocks(12, limits, minima)
    zeros = "symmetric" if minima is None else "offset"
    grid = Grid(bits, 4, zeros, "float32", type="tiny", super_blocks=blocks)
    W, importance = rng.standard_normal((3, 12)), np.exp(rng.standard_normal(12))
    problem = Problem(W, None, grid, backend, importance=importance)
    search = ScaleSearch(24, 2, *((16, 300) if minima is None else (6, 16)))
    Q = dequantize(problem, round_to_nearest(problem, search_scales(problem, search)))
    for row, error in zip(W, weighted_errors(Q, W, importance), strict=True):
        if minima is None:
            least = min(least_symmetric(row, importance, grid, sign) for sign in (1, -1))
        else:
            least = least_with_minima(row, importance, grid)
        assert error <= 1.01 * least


@pytest.mark.parametrize(("backend", "name"), ON_BACKENDS, indirect=["backend"])
def test_awkward_rows_stay_finite_and_zeros_stay_zeros(backend, name):
    W = np.zeros((5, 256))
    W[1, 77] = 3.0
    W[2] = -np.linspace(0.1, 1, 256)
    W[3] = 1e-9 * np.cos(np.arange(256))
    W[4, :16] = np.cos(np.arange(16))
    grid = GRIDS[name]
    problem = Problem(
        backend.asarray(W), None, grid, backend, importance=backend.asarray(np.ones(256))
    )
    found = round_to_nearest(problem, search_scales(problem))
    assert_storable(found, grid, backend)
    layer = quantized_linear(problem, found)
    assert (layer.dequantized()[0] == 0).all()
    assert abs(layer.dequantized()[1, 77] / 3 - 1) < 0.01
    assert abs(layer.dequantized()[3]).max() < 1e-6
    assert plain.weighted_loss(layer.dequantized(), W, np.eye(256))[2] < 0.15 * (W[2] ** 2).sum()
