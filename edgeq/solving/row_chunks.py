"""A layer solved some rows at a time, since temporaries take many times the weight.

Rows do not depend on one another, so any number of them may go together. How many go together is
chosen by `edgeq.planning.memory`.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgeq.algorithms.problem import join_rows, rows_of
from edgeq.solving.layer import output_energy, solve_layer, solve_stack
from edgeq.solving.report import LayerReport, Stage
from edgeq.solving.site import Layer
from edgeq.stopwatch import Stopwatch
from edgeq.types import QuantizedLinear


def solve_rows(
    layer: Layer, clock: Stopwatch, *, rows: int | None = None
) -> tuple[QuantizedLinear, LayerReport]:
    """Solve a layer in chunks of at most `rows` rows; None solves all rows at once.

    Annealing draws its start for each chunk, so there the chunks take part in the result.
    """
    out_features, in_features = layer.W.shape
    H = layer.site.statistics.H
    if rows is None or rows >= out_features:
        return solve_layer(layer, clock)
    solved, reports, energies = [], [], []
    for start in range(0, out_features, rows):
        chunk = replace(layer, W=layer.W[start : start + rows])
        part, report = solve_layer(chunk, clock)
        solved.append(part)
        reports.append(report)
        with clock("measure"):
            energies.append(output_energy(chunk.W, H, chunk.site.backend))
    losses = join_losses(reports, energies)
    whole = replace(reports[0], shape=(out_features, in_features), losses=losses)
    return join_rows(solved, np.concatenate), whole


def solve_stacked(
    layer: Layer, clock: Stopwatch
) -> tuple[list[QuantizedLinear], list[LayerReport]]:
    """Solve layers whose rows are stacked, and take them apart again."""
    solved, reports = solve_stack(layer, clock)
    parts, start = [], 0
    for count in layer.rows.values():
        parts.append(rows_of(solved, slice(start, start + count)))
        start += count
    return parts, reports


def join_losses(reports: Sequence[LayerReport], energies: Sequence[float]) -> dict[Stage, float]:
    """Combine losses of chunks, each a share of its own output energy, into the whole layer's."""
    total = sum(energies)
    joined = dict.fromkeys(reports[0].losses, 0.0)
    if total > 0:
        for stage in joined:
            lost = (r.losses[stage] * e for r, e in zip(reports, energies, strict=True))
            joined[stage] = sum(lost) / total
    return joined
