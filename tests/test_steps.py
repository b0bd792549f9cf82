"""The table of steps: what recipes ask for, what runs, and what it costs."""

import itertools
from dataclasses import replace

import plain
import pytest

from edgeq.recipe.recipe import Recipe, make_recipe, with_preset
from edgeq.registry import load_backend
from edgeq.solving.layer import solve_layer
from edgeq.solving.report import Stage
from edgeq.solving.site import Layer, prepare_site
from edgeq.solving.steps import STEPS, Step
from edgeq.stopwatch import Stopwatch
from edgeq.types import LayerStatistics

EVERYTHING = Recipe(
    bits=3,
    group_size=16,
    sweeps=2,
    anneal_rounds=1,
    anneal_steps=20,
    alternations=1,
    outlier_columns=0.05,
    propagation_damping=1.0,
)


def counting_clock():
    """A stopwatch on which everything takes a second, and what is timed within it one more."""
    ticks = itertools.count()
    return Stopwatch(lambda: float(next(ticks)))


def layer_of(rng, recipe, backend, **sizes):
    W, X, X_hat = plain.random_layer(rng, in_features=40, out_features=16, drift=0.2, **sizes)
    H, D = plain.moments(X, X_hat)
    statistics = LayerStatistics(backend.asarray(H), backend.asarray(D), len(X))
    site = prepare_site(statistics, recipe, backend)
    return Layer("layer", backend.asarray(W), recipe.grid_of("layer"), site, recipe)


def asked(recipe):
    return [step for step in STEPS if step.is_asked(recipe)]


@pytest.mark.parametrize(
    ("recipe", "clocks"),
    [
        (Recipe(solver="rtn", scales="none", propagation_strength=0), ["search scales", "solve"]),
        (Recipe(scales="first", propagation_strength=0), ["search scales", "solve"]),
        (
            Recipe(scales="first", solver="quantease"),
            ["correct", "search scales", "solve", "sweep codes"],
        ),
        (Recipe(), ["correct", "search scales", "solve", "refit scales"]),
        (
            EVERYTHING,
            [
                "correct",
                "search scales",
                "solve",
                "sweep codes",
                "anneal codes",
                "refit scales",
                "alternate",
                "fit outliers",
            ],
        ),
    ],
)
def test_a_recipe_asks_for_the_steps_that_its_settings_name(recipe, clocks):
    shared = ("measure", "factor")
    assert [step.clock for step in asked(recipe) if step.clock not in shared] == clocks


@pytest.mark.parametrize("solver", ["rtn", "gptq", "quantease"])
def test_no_loss_is_measured_twice_and_stages_keep_their_order(solver):
    stages = [step.stage for step in asked(replace(EVERYTHING, solver=solver)) if step.stage]
    assert stages == [stage for stage in Stage if stage in stages]
    assert Stage.SOLVED in stages


def test_every_step_that_is_asked_for_is_timed_and_measured(rng):
    layer, clock = layer_of(rng, EVERYTHING, load_backend("reference")), counting_clock()
    solved, report = solve_layer(layer, clock)
    assert set(clock.seconds) == {step.clock for step in STEPS}
    for step in STEPS:
        if step.clock not in ("measure", "factor"):
            assert clock.seconds[step.clock] == 1
    assert list(report.losses) == list(Stage)
    assert solved.outliers.columns.size == report.outlier_columns == 2


def test_a_step_that_nobody_asks_for_neither_runs_nor_costs(rng):
    recipe = Recipe(bits=3, group_size=16)

    def fail(layer):
        raise AssertionError

    never = Step("never", fail, Stage.SWEPT, lambda recipe: False)
    _, report = solve_layer(
        layer_of(rng, recipe, load_backend("reference")), Stopwatch(), [*STEPS, never]
    )
    assert Stage.SWEPT not in report.losses


def test_costs_add_up_to_the_products_of_all_steps():
    recipe = make_recipe(with_preset({}))
    correction, nearest, solve, sweeps, refit = 4, 6, 6, 4 + 2 * 3, 6
    costs = [step.cost(recipe) for step in asked(recipe)]
    assert sum(cost.products for cost in costs) == correction + nearest + solve + sweeps + refit
    assert sum(cost.candidates for cost in costs) == recipe.scale_candidates
    annealed = replace(recipe, anneal_rounds=2, anneal_steps=100)
    (cost,) = (step.cost(annealed) for step in asked(annealed) if step.stage is Stage.ANNEALED)
    assert cost.annealing == 2 * 2 * 104  # a product in each step and in each evaluation
