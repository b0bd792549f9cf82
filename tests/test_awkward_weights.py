"""Zeros, constants, tiny and huge weights on every grid: all that is chosen and measured is a
number, and no row comes out worse than by plain rounding.
"""

import itertools
import json

import numpy as np
import plain
import pytest
from recipes import plain_recipe

from edgeq.dtypes import LARGEST, LARGEST_WEIGHT, NUMPY, SMALLEST
from edgeq.errors import BadInput
from edgeq.files.json_files import json_bytes
from edgeq.grids.limits import check_size, clamped_groups
from edgeq.grids.types import SPECIAL, SUPER_COLUMNS
from edgeq.recipe.recipe import make_recipe
from edgeq.run.report import RunReport
from edgeq.solving.layer import solve_layer, solve_without_statistics
from edgeq.solving.report import Stage
from edgeq.solving.site import Layer, prepare_site
from edgeq.stopwatch import Stopwatch
from edgeq.types import Grid, LayerStatistics

IN = 64
KINDS = ("symmetric", "integer", "offset")
SHAPES = [
    Grid(bits, group_size, zeros)
    for bits, zeros, group_size in itertools.product((2, 3, 4, 8), KINDS, (None, 32))
]
RECIPES = {
    "rounded": {"solver": "rtn"},
    "gptq": {"solver": "gptq", "scales": "none"},
    "swept and refitted": {"solver": "quantease", "relaxed_sweeps": True, "sweeps": 10},
    "annealed": {"anneal_rounds": 1, "anneal_steps": 10, "alternations": 1, "refit_exactly": True},
}


def awkward_rows(rng, columns=IN):
    """Rows that are exact in float32, by what is odd in them."""
    base = rng.standard_normal(columns)
    column = np.arange(columns)
    rows = {
        "ordinary": base,
        "zeros": 0 * base,
        "a group of zeros": np.where(column < 32, 0, base),
        "columns of zeros": np.where(column % 4 == 0, 0, base),
        "constant": np.full(columns, 0.7),
        "negative constant": np.full(columns, -0.7),
        "positive": np.abs(base),
        "one weight": np.where(column == 40, 0.3, 0),
        "an outlier": np.where(column == 5, 1e4, base),
        "a tiny rest": np.where(column == 5, 1, 1e-30 * base),
    }
    sizes = (1e-8, 1e-15, 1e-18, 1e-30, 1e-40, 1e3)
    rows |= {f"of size {size}": size * base for size in sizes}
    return {name: row.astype(np.float32) for name, row in rows.items()}


def plainly_rounded(W, grid):
    """Squared error of each row, rounded on ranges from its smallest to its largest weight."""
    error = np.empty_like(W, dtype=np.float64)
    for start, stop in grid.group_bounds(IN):
        part = W[:, start:stop].astype(np.float64)
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if grid.zeros == "symmetric":
            scales = 2 * np.maximum(high, -low) / grid.max_code
        else:
            scales = (high - low) / grid.max_code
        bounded = np.clip(scales, SMALLEST[grid.scale_dtype], LARGEST[grid.scale_dtype])
        scales = bounded.astype(NUMPY[grid.scale_dtype]).astype(np.float64)
        zeros = {"symmetric": 0 * scales + grid.middle, "integer": np.rint(-low / scales)}
        offsets = -scales * zeros.get(grid.zeros, -low / scales)
        if grid.zeros == "offset":
            offsets = offsets.astype(NUMPY[grid.scale_dtype]).astype(np.float64)
        scales, offsets = scales[:, None], offsets[:, None]
        codes = plain.nearest(part, scales, offsets, grid.max_code)
        error[:, start:stop] = scales * codes + offsets - part
    return (error**2).sum(axis=1)


def on_grids(scale_dtype):
    return [Grid(g.bits, g.group_size, g.zeros, scale_dtype) for g in SHAPES]


def check_held(solved):
    assert np.isfinite(solved.scales).all()
    assert np.isfinite(solved.offsets).all()
    assert np.isfinite(solved.dequantized()).all()
    assert solved.codes.max() <= solved.grid.max_code


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
def test_no_row_of_an_embedding_is_worse_than_plainly_rounded(backend, rng, scale_dtype):
    rows = awkward_rows(rng)
    W = np.stack(list(rows.values()))
    for grid in on_grids(scale_dtype):
        solved = solve_without_statistics(W, grid, make_recipe({}), backend)
        check_held(solved)
        assert clamped_groups("w", W, solved) >= 0
        error = ((solved.dequantized().astype(np.float64) - W) ** 2).sum(axis=1)
        # what float32 leaves of a weight, and of an offset beside it
        noise = IN * (1e-6 * np.abs(W).max(axis=1).astype(np.float64)) ** 2
        worse = error > 1.001 * plainly_rounded(W, grid) + noise
        assert not worse.any(), (grid, np.array(list(rows))[worse])


@pytest.mark.parametrize("name", SPECIAL)
def test_no_row_on_a_type_is_worse_than_zeros(backend, rng, name):
    """Every type holds zeros, also where weights are far below its least scale."""
    rows = awkward_rows(rng, SUPER_COLUMNS)
    W = np.stack(list(rows.values()))
    solved = solve_without_statistics(W, SPECIAL[name], make_recipe({}), backend)
    check_held(solved)
    error = ((solved.dequantized().astype(np.float64) - W) ** 2).sum(axis=1)
    worse = error > 1.001 * (W.astype(np.float64) ** 2).sum(axis=1)
    assert not worse.any(), np.array(list(rows))[worse]


@pytest.mark.parametrize(
    ("scale_dtype", "energy"),
    [
        ("float16", 1e8),
        pytest.param("bfloat16", 1.0, marks=pytest.mark.slow),
        ("float32", 1e-8),
    ],
)
def test_every_step_gives_numbers_and_a_report_that_is_json(backend, rng, scale_dtype, energy):
    rows = awkward_rows(rng)
    W = np.stack(list(rows.values()))
    _, X, X_hat = plain.random_layer(rng, in_features=IN, drift=0.1)
    H, D = (energy * moment for moment in plain.moments(X, X_hat))
    statistics = LayerStatistics(backend.asarray(H), backend.asarray(D), len(X))
    report = RunReport()
    for index, (name, settings) in enumerate(RECIPES.items()):
        recipe = make_recipe(settings)
        site = prepare_site(statistics, recipe, backend)
        for grid in on_grids(scale_dtype)[index :: len(RECIPES)]:
            layer = Layer(name, backend.asarray(W), grid, site, recipe)
            solved, of_layer = solve_layer(layer, Stopwatch())
            check_held(solved)
            report.layers.append(of_layer)
            report.note_clamped(name, W, solved)
            assert all(0 <= loss < 2 for loss in of_layer.losses.values())
    assert json.loads(json_bytes(report.plain()), parse_constant=pytest.fail)


@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e12])
def test_losses_are_shares_whatever_the_size_of_the_weights(backend, rng, size):
    """In float32, the squares of such weights alone are zero or infinite."""
    W, X, X_hat = plain.random_layer(rng, in_features=IN)
    H = plain.moments(X, X_hat)[0]
    recipe = plain_recipe(bits=4, group_size=32, scale_dtype="float32")
    site = prepare_site(LayerStatistics(backend.asarray(H), None, 300), recipe, backend)
    W = (size * W).astype(np.float32)
    grid = recipe.grid_of("layer")
    solved, report = solve_layer(
        Layer("layer", backend.asarray(W), grid, site, recipe), Stopwatch()
    )
    E = (solved.dequantized().astype(np.float64) - W) / size
    V = W.astype(np.float64) / size
    expected = ((E @ H) * E).sum() / ((V @ H) * V).sum()
    assert report.final_loss == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
def test_groups_that_no_scale_comes_near_are_counted(backend, scale_dtype):
    W = np.full((3, IN), 1e-30, np.float32)
    W[1] = 0
    solved = solve_without_statistics(
        W, Grid(4, 32, "symmetric", scale_dtype), make_recipe({}), backend
    )
    assert not solved.dequantized().any()
    assert clamped_groups("w", W, solved) == 4


def test_an_offset_beyond_its_type_is_refused_by_name_and_not_by_a_warning(backend, rng):
    W = (1e10 * rng.standard_normal((3, IN))).astype(np.float32)
    H = backend.asarray(np.eye(IN))
    recipe = make_recipe({"zeros": "offset", "bits": 2})
    site = prepare_site(LayerStatistics(H, None, 300), recipe, backend)
    solved, _ = solve_layer(
        Layer("w", backend.asarray(W), Grid(2, 32, "offset"), site, recipe), Stopwatch()
    )
    with pytest.raises(BadInput, match=r"'w': .* exceeds float16; choose scale_dtype bfloat16"):
        clamped_groups("w", W, solved)


def test_a_loss_that_is_no_number_is_not_reported(backend, rng):
    """Plain rounding alone finds offsets beyond their type here; what is solved has none."""
    W, X, _ = plain.random_layer(rng, in_features=IN)
    W[0, 0] = -1e5
    recipe = make_recipe({"zeros": "offset", "solver": "rtn"})
    statistics = LayerStatistics(backend.asarray(plain.moments(X, X)[0]), None, 300)
    site = prepare_site(statistics, recipe, backend)
    layer = Layer("w", backend.asarray(W), Grid(4, None, "offset"), site, recipe)
    solved, report = solve_layer(layer, Stopwatch())
    check_held(solved)
    assert Stage.NEAREST not in report.losses
    assert 0 <= report.final_loss < 1
    assert json_bytes(report.losses)


@pytest.mark.parametrize("largest", [1e15, 1e30, 3.4e38])
def test_weights_whose_squares_overflow_are_refused_by_name(largest):
    check_size("w", LARGEST_WEIGHT)
    with pytest.raises(BadInput, match=r"tensor 'w' holds a weight of .*keep the tensor dense"):
        check_size("w", largest)


@pytest.mark.parametrize("name", ["Q2_K", "Q4_K", "Q5_K"])
def test_weights_far_above_zero_need_no_minimum(backend, rng, name):
    """Minima of types lie at zero or below: scales are fitted without one, not beside it."""
    W = (1 + 0.1 * rng.standard_normal((32, SUPER_COLUMNS))).astype(np.float32)
    solved = solve_without_statistics(W, SPECIAL[name], make_recipe({}), backend)
    error = ((solved.dequantized().astype(np.float64) - W) ** 2).sum(axis=1)
    step = W.max(axis=1) / SPECIAL[name].max_code
    assert (error < SUPER_COLUMNS * step**2 / 6).all()


@pytest.mark.parametrize("name", ["Q2_K", "Q4_K", "Q5_K"])
@pytest.mark.parametrize("mean", [0.2, 1.0, -0.2])
def test_a_group_of_equal_codes_does_not_decide_for_its_super_block(backend, rng, name, mean):
    """Its own best scale is arbitrary, and a large one takes all others to zero."""
    W = (mean + 0.02 * rng.standard_normal((64, SUPER_COLUMNS))).astype(np.float32)
    X = rng.standard_normal((100, SUPER_COLUMNS))
    statistics = LayerStatistics(backend.asarray(X.T @ X / 100), None, 100)
    recipe = make_recipe({"type": name, "solver": "rtn", "scales": "first"})
    site = prepare_site(statistics, recipe, backend)
    layer = Layer("w", backend.asarray(W), SPECIAL[name], site, recipe)
    solved, _ = solve_layer(layer, Stopwatch())
    assert np.abs(solved.super_scales).max() < 1
    assert np.abs(solved.dequantized() - W).max() < 0.5 * abs(mean)
