"""Stage 1 of the group scales: a search before the codes are chosen.

Stage 2, the refit to the layer's loss after that, is `edgeq.algorithms.scale_refit`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from edgeq.algorithms.problem import Problem, join_rows
from edgeq.algorithms.rounding_loss import Groups
from edgeq.algorithms.super_block_scales import fit_super_blocks
from edgeq.grids.fitting import (
    group_range,
    grouped,
    offsets_for,
    round_to_codes,
    scales_for_range,
    store_scales,
    zero_points,
)
from edgeq.grids.super_blocks import free_grid
from edgeq.protocols import Backend
from edgeq.types import Array, Grid, NumpyArray, ScaleWeighting, Solution

SHRINK_TO = 0.4  # of the full range: where the search ends
CUT_LEVELS = 5.0  # at most this many levels of a group of llama.cpp's types are left beyond it
MOST_REACH = 3  # of integers: their tries grow with its square where there are minima
CANDIDATES_PER_STEP = 6  # of integers of two-level scales, which are searched as finely
EQUAL = 1e-9  # share of the energy of codes below which their spread is a rounding error
Best = tuple[Array, Array, Array]  # scales, offsets and what they lose


@dataclass(frozen=True, slots=True)
class ScaleSearch:
    """Say how many ranges are tried for each group, and how often the best one is refitted.

    Where scales have two levels, reach is how far their integers are tried to move, 0 for what goes
    with the candidates, and floats how many more floats of super-blocks are tried: far too slow for
    models, and near the best there is.
    """

    candidates: int = 18
    refits: int = 1
    reach: int = 0
    floats: int = 0

    @property
    def own_reach(self) -> int:
        """Give the reach that goes with the candidates."""
        return min(MOST_REACH, max(1, self.candidates // CANDIDATES_PER_STEP))


SEARCH = ScaleSearch()


def search_scales(problem: Problem, search: ScaleSearch = SEARCH) -> Solution:
    """Find, per row and group, the scale whose rounding error weighs least on the output.

    min over s of sum_j importance_j (v_j - Q_s(v_j))^2, over ranges shrunk to p = 1 .. 0.4, then
    refitted by least squares and rounded again. Never worse than min-max scales in that measure. On
    a symmetric grid, whose codes reach one step further down than up, negative scales are tried
    too. Scales are rounded to their storage dtype before they are judged.

    Source: the first stage of "two-stage group-scale optimisation", arXiv 2602.02126.
    """
    V, grid, backend = problem.V, free_grid(problem.grid), problem.backend
    two_levels = problem.grid.super_blocks is not None
    weights = grouped(problem.importance.reshape(1, -1), grid, backend)
    rows = backend.rows_at_once(V.shape[1])  # passes over them are a few hundred
    parts = []
    for start in range(0, V.shape[0], rows):
        values = grouped(V[start : start + rows], grid, backend)
        groups = Groups(values, weights, grid, backend)
        found = _search_rows(groups, search)
        if two_levels:
            reach, floats = search.reach or search.own_reach, search.floats
            found = fit_super_blocks(groups, found, problem.grid, reach=reach, floats=floats)
        parts.append(found)
    return parts[0] if len(parts) == 1 else join_rows(parts, backend.concatenate)


def _search_rows(groups: Groups, search: ScaleSearch) -> Solution:
    grid, backend = groups.grid, groups.backend
    low, high = group_range(groups.values, backend)

    def tried() -> Iterator[Solution]:
        yield scales_for_range(low, high, grid, backend)
        for shrink in np.linspace(1.0, shrink_to(grid), search.candidates):
            for candidate in _candidates(float(shrink) * low, float(shrink) * high, grid, backend):
                yield candidate
                if grid.type:
                    yield _least_squares(groups, candidate)

    best = _best_of(groups, tried())
    for _ in range(search.refits):
        best = _best_of(groups, [_least_squares(groups, Solution(*best[:2]))], best)
    if grid.table:  # weights far below the least scale are nearer to zero than to any level of it
        best = _best_of(groups, [Solution(0.0 * best[0], 0.0 * best[1])], best)
    return Solution(*best[:2])


def shrink_to(grid: Grid) -> float:
    """Say where the search ends, as a share of the full range.

    llama.cpp's types have small groups, which hold few outliers: where levels are many, none is
    cut far.
    """
    return max(SHRINK_TO, 1 - CUT_LEVELS / grid.max_code) if grid.type else SHRINK_TO


def importance_of(
    H: Array,
    U: Array | None,
    weighting: ScaleWeighting,
    backend: Backend,
    *,
    order: NumpyArray | None = None,
) -> Array:
    """Weigh each input column by what an error in it costs, for the search for scales.

    "diagonal": H_jj, the cost if no other weight moves. "conditional": 1 / [(H + lambda I)^-1]_jj,
    the cost once all others have made up for what they can, which is nearer to what compensating
    solvers leave. "mean": the geometric mean of both, never far from the better one.

    Shapes: H (in, in); U (in, in), the inverse's factor U^T U of the solver, of H in `order`.
    """
    alone = backend.diagonal(H)
    if weighting == "diagonal" or U is None:
        return alone
    conditional = 1 / (U * U).sum(axis=0)
    if order is not None:
        conditional = backend.take(conditional, np.argsort(order), 0)
    return conditional if weighting == "conditional" else (alone * conditional) ** 0.5


def _candidates(low: Array, high: Array, grid: Grid, backend: Backend) -> list[Solution]:
    fitted = scales_for_range(low, high, grid, backend)
    if grid.zeros != "symmetric":
        return [fitted]
    return [fitted, Solution(-fitted.scales, -fitted.offsets)]


def _best_of(groups: Groups, tried: Iterable[Solution], best: Best | None = None) -> Best:
    pairs = ((each.scales, each.offsets) for each in tried)
    return groups.backend.choose_scales(groups.values, groups.weights, pairs, groups.grid, best)


def _least_squares(groups: Groups, fitted: Solution) -> Solution:
    """Fit the scales (and free offsets) best to the weights with their codes held fixed."""
    values, weights, grid, backend = groups.values, groups.weights, groups.grid, groups.backend
    old_scales, old_offsets = fitted.scales[:, :, None], fitted.offsets[:, :, None]
    codes = round_to_codes(values, old_scales, old_offsets, grid, backend)
    if grid.zeros == "offset":
        total = weights.sum(axis=-1)[:, :, None]
        centre = (weights * codes).sum(axis=-1)[:, :, None] / total
        features = codes - centre
    else:
        zeros = zero_points(fitted, grid, backend)
        features = codes - zeros[:, :, None]
    strength = (weights * features * features).sum(axis=-1)
    # of equal codes, what rounding leaves of their differences to their mean says nothing
    seen = strength > EQUAL * (weights * codes * codes).sum(axis=-1)
    scales = (weights * features * values).sum(axis=-1) / backend.where(seen, strength, 1.0)
    scales = store_scales(backend.where(seen, scales, fitted.scales), grid, backend)
    if grid.zeros != "offset":
        return Solution(scales, offsets_for(scales, zeros, grid, backend))
    offsets = (weights * (values - scales[:, :, None] * codes)).sum(axis=-1) / total[:, :, 0]
    if grid.type:
        scales, offsets = _below_zero(groups, codes, scales, offsets)
    return Solution(scales, backend.round_to(offsets, grid.scale_dtype))


def _below_zero(groups: Groups, codes: Array, scales: Array, offsets: Array) -> tuple[Array, Array]:
    """Fit scales anew without an offset where it lies above zero: minima of types are not below."""
    weights, grid, backend = groups.weights, groups.grid, groups.backend
    strength = (weights * codes * codes).sum(axis=-1)
    alone = (weights * codes * groups.values).sum(axis=-1)
    alone = store_scales(alone / backend.where(strength > 0, strength, 1.0), grid, backend)
    above = (offsets > 0) & (strength > 0)
    return backend.where(above, alone, scales), backend.where(offsets > 0, 0.0, offsets)
