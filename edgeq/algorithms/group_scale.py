"""Two-stage group scales: a search before the codes are chosen, a refit to the layer loss after
it.
"""

import numpy as np

from edgeq.grids.fitting import (
    fit_min_max,
    group_range,
    grouped,
    offsets_for,
    round_to_codes,
    scales_for_range,
    store_scales,
    zero_points,
)
from edgeq.protocols import Backend
from edgeq.types import Array, Grid, GroupScales, NumpyArray, ScaleWeighting

# Relative: a scale and its mirror image often lose the same, and rounding noise must not choose
# between them.
TIE = 1e-5
SHRINK_TO = 0.4
ELEMENTS_AT_ONCE = (
    2**17
)  # of one chunk of rows: the search passes over it a few hundred times, best in a cache


def search_scales(
    V: Array,
    importance: Array,
    grid: Grid,
    backend: Backend,
    *,
    candidates: int = 18,
    refits: int = 1,
) -> GroupScales:
    """Stage 1: per row and group, the scale whose rounding error weighs least on the layer's
    output.

    min over s of sum_j importance_j (v_j - Q_s(v_j))^2, over ranges shrunk to p = 1 .. 0.4, then
    refitted by least squares and rounded again, `refits` times. Never worse than min-max scales in
    that measure. On a symmetric grid, whose codes reach one step further down than up, negative
    scales are tried too. Scales are rounded to their storage dtype before they are judged.

    Shapes: V (out, in); importance (in,), see `importance_of`; scales and offsets (out, groups).
    Source: the first stage of "two-stage group-scale optimisation", arXiv 2602.02126.
    """
    weights = grouped(importance.reshape(1, -1), grid, backend)
    rows = max(1, ELEMENTS_AT_ONCE // V.shape[1])
    parts = []
    for start in range(0, V.shape[0], rows):
        parts.append(
            _search_rows(V[start : start + rows], weights, grid, backend, candidates, refits)
        )
    if len(parts) == 1:
        return parts[0]
    scales, offsets = [part.scales for part in parts], [part.offsets for part in parts]
    return GroupScales(backend.concatenate(scales, 0), backend.concatenate(offsets, 0))


def _search_rows(
    V: Array, weights: Array, grid: Grid, backend: Backend, candidates: int, refits: int
) -> GroupScales:
    groups = grouped(V, grid, backend)
    low, high = group_range(groups, backend)
    best = fit_min_max(V, grid, backend)
    best_loss = rounding_loss(groups, weights, best, grid, backend)
    for shrink in np.linspace(1.0, SHRINK_TO, candidates):
        for candidate in _candidates(float(shrink) * low, float(shrink) * high, grid, backend):
            best, best_loss = _keep_better(
                best, best_loss, candidate, groups, weights, grid, backend
            )
        backend.evaluate(best.scales, best.offsets, best_loss)
    for _ in range(refits):
        refitted = _least_squares(groups, weights, best, grid, backend)
        best, best_loss = _keep_better(best, best_loss, refitted, groups, weights, grid, backend)
    return best


def importance_of(
    H: Array,
    U: Array | None,
    weighting: ScaleWeighting,
    backend: Backend,
    *,
    order: NumpyArray | None = None,
) -> Array:
    """What an error in each input column costs, as the search for scales weighs it.

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


def _candidates(low: Array, high: Array, grid: Grid, backend: Backend) -> list[GroupScales]:
    fitted = scales_for_range(low, high, grid, backend)
    if grid.zeros != "symmetric":
        return [fitted]
    return [fitted, GroupScales(-fitted.scales, -fitted.offsets)]


def _codes_of(groups: Array, fitted: GroupScales, grid: Grid, backend: Backend) -> Array:
    return round_to_codes(
        groups, fitted.scales[:, :, None], fitted.offsets[:, :, None], grid, backend
    )


def rounding_loss(
    groups: Array, weights: Array, fitted: GroupScales, grid: Grid, backend: Backend
) -> Array:
    """Weighted squared rounding error per row and group. Shapes: groups (out, groups, columns) ->
    (out, groups).
    """
    inverse = 1 / fitted.scales
    steps = groups * inverse[:, :, None] - (fitted.offsets * inverse)[:, :, None]
    error = steps - backend.round_clip(
        steps, 0, grid.max_code
    )  # in steps: one division per group, not per weight
    return fitted.scales * fitted.scales * (weights * error * error).sum(axis=-1)


def _keep_better(
    best: GroupScales,
    best_loss: Array,
    new: GroupScales,
    groups: Array,
    weights: Array,
    grid: Grid,
    backend: Backend,
) -> tuple[GroupScales, Array]:
    loss = rounding_loss(groups, weights, new, grid, backend)
    better = loss < (1 - TIE) * best_loss
    kept = GroupScales(
        backend.where(better, new.scales, best.scales),
        backend.where(better, new.offsets, best.offsets),
    )
    return kept, backend.where(better, loss, best_loss)


def _least_squares(
    groups: Array, weights: Array, fitted: GroupScales, grid: Grid, backend: Backend
) -> GroupScales:
    """The scales (and free offsets) that fit the weights best with their codes held fixed."""
    codes = _codes_of(groups, fitted, grid, backend)
    if grid.zeros == "offset":
        total = weights.sum(axis=-1)[:, :, None]
        centre = (weights * codes).sum(axis=-1)[:, :, None] / total
        features = codes - centre
    else:
        zeros = zero_points(fitted, backend)
        features = codes - zeros[:, :, None]
    strength = (weights * features * features).sum(axis=-1)
    seen = strength > 0
    scales = (weights * features * groups).sum(axis=-1) / backend.where(seen, strength, 1.0)
    scales = store_scales(backend.where(seen, scales, fitted.scales), grid, backend)
    if grid.zeros != "offset":
        return GroupScales(scales, offsets_for(scales, zeros, grid, backend))
    offsets = (weights * (groups - scales[:, :, None] * codes)).sum(axis=-1) / total[:, :, 0]
    return GroupScales(scales, backend.round_to(offsets, grid.scale_dtype))
