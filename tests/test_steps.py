"""The table of steps: what recipes ask for, and how one more algorithm gets into it."""

import itertools
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import plain
import pytest
from recipes import plain_recipe

from edgeq.algorithms.problem import dequantize
from edgeq.grids.fitting import expand
from edgeq.recipe.recipe import Recipe
from edgeq.registry import load_backend
from edgeq.solving.layer import solve_layer
from edgeq.solving.report import Stage
from edgeq.solving.site import Layer, prepare_site
from edgeq.solving.steps import STEPS, Cost, Step
from edgeq.stopwatch import Stopwatch
from edgeq.types import LayerStatistics

EVERYTHING = plain_recipe(
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
        (
            plain_recipe(solver="rtn", scales="none", propagation_strength=0),
            ["search scales", "solve"],
        ),
        (plain_recipe(scales="first", propagation_strength=0), ["search scales", "solve"]),
        (
            plain_recipe(scales="first", solver="quantease"),
            ["correct", "search scales", "solve", "sweep codes"],
        ),
        (plain_recipe(), ["correct", "search scales", "solve", "refit scales"]),
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
    recipe = plain_recipe(bits=3, group_size=16)

    def fail(layer):
        raise AssertionError

    never = Step("never", fail, Stage.SWEPT, lambda recipe: False)
    _, report = solve_layer(
        layer_of(rng, recipe, load_backend("reference")), Stopwatch(), [*STEPS, never]
    )
    assert Stage.SWEPT not in report.losses


def test_costs_add_up_to_the_products_of_all_steps():
    recipe = Recipe()
    correction, nearest, solve, sweeps, refit = 4, 6, 6, 4 + 2 * 3, 6
    costs = [step.cost(recipe) for step in asked(recipe)]
    assert sum(cost.products for cost in costs) == correction + nearest + solve + sweeps + refit
    assert sum(cost.candidates for cost in costs) == recipe.scale_candidates
    annealed = replace(recipe, anneal_rounds=2, anneal_steps=100)
    (cost,) = (step.cost(annealed) for step in asked(annealed) if step.stage is Stage.ANNEALED)
    assert cost.annealing == 2 * 2 * 104  # a product in each step and in each evaluation


# One more algorithm: it would be a file in edgeq/algorithms, a row in STEPS and a name in Stage.


@dataclass(frozen=True, slots=True)
class Moves:
    """Say how many codes of each row may move."""

    count: int = 1


def move_best_code(problem, solution, moves):
    """Move the one code of each row whose step to a neighbour lowers the loss most, if any does."""
    grid, backend = problem.grid, problem.backend
    codes = backend.to_numpy(solution.codes).copy()
    scales = backend.to_numpy(expand(solution.scales, grid, codes.shape[1], backend))
    curvature = backend.to_numpy(backend.diagonal(problem.H))
    rows = np.arange(codes.shape[0])
    for _ in range(moves.count):
        now = replace(solution, codes=backend.asarray(codes))
        slack = backend.to_numpy(problem.slack(dequantize(problem, now)))
        gains = []
        for sign in (1, -1):
            gain = sign * 2 * scales * slack - scales**2 * curvature
            inside = (codes + sign >= 0) & (codes + sign <= grid.max_code)
            gains.append(np.where(inside, gain, 0.0))
        up = gains[0] >= gains[1]
        gain = np.where(up, *gains)
        best = gain.argmax(axis=1)
        step = np.where(up, 1, -1)[rows, best] * (gain[rows, best] > 0)
        codes[rows, best] += step
    return replace(solution, codes=backend.asarray(codes))


class ToyStage(StrEnum):
    MOVED = "moved"


ROW = Step(
    "move codes",
    lambda layer: lambda problem, solution: move_best_code(problem, solution, Moves(20)),
    ToyStage.MOVED,
    lambda recipe: recipe.scales == "both",
    lambda recipe: Cost(2.0),
)


def with_row():
    """The table with the new row before the refit of the scales."""
    place = next(i for i, step in enumerate(STEPS) if step.stage is Stage.REFITTED)
    return [*STEPS[:place], ROW, *STEPS[place:]]


def test_an_algorithm_with_a_row_is_run_timed_and_measured(backend, rng):
    recipe = plain_recipe(bits=3, group_size=16, propagation_damping=1.0)
    layer, clock = layer_of(rng, recipe, backend), counting_clock()
    before, report_before = solve_layer(layer, Stopwatch())
    after, report = solve_layer(layer, clock, with_row())
    losses = {str(stage): loss for stage, loss in report.losses.items()}
    assert list(losses) == ["round to nearest", "solved", "moved", "refitted"]
    assert losses["moved"] < losses["solved"] == report_before.losses[Stage.SOLVED]
    assert clock.seconds["move codes"] == 1
    assert (after.codes != before.codes).any()


def test_moving_codes_raises_the_loss_of_no_row(backend, rng):
    layer = layer_of(rng, plain_recipe(bits=2, group_size=16, scales="first"), backend)
    solved = []

    def keep(problem, solution):
        solved.append((problem, solution))
        return solution

    solve_layer(layer, Stopwatch(), [*STEPS, Step("keep", lambda layer: keep)])
    problem, solution = solved[0]
    H, V = (backend.to_numpy(array).astype(np.float64) for array in (problem.H, problem.V))
    losses = []
    for count in (0, 1, 5):
        Q = dequantize(problem, move_best_code(problem, solution, Moves(count)))
        losses.append(plain.weighted_loss(backend.to_numpy(Q).astype(np.float64), V, H))
    noise = 1e-6 * plain.weighted_loss(V, 0 * V, H)
    assert (losses[1] <= losses[0] + noise).all() and (losses[2] <= losses[1] + noise).all()
    assert losses[2].sum() < losses[0].sum()
