"""One layer from its weight and its site's statistics to codes: correction, scales, solver, refinements."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from edgeq.algorithms.alternation import Turns, alternate
from edgeq.algorithms.damping import (
    DampedFactor,
    damped,
    factorise,
    in_order,
    inverse_upper_factor,
    lower_factor,
    settle_dead_columns,
)
from edgeq.algorithms.gptq import activation_order, solve_columns
from edgeq.algorithms.group_scale import importance_of, search_scales
from edgeq.algorithms.layer_loss import Target, dequantize
from edgeq.algorithms.qep import correct_weight
from edgeq.algorithms.qqa import Annealing
from edgeq.algorithms.qqa_rounding import anneal_codes
from edgeq.algorithms.quantease import descend_codes
from edgeq.algorithms.rtn import round_to_nearest
from edgeq.algorithms.scale_refit import refit_scales
from edgeq.grid import fit_min_max
from edgeq.protocols import Backend
from edgeq.recipe import Recipe
from edgeq.stopwatch import Stopwatch
from edgeq.types import Array, Grid, GroupScales, LayerProblem, LayerStatistics, NumpyArray, QuantizedLinear

QUANTEASE_SWEEPS = 5  # of the solver of that name where the recipe asks for no number
ROWS_AT_ONCE = 4096  # of a matrix solved without statistics: embeddings have many rows


@dataclass(frozen=True, slots=True)
class SiteFactors:
    """What the layers of a site share: settled statistics and their factors.

    L factors H + lambda I of the propagation, None where no earlier layer was quantized; U of the solver. importance
    weighs each column's error in the search for scales.
    """

    statistics: LayerStatistics
    H_damped: Array
    importance: Array
    L: Array | None
    U: Array | None
    order: NumpyArray | None
    dead_columns: int
    damping: float
    damping_retries: int
    propagation_damping: float | None
    propagation_retries: int


@dataclass(frozen=True, slots=True)
class LayerReport:
    """How a layer came out. Losses are tr(E H E.T) / tr(W H W.T), with E the dequantized minus the corrected weight."""

    name: str
    shape: tuple[int, int]
    bits: int
    group_size: int | None
    losses: dict[str, float] = field(default_factory=dict)
    propagated: bool = False
    damping: float | None = None
    damping_retries: int = 0
    propagation_damping: float | None = None
    propagation_retries: int = 0
    dead_columns: int = 0


def prepare_site(statistics: LayerStatistics, recipe: Recipe, backend: Backend) -> SiteFactors:
    """Settle unseen inputs and factor the second moment, once for all layers of a site."""
    settled, dead_columns = settle_dead_columns(statistics, backend)
    H, order = settled.H, None
    propagation = inverse = DampedFactor(None, recipe.damping, 0)
    if recipe.solver != "rtn":  # before the other factor: this one takes more memory on its way
        if recipe.activation_order:
            order = activation_order(H, backend)
        inverse = factorise(H, recipe.damping, backend, inverse_upper_factor, order=order)
        H = in_order(H, order, backend)
    importance = importance_of(H, inverse.factor, recipe.scale_weighting, backend)
    if order is not None:
        importance = backend.take(importance, np.argsort(order), 0)
    del H
    if settled.D is not None and recipe.propagates:
        propagation = factorise(settled.H, recipe.propagation_damping, backend, lower_factor)
    return SiteFactors(
        settled, damped(settled.H, inverse.damping, backend), importance, propagation.factor, inverse.factor,
        order, dead_columns, inverse.damping, inverse.retries,
        propagation.damping if propagation.factor is not None else None, propagation.retries,
    )  # fmt: skip


def solve_layer(
    problem: LayerProblem, site: SiteFactors, recipe: Recipe, backend: Backend, clock: Stopwatch
) -> tuple[QuantizedLinear, LayerReport]:
    """Quantize one linear layer: a pure function of (W, H, D, grid, recipe)."""
    W, grid, losses = problem.W, problem.grid, {}
    strength = recipe.strength_of(problem.name)
    with clock("correct"):
        V = corrected(W, site, strength, backend)
    with clock("search scales"):
        fitted = first_scales(V, site.importance, grid, recipe, backend)
    with clock("solve"):
        codes = choose_codes(V, site, fitted, grid, recipe, backend)
    with clock("measure"):
        losses["round to nearest"] = nearest_loss(problem, V, site, backend)
        losses["solved"] = relative_loss(codes, fitted, problem, V, site, backend)
    for stage, codes, fitted in refinements(codes, fitted, problem, V, site, recipe, backend, clock):  # noqa: B020
        with clock("measure"):
            losses[stage] = relative_loss(codes, fitted, problem, V, site, backend)
    report = LayerReport(
        problem.name, tuple(W.shape), grid.bits, grid.group_size, losses,
        propagated=site.L is not None and strength > 0, damping=site.damping,
        damping_retries=site.damping_retries, propagation_damping=site.propagation_damping,
        propagation_retries=site.propagation_retries, dead_columns=site.dead_columns,
    )  # fmt: skip
    return quantized_linear(codes, fitted, grid, backend), report


def corrected(W: Array, site: SiteFactors, strength: float, backend: Backend) -> Array:
    """The weight to quantize: moved against inherited error where there is any."""
    if site.L is None or strength == 0:
        return W
    return correct_weight(W, site.statistics.D, site.L, backend, propagation_strength=strength)


def first_scales(V: Array, importance: Array, grid: Grid, recipe: Recipe, backend: Backend) -> GroupScales:
    """Stage 1 scales, or min-max scales when the recipe asks for no stage."""
    if recipe.scales == "none":
        return fit_min_max(V, grid, backend)
    return search_scales(V, importance, grid, backend, candidates=recipe.scale_candidates, refits=recipe.scale_refits)


def choose_codes(
    V: Array, site: SiteFactors, fitted: GroupScales, grid: Grid, recipe: Recipe, backend: Backend
) -> Array:
    """The solver that the recipe names."""
    if recipe.solver == "rtn":
        return round_to_nearest(V, fitted, grid, backend)
    return solve_columns(V, site.U, fitted, grid, backend, order=site.order)


def refinements(
    codes: Array,
    fitted: GroupScales,
    problem: LayerProblem,
    V: Array,
    site: SiteFactors,
    recipe: Recipe,
    backend: Backend,
    clock: Stopwatch,
) -> Iterator[tuple[str, Array, GroupScales]]:
    """What the recipe does with solved codes, stage by stage: its name in reports, then codes and scales after it."""
    grid = problem.grid
    sweeps = recipe.sweeps or (QUANTEASE_SWEEPS if recipe.solver == "quantease" else 0)
    if not (sweeps or recipe.anneal_rounds or recipe.scales == "both"):
        return
    target = Target(V @ site.H_damped, site.H_damped)
    if sweeps:
        with clock("sweep codes"):
            codes = descend_codes(
                codes, fitted, target, grid, backend, sweeps=sweeps, relaxed=recipe.relaxed_sweeps, order=site.order
            )
        yield "swept", codes, fitted
    if recipe.anneal_rounds:
        with clock("anneal codes"):
            settings = Annealing(steps=recipe.anneal_steps, seed=recipe.seed)
            codes = anneal_codes(codes, fitted, target, grid, backend, settings=settings, rounds=recipe.anneal_rounds)
        yield "annealed", codes, fitted
    if recipe.scales == "both":
        truth = refit_target(problem.W, site, recipe)
        with clock("refit scales"):
            B = target.B if truth is None else truth
            fitted = refit_scales(codes, fitted, B, target.H, grid, backend, exact=recipe.refit_exactly)
        yield "refitted", codes, fitted
        if recipe.alternations:
            turns = Turns(recipe.alternations, sweeps or 1, recipe.relaxed_sweeps, recipe.refit_exactly)
            with clock("alternate"):
                codes, fitted = alternate(
                    codes, fitted, target, grid, backend, turns=turns, truth=truth, order=site.order
                )
            yield "alternated", codes, fitted


def refit_target(W: Array, site: SiteFactors, recipe: Recipe) -> Array | None:
    """The linear term of stage 2 where it has a drift of its own; None where scales go the way of the codes."""
    if recipe.refit_strength is None or site.statistics.D is None:
        return None
    return W @ site.H_damped + recipe.refit_strength * (W @ site.statistics.D)


def solve_without_statistics(W: NumpyArray, grid: Grid, recipe: Recipe, backend: Backend) -> QuantizedLinear:
    """Round a matrix whose inputs are unknown or one-hot (embedding, head), all columns equally important.

    Shapes: W (out, in).
    """
    equal = backend.asarray(np.ones(W.shape[1]))
    parts = []
    for start in range(0, W.shape[0], ROWS_AT_ONCE):
        V = backend.asarray(W[start : start + ROWS_AT_ONCE])
        fitted = first_scales(V, equal, grid, recipe, backend)
        parts.append(quantized_linear(round_to_nearest(V, fitted, grid, backend), fitted, grid, backend))
    return QuantizedLinear(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate([part.offsets for part in parts]),
        grid,
    )


def relative_loss(
    codes: Array, fitted: GroupScales, problem: LayerProblem, V: Array, site: SiteFactors, backend: Backend
) -> float:
    """The layer loss against the corrected weight, as a fraction of the layer's output energy."""
    H = site.statistics.H
    E = dequantize(codes, fitted, problem.grid, backend) - V
    energy = float(((problem.W @ H) * problem.W).sum())
    return float(((E @ H) * E).sum()) / energy if energy > 0 else 0.0


def nearest_loss(problem: LayerProblem, V: Array, site: SiteFactors, backend: Backend) -> float:
    """The loss of rounding the same corrected weight on min-max scales: what the report compares with."""
    fitted = fit_min_max(V, problem.grid, backend)
    codes = round_to_nearest(V, fitted, problem.grid, backend)
    return relative_loss(codes, fitted, problem, V, site, backend)


def quantized_linear(codes: Array, fitted: GroupScales, grid: Grid, backend: Backend) -> QuantizedLinear:
    """From backend arrays to plain data."""
    return QuantizedLinear(
        backend.to_numpy(codes).astype(np.uint8),
        backend.to_numpy(fitted.scales).astype(np.float32),
        backend.to_numpy(fitted.offsets).astype(np.float32),
        grid,
    )
