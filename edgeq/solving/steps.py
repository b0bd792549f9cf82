"""The table of steps: what is done to a layer, which setting asks for it, and what it costs.

Each step is a row of `STEPS`, in the order in which they run. `edgeq.solving.layer` has the loop
that runs, times and measures them, `edgeq.planning.time` adds up their costs, and
`edgeq.algorithms` has what they do.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from edgeq.algorithms.alternation import Turns, alternate
from edgeq.algorithms.gptq import solve_columns
from edgeq.algorithms.group_scale import ScaleSearch, search_scales
from edgeq.algorithms.outliers import eliminate_columns, without_columns
from edgeq.algorithms.problem import Problem
from edgeq.algorithms.propagation_choice import DAMPINGS
from edgeq.algorithms.qqa import Annealing
from edgeq.algorithms.qqa_rounding import anneal_codes, annealing_cost
from edgeq.algorithms.quantease import Sweeps, descend_codes
from edgeq.algorithms.rtn import round_to_nearest
from edgeq.algorithms.scale_descent import Refit
from edgeq.algorithms.scale_refit import refit_scales
from edgeq.grids.super_blocks import fit_min_max
from edgeq.recipe.recipe import Recipe
from edgeq.solving.outlier_columns import columns_of, fit_outliers, solve_around
from edgeq.solving.propagation import correct
from edgeq.solving.report import Stage
from edgeq.solving.site import Layer
from edgeq.types import Array, Solution


@dataclass(frozen=True, slots=True)
class Posed:
    """The problem that the steps after this one solve, with fields for the layer's report."""

    problem: Problem
    facts: Mapping[str, Any] = field(default_factory=dict)


BoundStep = Callable[[Problem, Solution], Solution | Posed]
"""A step with all its settings: gives a better solution or, where it changes the problem, that."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The operations of a step, for the plan of time.

    products and annealing are counted for each weight and input column; products run in the
    precision of the solve, annealing in that of activations. candidates are those of the search for
    scales, counted for each weight.
    """

    products: float = 0.0
    candidates: int = 0
    annealing: float = 0.0


# Counts of products: a matrix product of a weight with a square takes 2 operations for each weight
# and input column, one to multiply and one to add.
LOSS = 4.0  # at most: E H takes 2, and the passes over the weight around it are counted as much

TRIES_OF_TYPES = 6
"""Passes of the search for scales on llama.cpp's types for each one on other grids. Measured on
layers of 512 rows and 1024 columns: 4 to 9."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a solve, as a row of the table.

    clock is the name that its time is booked under. bind gives it the settings of the recipe and
    what the layer's site knows. stage names the loss after it in reports; with None, no loss is
    measured. is_asked says whether a recipe asks for it, cost what it then takes for the plan of
    time.
    """

    clock: str
    bind: Callable[[Layer], BoundStep]
    stage: Stage | None = None
    is_asked: Callable[[Recipe], bool] = lambda recipe: True
    cost: Callable[[Recipe], Cost] = lambda recipe: Cost()


def correction(layer: Layer) -> BoundStep:
    """Move the weight that is to be solved for against inherited error, as QEP does."""

    def run(problem: Problem, solution: Solution) -> Posed:
        found = correct(layer.name, problem, layer.site.propagation, layer.recipe)
        facts = {
            "propagation_strength": found.strength,
            "propagation_damping": found.damping,
            "propagation_retries": found.retries,
            "held_out_gain": found.held_out_gain,
            "few_tokens": found.few_tokens,
        }
        return Posed(replace(problem, V=found.V), facts)

    return run


def correction_cost(recipe: Recipe) -> Cost:
    """Count the correction, and one on a part of the tokens for each damping that is tried."""
    trials = len(DAMPINGS) if recipe.chooses_propagation else 0
    return Cost(4.0 * (1 + trials))  # for each: the product with D, and two triangular solves


def plain_rounding(problem: Problem, solution: Solution) -> Solution:
    """Round the same weight on min-max scales, for reports to compare with."""
    return round_to_nearest(problem, fit_min_max(problem.V, problem.grid, problem.backend))


def outlier_choice(layer: Layer) -> BoundStep:
    """Choose outlier columns, and solve the layer around them."""
    site = layer.site

    def run(problem: Problem, solution: Solution) -> Posed:
        columns = columns_of(problem, site.statistics.H)
        if not columns.size:
            return Posed(problem)
        around, inverse = solve_around(problem, columns, site)
        facts = {
            "damping": inverse.damping,
            "damping_retries": site.damping_retries + inverse.retries,
            "outlier_columns": columns.size,
        }
        return Posed(around, facts)

    return run


def first_scales(problem: Problem, recipe: Recipe) -> Solution:
    """Find stage 1 scales, or min-max scales where the recipe asks for no stage.

    Outlier columns are left out.
    """
    if problem.outlier_columns.size:
        inner = without_columns(problem.V, problem.outlier_columns, problem.backend)
        problem = replace(problem, V=inner)
    if recipe.scales == "none":
        return fit_min_max(problem.V, problem.grid, problem.backend)
    return search_scales(problem, ScaleSearch(recipe.scale_candidates, recipe.scale_refits))


def scale_search(layer: Layer) -> BoundStep:
    """Choose the scales that codes are solved on."""
    return lambda problem, solution: first_scales(problem, layer.recipe)


def search_cost(recipe: Recipe) -> Cost:
    """Count the ranges that are tried; min-max scales take next to nothing.

    Of llama.cpp's types each range is refitted, and integers are moved.
    """
    tried = recipe.scale_candidates * (TRIES_OF_TYPES if recipe.type else 1)
    return Cost(candidates=0 if recipe.scales == "none" else tried)


def refined_problem(layer: Layer) -> BoundStep:
    """State what all refinements lower: linear terms, outlier columns eliminated from them."""

    def run(problem: Problem, solution: Solution) -> Posed:
        truth = truth_of(layer, problem)
        return Posed(eliminate_columns(replace(problem, B=problem.linear_term(), truth=truth)))

    return run


def truth_of(layer: Layer, problem: Problem) -> Array:
    """Compute the linear term of stage 2 where it has a drift of its own, else return None.

    Shapes: (out, in).
    """
    recipe = layer.recipe
    if recipe.scales != "both" or recipe.refit_strength is None or problem.D is None:
        return None
    return layer.W @ problem.H + recipe.refit_strength * (layer.W @ problem.D)


def refines(recipe: Recipe) -> bool:
    """Say whether anything is refined after the solver."""
    return recipe.scales == "both" or recipe.sweep_count > 0 or recipe.anneal_rounds > 0


def refined_cost(recipe: Recipe) -> Cost:
    """Count the drift of the refit's own target, unless the correction's count has drift."""
    own_drift = recipe.needs_drift and not recipe.propagates
    return Cost(4.0 if own_drift else 0.0)  # the products of the weight with H and with D


def sweeps(layer: Layer) -> BoundStep:
    """Bind QuantEase's sweeps over the codes to what the recipe says of them."""
    recipe = layer.recipe
    return partial(descend_codes, sweeps=Sweeps(recipe.sweep_count, recipe.relaxed_sweeps))


def annealing(layer: Layer) -> BoundStep:
    """Bind quasi-quantum annealing of the codes to what the recipe says of it."""
    settings = Annealing(steps=layer.recipe.anneal_steps, seed=layer.recipe.seed)
    return partial(anneal_codes, settings=settings, rounds=layer.recipe.anneal_rounds)


def cost_of_annealing(recipe: Recipe) -> Cost:
    """Count the annealing steps of all rounds."""
    settings = Annealing(steps=recipe.anneal_steps)
    return Cost(LOSS, annealing=annealing_cost(settings, rounds=recipe.anneal_rounds))


def scale_refit(layer: Layer) -> BoundStep:
    """Bind stage 2 of the scales to what the recipe says of it."""
    return partial(refit_scales, refit=Refit(exact=layer.recipe.refit_exactly))


def alternation(layer: Layer) -> BoundStep:
    """Bind further turns of sweeps and refits to what the recipe says of them."""
    recipe = layer.recipe
    turns = Turns(
        recipe.alternations,
        Sweeps(recipe.sweep_count or 1, recipe.relaxed_sweeps),
        Refit(exact=recipe.refit_exactly),
    )
    return partial(alternate, turns=turns)


def outlier_fit(problem: Problem, solution: Solution) -> Solution:
    """Fit the values of outlier columns, where the layer has any, to the target of its scales."""
    if not problem.outlier_columns.size:
        return solution
    return fit_outliers((problem.whole or problem).towards_truth(), solution)


STEPS: tuple[Step, ...] = (
    Step("correct", correction, None, lambda recipe: recipe.propagates, correction_cost),
    Step(
        "measure",
        lambda layer: plain_rounding,
        Stage.NEAREST,
        cost=lambda recipe: Cost(LOSS + 2.0),  # and the output energy that all losses are shares of
    ),
    Step("factor", outlier_choice, None, lambda recipe: recipe.keeps_columns),
    Step("search scales", scale_search, cost=search_cost),
    Step(
        "solve",
        lambda layer: round_to_nearest,
        Stage.SOLVED,
        lambda recipe: recipe.solver == "rtn",
        lambda recipe: Cost(LOSS + 2.0),  # at most what the other solver takes
    ),
    Step(
        "solve",
        lambda layer: solve_columns,
        Stage.SOLVED,
        lambda recipe: recipe.solver != "rtn",  # "quantease" is this and the sweeps below
        lambda recipe: Cost(LOSS + 2.0),
    ),
    Step("factor", refined_problem, None, refines, refined_cost),
    Step(
        "sweep codes",
        sweeps,
        Stage.SWEPT,
        lambda recipe: recipe.sweep_count > 0,
        lambda recipe: Cost(LOSS + 2.0 * recipe.sweep_count),
    ),
    Step(
        "anneal codes",
        annealing,
        Stage.ANNEALED,
        lambda recipe: recipe.anneal_rounds > 0,
        cost_of_annealing,
    ),
    Step(
        "refit scales",
        scale_refit,
        Stage.REFITTED,
        lambda recipe: recipe.scales == "both",
        lambda recipe: Cost(LOSS + 2.0),
    ),
    Step(
        "alternate",
        alternation,
        Stage.ALTERNATED,
        lambda recipe: recipe.scales == "both" and recipe.alternations > 0,
        # a refit and sweeps in each turn; the loss after the last one is not counted
        lambda recipe: Cost(2.0 * recipe.alternations * ((recipe.sweeps or 1) + 1)),
    ),
    Step("fit outliers", lambda layer: outlier_fit, None, lambda recipe: recipe.keeps_columns),
)
"""In the order in which they run; each gets what the one before it left."""
