"""A layer solved some rows at a time: rows do not depend on one another, and temporaries take many
times the weight.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgeq.protocols import Backend
from edgeq.recipe.recipe import Recipe
from edgeq.solving.layer import SiteFactors, solve_layer
from edgeq.solving.report import LayerReport
from edgeq.stopwatch import Stopwatch
from edgeq.types import LayerProblem, QuantizedLinear


def solve_rows(
    problem: LayerProblem,
    site: SiteFactors,
    recipe: Recipe,
    backend: Backend,
    clock: Stopwatch,
    *,
    rows: int | None = None,
) -> tuple[QuantizedLinear, LayerReport]:
    """`solve_layer` on chunks of at most `rows` rows, put together; None solves all rows at once.

    Annealing draws its start for each chunk, so there the chunks take part in the result.
    """
    out_features = problem.W.shape[0]
    if rows is None or rows >= out_features:
        return solve_layer(problem, site, recipe, backend, clock)
    solved, energies = [], []
    for start in range(0, out_features, rows):
        W = problem.W[start : start + rows]
        solved.append(solve_layer(replace(problem, W=W), site, recipe, backend, clock))
        with clock("measure"):
            energies.append(float(((W @ problem.statistics.H) * W).sum()))
    layers, reports = zip(*solved, strict=True)
    shape = (out_features, problem.W.shape[1])
    return join_layers(layers), replace(
        reports[0], shape=shape, losses=join_losses(reports, energies)
    )


def join_layers(parts: Sequence[QuantizedLinear]) -> QuantizedLinear:
    """Rows under rows."""
    return QuantizedLinear(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate([part.offsets for part in parts]),
        parts[0].grid,
    )


def join_losses(reports: Sequence[LayerReport], energies: Sequence[float]) -> dict[str, float]:
    """Losses of the whole layer: each chunk's is a share of its own output energy."""
    total = sum(energies)
    return {
        stage: sum(
            report.losses[stage] * energy for report, energy in zip(reports, energies, strict=True)
        )
        / total
        if total > 0
        else 0.0
        for stage in reports[0].losses
    }
