"""What a grid costs a layer, against plain NumPy; rows that stand for all of a layer."""

import numpy as np
import pytest

from edgeq.recipe.recipe import make_recipe
from edgeq.registry import load_backend
from edgeq.solving.site import prepare_site
from edgeq.solving.type_errors import (
    Weighed,
    measuring_recipe,
    rounding_costs,
    sample_rows,
    site_costs,
)
from edgeq.types import Grid, LayerStatistics

PLAIN = make_recipe({"solver": "rtn", "scales": "none", "propagation_strength": 0})
GRIDS = (Grid(3, 16, scale_dtype="float32"), Grid(5, 32, scale_dtype="float32"))


def rounded(W, grid):
    """Symmetric rounding on min-max scales, written down once more."""
    result = np.empty_like(W)
    for start in range(0, W.shape[1], grid.group_size):
        part = W[:, start : start + grid.group_size]
        scale = (2 * np.abs(part).max(axis=1, keepdims=True) / (2**grid.bits - 1)).astype("f4")
        middle = 2 ** (grid.bits - 1)
        codes = np.clip(np.rint(part / scale + middle), 0, 2**grid.bits - 1)
        result[:, start : start + grid.group_size] = scale * (codes - middle)
    return result


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 64)) @ rng.standard_normal((64, 64))
    return X.T @ X / len(X), rng.standard_normal((48, 64)), rng.uniform(0.1, 2, 48)


def expected(W, H, importance, grid):
    E = rounded(W, grid) - W
    return 0.5 * float(importance @ np.einsum("rc,cd,rd->r", E, H, E))


def test_costs_are_half_the_weighed_errors(problem):
    H, W, importance = problem
    backend = load_backend("reference")
    statistics = LayerStatistics(backend.asarray(H), None, 200)
    site = prepare_site(statistics, measuring_recipe(PLAIN), backend)
    layers = [
        Weighed("one", W[:30], importance[:30], GRIDS),
        Weighed("other", W[30:], importance[30:], GRIDS[1:]),
    ]
    found = site_costs(site, layers, measuring_recipe(PLAIN))
    assert set(found["other"]) == {GRIDS[1]}
    for grid in GRIDS:
        one = expected(W[:30], H, importance[:30], grid)
        assert found["one"][grid] == pytest.approx(one, rel=1e-4)
    other = expected(W[30:], H, importance[30:], GRIDS[1])
    assert found["other"][GRIDS[1]] == pytest.approx(other, rel=1e-4)


def test_costs_of_a_rounded_matrix_are_too(problem):
    H, W, importance = problem
    found = rounding_costs(W, importance, H, GRIDS, PLAIN, load_backend("reference"))
    for grid in GRIDS:
        assert found[grid] == pytest.approx(expected(W, H, importance, grid), rel=1e-4)


def test_a_few_rows_stand_for_all():
    rng = np.random.default_rng(1)
    energies, importance = rng.lognormal(0, 2, 4000), rng.lognormal(0, 2, 4000)
    errors = energies * rng.uniform(0.9, 1.1, 4000)
    sample = sample_rows(energies, importance, count=200)
    assert len(sample.rows) <= 200
    assert sample.weights @ errors[sample.rows] == pytest.approx(importance @ errors, rel=0.02)


def test_rows_that_decide_nothing_cost_nothing():
    sample = sample_rows(np.zeros(500), np.ones(500), count=10)
    assert sample.weights @ np.ones(500)[sample.rows] == 0


def test_types_are_measured_without_what_comes_after_the_solve():
    recipe = measuring_recipe(make_recipe({"quality": "best", "outlier_columns": 0.01}))
    assert (recipe.solver, recipe.scales, recipe.sweep_count) == ("gptq", "first", 0)
    assert not recipe.needs_drift
    assert not recipe.keeps_columns
