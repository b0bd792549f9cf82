"""What each grid that a layer may have costs, from one solve for each grid on the same statistics.

The solves are GPTQ on the original model's own inputs, of some rows of each layer. Errors are
weighed by how much each output matters; their unit is the KL divergence that they cause alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeq.protocols import Backend
from edgeq.recipe.recipe import Recipe
from edgeq.solving.layer import solve_layer, solve_without_statistics
from edgeq.solving.site import Layer, SiteFactors
from edgeq.stopwatch import Stopwatch
from edgeq.types import Array, Grid, NumpyArray

ROWS = 128  # of a layer that are solved for each grid: their mean is known to a few percent
CHUNK = 4096  # rows of a large matrix whose products are in memory at once

Costs = Mapping[Grid, float]


@dataclass(frozen=True, slots=True)
class Weighed:
    """A layer of a site, and how much each of its outputs matters.

    Shapes: W (out, in); importance (out,).
    """

    name: str
    W: NumpyArray
    importance: NumpyArray
    grids: tuple[Grid, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows that stand for all of a layer, and what each one's error is multiplied by.

    Shapes: rows and weights (sampled,).
    """

    rows: NumpyArray
    weights: NumpyArray


def measuring_recipe(recipe: Recipe) -> Recipe:
    """Leave out of a recipe what refines a layer after its solve, and what other layers decide."""
    return replace(
        recipe,
        solver="rtn" if recipe.solver == "rtn" else "gptq",
        scales="none" if recipe.scales == "none" else "first",
        refit_strength=None,
        sweeps=0,
        relaxed_sweeps=False,
        alternations=0,
        anneal_rounds=0,
        propagation_strength=0,
        outlier_columns=0.0,
        overrides=(),
    )


def site_costs(
    site: SiteFactors, layers: Sequence[Weighed], recipe: Recipe
) -> dict[str, dict[Grid, float]]:
    """Solve rows of a site's layers on each of their grids, and give what the errors cost.

    The rows of all layers that may have the same grid are solved together.
    """
    H, backend = site.statistics.H, site.backend
    samples = {
        layer.name: sample_rows(row_energies(layer.W, H, backend), layer.importance)
        for layer in layers
    }
    costs: dict[str, dict[Grid, float]] = {layer.name: {} for layer in layers}
    for grid in dict.fromkeys(grid for layer in layers for grid in layer.grids):
        having = [layer for layer in layers if grid in layer.grids]
        W = np.concatenate([layer.W[samples[layer.name].rows] for layer in having])
        posed = Layer("", backend.asarray(W), grid, site, recipe)
        solved, _ = solve_layer(posed, Stopwatch())
        errors = row_energies(solved.dequantized() - W, H, backend)
        start = 0
        for layer in having:
            sample = samples[layer.name]
            part = errors[start : start + len(sample.rows)]
            costs[layer.name][grid] = 0.5 * float(sample.weights @ part)
            start += len(sample.rows)
    return costs


def rounding_costs(
    W: NumpyArray,
    importance: NumpyArray,
    H: NumpyArray,
    grids: Sequence[Grid],
    recipe: Recipe,
    backend: Backend,
) -> dict[Grid, float]:
    """Round rows of an embedding or a head on each grid, and give what the errors cost.

    Shapes: W (out, in); importance (out,); H (in, in), the second moment of what multiplies W.
    """
    moments = backend.asarray(H)
    sample = sample_rows(row_energies(W, moments, backend), importance)
    rows = W[sample.rows]
    costs = {}
    for grid in grids:
        solved = solve_without_statistics(rows, grid, recipe, backend)
        errors = row_energies(solved.dequantized() - rows, moments, backend)
        costs[grid] = 0.5 * float(sample.weights @ errors)
    return costs


def row_energies(W: NumpyArray, H: Array, backend: Backend) -> NumpyArray:
    """Compute the diagonal of W H W^T, in float64.

    Shapes: W (out, in) -> (out,).
    """
    parts = []
    for start in range(0, len(W), CHUNK):
        V = backend.asarray(W[start : start + CHUNK])
        parts.append(backend.to_numpy(((V @ H) * V).sum(axis=1)).astype(np.float64))
    energies: NumpyArray = np.concatenate(parts).clip(min=0)
    return energies


def sample_rows(energies: NumpyArray, importance: NumpyArray, count: int = ROWS) -> Sample:
    """Choose rows by what they contribute to the output that matters, evenly over their sum.

    A row is chosen as often as its share says, and stands for as much. A layer of few rows has all.

    Shapes: energies and importance (out,).
    """
    if len(energies) <= count:
        return Sample(np.arange(len(energies)), importance)
    reached = np.cumsum(energies * importance)
    total = float(reached[-1])
    if not total > 0:
        return Sample(np.arange(count), np.zeros(count))
    places = (np.arange(count) + 0.5) / count * total
    rows, times = np.unique(np.searchsorted(reached, places), return_counts=True)
    return Sample(rows, times * total / (count * energies[rows]))
