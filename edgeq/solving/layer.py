"""One layer from its weight and its site's statistics to codes: correction, scales, solver,
refinements.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from edgeq.algorithms.alternation import Turns, alternate
from edgeq.algorithms.damping import (
    DampedFactor,
    damped,
    factorise,
    inverse_upper_factor,
    settle_dead_columns,
)
from edgeq.algorithms.gptq import activation_order, solve_columns
from edgeq.algorithms.group_scale import importance_of, search_scales
from edgeq.algorithms.layer_loss import Target
from edgeq.algorithms.outliers import eliminate_columns, without_columns
from edgeq.algorithms.qqa import Annealing
from edgeq.algorithms.qqa_rounding import anneal_codes
from edgeq.algorithms.quantease import descend_codes
from edgeq.algorithms.rtn import round_to_nearest
from edgeq.algorithms.scale_refit import refit_scales
from edgeq.grids.fitting import fit_min_max
from edgeq.protocols import Backend
from edgeq.recipe.recipe import Recipe
from edgeq.solving.outlier_columns import (
    columns_of,
    factor_around,
    fit_outliers,
    importance_around,
    no_columns,
    plain_outliers,
    weight_around,
)
from edgeq.solving.propagation import Propagation, correct, prepare_propagation
from edgeq.solving.report import LayerReport, Stage
from edgeq.solving.statistics import Split
from edgeq.stopwatch import Stopwatch
from edgeq.types import (
    Array,
    Grid,
    GroupScales,
    LayerProblem,
    LayerStatistics,
    NumpyArray,
    QuantizedLinear,
)

ROWS_AT_ONCE = 4096  # of a matrix solved without statistics: embeddings have many rows


@dataclass(frozen=True, slots=True)
class SiteFactors:
    """What the layers of a site share: settled statistics and their factors.

    U factors the inverse of H + lambda I of the solver. importance weighs each column's error in
    the search for scales. outlier_columns are those of the one layer that the factors were turned
    around for by `around_outliers`.
    """

    statistics: LayerStatistics
    H_damped: Array
    importance: Array
    U: Array | None
    order: NumpyArray | None
    dead_columns: int
    damping: float
    damping_retries: int
    propagation: Propagation
    outlier_columns: NumpyArray = field(default_factory=no_columns)


def prepare_site(
    statistics: LayerStatistics, recipe: Recipe, backend: Backend, *, split: Split | None = None
) -> SiteFactors:
    """Settle unseen inputs and factor the second moment, once for all layers of a site.

    split is needed where the recipe chooses the strength of the propagation.
    """
    settled, dead_columns = settle_dead_columns(statistics, backend)
    H, order = settled.H, None
    inverse = DampedFactor(None, recipe.damping, 0)
    if recipe.solver != "rtn":  # before the other factor: this one takes more memory on its way
        if recipe.activation_order:
            order = activation_order(H, backend)
        inverse = factorise(H, recipe.damping, backend, inverse_upper_factor, order=order)
    importance = importance_of(H, inverse.factor, recipe.scale_weighting, backend, order=order)
    propagation = prepare_propagation(settled, split, recipe, backend)
    return SiteFactors(
        settled,
        damped(settled.H, inverse.damping, backend),
        importance,
        inverse.factor,
        order,
        dead_columns,
        inverse.damping,
        inverse.retries,
        propagation,
    )


def solve_layer(
    problem: LayerProblem, site: SiteFactors, recipe: Recipe, backend: Backend, clock: Stopwatch
) -> tuple[QuantizedLinear, LayerReport]:
    """Quantize one linear layer: a pure function of (W, H, D, grid, recipe)."""
    W, grid, losses = problem.W, problem.grid, {}
    with clock("correct"):
        correction = correct(problem.name, W, site.propagation, recipe, backend)
        V = correction.V
    with clock("measure"):
        unit = output_energy(problem)
        losses[Stage.NEAREST] = nearest_loss(problem, V, site, backend) / unit
    with clock("factor"):
        site = around_outliers(site, V, grid, backend)
    with clock("search scales"):
        inner = (
            without_columns(V, site.outlier_columns, backend) if site.outlier_columns.size else V
        )
        fitted = first_scales(inner, site.importance, grid, recipe, backend)
    with clock("solve"):
        codes = choose_codes(V, site, fitted, grid, recipe, backend)
    with clock("measure"):
        losses[Stage.SOLVED] = layer_loss(codes, fitted, problem, V, site, backend) / unit
    stages = refinements(codes, fitted, problem, V, site, recipe, backend, clock)
    for stage, codes, fitted in stages:
        with clock("measure"):
            losses[stage] = layer_loss(codes, fitted, problem, V, site, backend) / unit
    report = LayerReport(
        problem.name,
        tuple(W.shape),
        grid.bits,
        grid.group_size,
        losses,
        propagation_strength=correction.strength,
        held_out_gain=correction.held_out_gain,
        damping=site.damping,
        damping_retries=site.damping_retries,
        propagation_damping=correction.damping,
        propagation_retries=correction.retries,
        few_tokens=correction.few_tokens,
        dead_columns=site.dead_columns,
        outlier_columns=site.outlier_columns.size,
    )
    return solved_linear(codes, fitted, problem, V, site, recipe, backend, clock), report


def around_outliers(site: SiteFactors, V: Array, grid: Grid, backend: Backend) -> SiteFactors:
    """The factors of a site for one of its layers, whose outlier columns the others do not make up
    for.
    """
    columns = columns_of(V, site.statistics.H, grid, backend)
    if not columns.size:
        return site
    order, inverse = factor_around(site.statistics.H, columns, site.order, site.damping, backend)
    return replace(
        site,
        H_damped=damped(site.statistics.H, inverse.damping, backend),
        U=inverse.factor,
        order=order,
        importance=importance_around(site.importance, columns, backend),
        damping=inverse.damping,
        damping_retries=site.damping_retries + inverse.retries,
        outlier_columns=columns,
    )


def first_scales(
    V: Array, importance: Array, grid: Grid, recipe: Recipe, backend: Backend
) -> GroupScales:
    """Stage 1 scales, or min-max scales when the recipe asks for no stage."""
    if recipe.scales == "none":
        return fit_min_max(V, grid, backend)
    return search_scales(
        V, importance, grid, backend, candidates=recipe.scale_candidates, refits=recipe.scale_refits
    )


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
) -> Iterator[tuple[Stage, Array, GroupScales]]:
    """What the recipe does with solved codes, stage by stage: its name in reports, then codes and
    scales after it.
    """
    grid = problem.grid
    sweeps = recipe.sweep_count
    if not (sweeps or recipe.anneal_rounds or recipe.scales == "both"):
        return
    target, truth = targets(problem, V, site, recipe, backend)
    if sweeps:
        with clock("sweep codes"):
            codes = descend_codes(
                codes,
                fitted,
                target,
                grid,
                backend,
                sweeps=sweeps,
                relaxed=recipe.relaxed_sweeps,
                order=site.order,
            )
        yield Stage.SWEPT, codes, fitted
    if recipe.anneal_rounds:
        with clock("anneal codes"):
            settings = Annealing(steps=recipe.anneal_steps, seed=recipe.seed)
            codes = anneal_codes(
                codes, fitted, target, grid, backend, settings=settings, rounds=recipe.anneal_rounds
            )
        yield Stage.ANNEALED, codes, fitted
    if recipe.scales == "both":
        with clock("refit scales"):
            B = target.B if truth is None else truth
            fitted = refit_scales(
                codes, fitted, B, target.H, grid, backend, exact=recipe.refit_exactly
            )
        yield Stage.REFITTED, codes, fitted
        if recipe.alternations:
            turns = Turns(
                recipe.alternations, sweeps or 1, recipe.relaxed_sweeps, recipe.refit_exactly
            )
            with clock("alternate"):
                codes, fitted = alternate(
                    codes, fitted, target, grid, backend, turns=turns, truth=truth, order=site.order
                )
            yield Stage.ALTERNATED, codes, fitted


def targets(
    problem: LayerProblem, V: Array, site: SiteFactors, recipe: Recipe, backend: Backend
) -> tuple[Target, Array | None]:
    """What codes, and scales if by a target of their own, are refined for: outlier columns follow
    whatever they do.
    """
    target = eliminate_columns(
        Target(V @ site.H_damped, site.H_damped, V), site.outlier_columns, backend
    )
    truth = refit_target(problem.W, site, recipe)
    if truth is not None:
        truth = eliminate_columns(Target(truth, site.H_damped), site.outlier_columns, backend).B
    return target, truth


def refit_target(W: Array, site: SiteFactors, recipe: Recipe) -> Array | None:
    """The linear term of stage 2 where it has a drift of its own; None where scales go the way of
    the codes.
    """
    if recipe.scales != "both" or recipe.refit_strength is None or site.statistics.D is None:
        return None
    return W @ site.H_damped + recipe.refit_strength * (W @ site.statistics.D)


def solve_without_statistics(
    W: NumpyArray, grid: Grid, recipe: Recipe, backend: Backend
) -> QuantizedLinear:
    """Round a matrix whose inputs are unknown or one-hot (embedding, head), all columns equally
    important.

    Shapes: W (out, in).
    """
    equal = backend.asarray(np.ones(W.shape[1]))
    parts = []
    for start in range(0, W.shape[0], ROWS_AT_ONCE):
        V = backend.asarray(W[start : start + ROWS_AT_ONCE])
        fitted = first_scales(V, equal, grid, recipe, backend)
        parts.append(
            quantized_linear(round_to_nearest(V, fitted, grid, backend), fitted, grid, backend)
        )
    return QuantizedLinear(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate([part.offsets for part in parts]),
        grid,
    )


def output_energy(problem: LayerProblem) -> float:
    """tr(W H W.T), the unit of losses in reports; 1 for a layer without output, whose losses are
    0.
    """
    return float(((problem.W @ problem.statistics.H) * problem.W).sum()) or 1.0


def layer_loss(
    codes: Array,
    fitted: GroupScales,
    problem: LayerProblem,
    V: Array,
    site: SiteFactors,
    backend: Backend,
) -> float:
    """tr(E H E.T) of the error E that codes, and outlier columns fitted beside them, leave of the
    corrected weight.
    """
    E = (
        weight_around(site.outlier_columns, codes, fitted, V, site.H_damped, problem.grid, backend)
        - V
    )
    return float(((E @ problem.statistics.H) * E).sum())


def nearest_loss(problem: LayerProblem, V: Array, site: SiteFactors, backend: Backend) -> float:
    """The loss of rounding the same corrected weight on min-max scales: what the report compares
    with.
    """
    fitted = fit_min_max(V, problem.grid, backend)
    return layer_loss(
        round_to_nearest(V, fitted, problem.grid, backend), fitted, problem, V, site, backend
    )


def solved_linear(
    codes: Array,
    fitted: GroupScales,
    problem: LayerProblem,
    V: Array,
    site: SiteFactors,
    recipe: Recipe,
    backend: Backend,
    clock: Stopwatch,
) -> QuantizedLinear:
    """The solution in plain data, its outlier columns fitted to the target that scales are refitted
    to.
    """
    if not site.outlier_columns.size:
        return quantized_linear(codes, fitted, problem.grid, backend)
    truth = refit_target(problem.W, site, recipe)
    with clock("fit outliers"):
        target = Target(V @ site.H_damped if truth is None else truth, site.H_damped)
        codes, outliers = fit_outliers(
            codes, fitted, target, site.outlier_columns, problem.grid, backend
        )
    layer = quantized_linear(codes, fitted, problem.grid, backend)
    return replace(layer, outliers=plain_outliers(outliers, backend))


def quantized_linear(
    codes: Array, fitted: GroupScales, grid: Grid, backend: Backend
) -> QuantizedLinear:
    """From backend arrays to plain data."""
    return QuantizedLinear(
        backend.to_numpy(codes).astype(np.uint8),
        backend.to_numpy(fitted.scales).astype(np.float32),
        backend.to_numpy(fitted.offsets).astype(np.float32),
        grid,
    )
