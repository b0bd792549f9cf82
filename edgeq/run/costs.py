"""Measure what each type of each tensor costs: one pass forward and back, one with the solves.

The KL divergence that a small error E of one layer causes is about half of sum_r G_rr (E H E^T)_rr,
with H the second moment of its inputs and G that of the gradient of log p(y) by its outputs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgeq.errors import EdgeqError, NotPositiveDefinite
from edgeq.grids.limits import check_size
from edgeq.recipe.recipe import Recipe
from edgeq.run.candidates import Item
from edgeq.run.pipeline import Job
from edgeq.solving.lending import Lender
from edgeq.solving.site import prepare_site
from edgeq.solving.statistics import statistics_of
from edgeq.solving.type_errors import Weighed, measuring_recipe, rounding_costs, site_costs
from edgeq.sources.reading import largest_magnitude, read_matrix, weight_reader
from edgeq.streams.backward import Sensitivities
from edgeq.types import BlockSpec, Grid, NumpyArray

GRADIENT_WINDOWS = 8  # sequences whose gradients are measured
SOLVE_WINDOWS = 16  # sequences that layers are solved on

Costs = list[list[float]]
"""Of each item, what each of its options costs."""


def measure_costs(
    job: Job, items: Sequence[Item], windows: NumpyArray, tell: Callable[[int, int], None]
) -> Costs:
    """Measure the KL divergence that each option of each item is predicted to cause alone.

    tell gets how many blocks are done, and of how many.

    Shapes: windows (count, tokens), those that a run calibrates on.
    """
    assert job.measure_gradients is not None
    blocks = job.source.blocks()
    tell(0, len(blocks))
    with job.clock("sensitivities"):
        chosen = spread(windows, GRADIENT_WINDOWS)
        matters = job.measure_gradients(job.source, chosen, job.recipe.seed)
    by_layer = layer_costs(job, items, matters, spread(windows, SOLVE_WINDOWS), tell)
    costs = []
    for item in items:
        of_parts = [by_layer[linear.name] for linear in item.layers]
        if not item.layers:
            with job.clock("errors of types"):
                of_parts = outer_costs(job, item, matters)
        grids = [option.grid for option in item.options]
        costs.append([sum(part.get(grid, 0.0) for part in of_parts) for grid in grids])
    return costs


def spread(windows: NumpyArray, count: int) -> NumpyArray:
    """Choose so many windows, evenly spread over all: texts follow one another in them."""
    count = min(count, len(windows))
    chosen: NumpyArray = windows[np.arange(count) * len(windows) // count]
    return chosen


def layer_costs(
    job: Job,
    items: Sequence[Item],
    matters: Sensitivities,
    windows: NumpyArray,
    tell: Callable[[int, int], None],
) -> dict[str, dict[Grid, float]]:
    """Solve rows of all layers on each of their grids, on the inputs that the original gives."""
    recipe = measuring_recipe(job.recipe)
    grids = {
        linear.name: tuple(option.grid for option in item.options)
        for item in items
        for linear in item.layers
    }
    blocks = job.source.blocks()
    last = max(block.index for block in blocks for each in block.linears if each.name in grids)
    activations = job.make_activations(job.source, windows, 0.0)
    costs: dict[str, dict[Grid, float]] = {name: {} for name in grids}
    for block in blocks[: last + 1]:
        costs |= block_costs(job, block, recipe, activations, grids, matters)
        tell(block.index + 1, len(blocks))
    return costs


def block_costs(
    job: Job,
    block: BlockSpec,
    recipe: Recipe,
    activations: Any,
    grids: dict[str, tuple[Grid, ...]],
    matters: Sensitivities,
) -> dict[str, dict[Grid, float]]:
    """Solve rows of a block's layers on each of their grids."""
    lender = Lender(recipe, job.backend, {linear.name: linear for linear in block.linears})
    read = weight_reader(job.source, block)
    costs: dict[str, dict[Grid, float]] = {}
    for site in activations.sites(block):
        if site.lends:
            lender.keep(site)
            continue
        with job.clock("statistics"):
            moments, _ = lender.moments(site)
            statistics, _ = statistics_of(site.name, moments, job.backend)
        layers = []
        for name in site.layers():
            if name in grids:
                weight = read(lender.linears[name])
                check_size(lender.linears[name].tensor, largest_magnitude(weight))
                importance = matters.outputs[name]
                layers.append(Weighed(name, weight, importance, grids[name]))
        if layers:
            with job.clock("errors of types"):
                try:
                    factors = prepare_site(statistics, recipe, job.backend)
                except NotPositiveDefinite as error:
                    raise EdgeqError(f"inputs of layer {site.name!r}: {error}") from error
                costs |= site_costs(factors, layers, recipe)
    return costs


def outer_costs(job: Job, item: Item, matters: Sensitivities) -> list[dict[Grid, float]]:
    """Round rows of embedding and head on each of their grids."""
    decoder = job.source.record.decoder
    recipe, grids = measuring_recipe(job.recipe), [option.grid for option in item.options]
    found = []
    for name in item.tensors:
        matrix = read_matrix(job.source, name)
        check_size(name, largest_magnitude(matrix))
        if name == decoder.embedding:
            width = matrix.shape[1]
            columns = matters.embedding * decoder.embedding_scale**2
            if len(columns) != width:  # a product lies between it and the hidden states
                columns = np.full(width, columns.mean())
            H = np.diag(columns)
            often = matters.tokens[: len(matrix)]
            found.append(rounding_costs(matrix, often, H, grids, recipe, job.backend))
        if name == decoder.head or decoder.tied_head:
            H, rows = matters.head_inputs, matters.head[: len(matrix)]
            found.append(rounding_costs(matrix, rows, H, grids, recipe, job.backend))
    return found
