"""One layer to codes: the loop that runs, times and measures the steps that its recipe asks for.

What each step does is said by `edgeq.solving.steps`; tensors without statistics are rounded here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgeq.algorithms.problem import Problem, join_rows
from edgeq.algorithms.rtn import round_to_nearest
from edgeq.errors import EdgeqError
from edgeq.grids.limits import are_held
from edgeq.protocols import Backend
from edgeq.recipe.recipe import Recipe
from edgeq.solving.importance import column_weights
from edgeq.solving.outlier_columns import plain_outliers, weight_of
from edgeq.solving.report import LayerReport, Stage
from edgeq.solving.site import Layer
from edgeq.solving.steps import STEPS, Posed, Step, first_scales
from edgeq.stopwatch import Stopwatch
from edgeq.types import Array, Grid, NumpyArray, QuantizedLinear, Solution

# of a matrix solved without statistics: embeddings have many rows, and temporaries of each
ROWS_AT_ONCE = 4096
SMALL = 2.0**-32  # the squares of weights from here to its inverse are far from the ends of float32


def solve_layer(
    layer: Layer, clock: Stopwatch, steps: Sequence[Step] = STEPS
) -> tuple[QuantizedLinear, LayerReport]:
    """Quantize one linear layer by the steps that its recipe asks for, and report on each."""
    solved, [report] = solve_stack(replace(layer, rows={}), clock, steps)
    return solved, report


def solve_stack(
    layer: Layer, clock: Stopwatch, steps: Sequence[Step] = STEPS
) -> tuple[QuantizedLinear, list[LayerReport]]:
    """Quantize a layer, or several whose rows it stacks, and report on each of them.

    No row depends on another one, so that each layer comes out as it does alone.
    """
    site, H = layer.site, layer.site.statistics.H
    facts: dict[str, Any] = {
        "damping": site.damping,
        "damping_retries": site.damping_retries,
        "dead_columns": site.dead_columns,
    }
    losses: dict[Stage, NumpyArray] = {}
    problem = layer.problem()
    solution = Solution()
    with clock("measure"):
        units = row_energies(layer.W, H, site.backend)
    for step in steps:
        if not step.is_asked(layer.recipe):
            continue
        # what overflows in NumPy is named where codes and groups are checked
        with clock(step.clock), np.errstate(over="ignore", invalid="ignore"):
            found = step.bind(layer)(problem, solution)
        if isinstance(found, Posed):
            problem = found.problem
            facts |= found.facts
        else:
            solution = found
        if step.stage is not None:
            with clock("measure"):
                losses[step.stage] = row_losses(problem, solution, H)
    grid, reports, start = layer.grid, [], 0
    for name, count in (layer.rows or {layer.name: layer.W.shape[0]}).items():
        rows = slice(start, start + count)
        start += count
        unit = units[rows].sum() or 1.0  # a layer without output has losses of 0
        of_layer = {stage: float(loss[rows].sum() / unit) for stage, loss in losses.items()}
        # offsets of plain rounding may exceed their type
        finite = {stage: loss for stage, loss in of_layer.items() if math.isfinite(loss)}
        shape = count, layer.W.shape[1]
        reports.append(LayerReport(name, shape, grid.bits, grid.group_size, finite, **facts))
    return quantized_linear(problem, solution), reports


def solve_without_statistics(
    W: NumpyArray,
    grid: Grid,
    recipe: Recipe,
    backend: Backend,
    *,
    importance: NumpyArray | None = None,
) -> QuantizedLinear:
    """Round a matrix whose inputs are unknown or one-hot (embedding, head), or were not measured.

    All columns are equally important, unless `importance` has the mean squares of the inputs: a row
    for all of the matrix, or for each of as many parts of it, one below the other.

    Shapes: W (out, in); importance (parts, in).
    """
    weights = np.ones((1, W.shape[1])) if importance is None else column_weights(importance)
    rows = W.shape[0] // len(weights)
    parts = []
    for part, of_part in enumerate(weights):
        columns = backend.asarray(of_part)
        end = (part + 1) * rows
        for start in range(part * rows, end, ROWS_AT_ONCE):
            V = backend.asarray(W[start : min(start + ROWS_AT_ONCE, end)])
            problem = Problem(V, None, grid, backend, importance=columns)
            solution = round_to_nearest(problem, first_scales(problem, recipe))
            parts.append(quantized_linear(problem, solution))
    return join_rows(parts, np.concatenate)


def join_layers(parts: Mapping[tuple[int, int], QuantizedLinear]) -> QuantizedLinear:
    """Put the solved layers of one tensor together, by their rows in the matrix that it is."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    return join_rows([parts[rows] for rows in sorted(parts)], np.concatenate)


def output_energy(W: Array, H: Array, backend: Backend) -> float:
    """Compute tr(W H W.T), the unit of losses in reports."""
    return float(row_energies(W, H, backend).sum())


def row_energies(W: Array, H: Array, backend: Backend) -> NumpyArray:
    """Compute w H w.T of every row w, in float64.

    Weights whose squares float32 does not hold are multiplied by a power of two meanwhile, which
    rounds nothing.
    """
    largest = float(abs(W).max())
    if not largest or SMALL <= largest <= 1 / SMALL:
        return backend.to_numpy(((W @ H) * W).sum(axis=-1)).astype(np.float64)
    factor = 2.0 ** -max(-100, min(100, math.frexp(largest)[1]))  # itself a float32
    W = W * factor
    with np.errstate(invalid="ignore"):  # infinity times zero, of a layer that is then refused
        return backend.to_numpy(((W @ H) * W).sum(axis=-1)).astype(np.float64) / factor**2


def row_losses(problem: Problem, solution: Solution, H: Array) -> NumpyArray:
    """Compute e H e.T for each row of the error that a solution leaves of the corrected weight.

    Outlier columns, where the layer has any, are fitted beside its codes. Shapes: H (in, in), not
    damped.
    """
    whole = problem.whole or problem
    return row_energies(weight_of(whole, solution) - whole.V, H, problem.backend)


def quantized_linear(problem: Problem, solution: Solution) -> QuantizedLinear:
    """Turn a solution in backend arrays into plain data, as checkpoints store it."""
    backend = problem.backend
    codes, grid = backend.to_numpy(solution.codes), problem.grid
    scales = backend.to_numpy(solution.scales).astype(np.float32)
    offsets = backend.to_numpy(solution.offsets).astype(np.float32)
    if grid.type:
        offsets += 0  # products with an integer of zero may be -0, which is hashed as another
    held = are_held(scales, offsets)
    if not held.all():  # such a layer is refused, by name, where its groups are counted
        codes = np.where(held[:, None], codes, 0)
    if not np.isfinite(codes).all():
        raise EdgeqError(
            f"backend {backend.name!r} found codes that are no numbers; "
            "take another backend or --solver rtn"
        )
    if grid.table:
        codes = np.searchsorted(grid.table, codes)
    layer = QuantizedLinear(codes.astype(np.uint8), scales, offsets, grid)
    if grid.super_blocks is not None:
        layer = replace(
            layer,
            super_scales=backend.to_numpy(solution.super_scales).astype(np.float32),
            super_minima=None
            if solution.super_minima is None
            else backend.to_numpy(solution.super_minima).astype(np.float32),
        )
    if solution.outliers is None:
        return layer
    return replace(layer, outliers=plain_outliers(solution.outliers, backend))
