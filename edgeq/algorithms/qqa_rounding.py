"""Quasi-quantum annealing of a solved layer: each code may keep its value or take the neighbour it
is drawn to.
"""

from dataclasses import dataclass, replace

import numpy as np

from edgeq.algorithms.layer_loss import Target, dequantize
from edgeq.algorithms.qqa import Annealing, anneal
from edgeq.algorithms.quantease import better_codes, descend_codes
from edgeq.algorithms.relaxations import Binary
from edgeq.grids.fitting import expand
from edgeq.protocols import Backend
from edgeq.types import Array, Grid, GroupScales

ELEMENTS_AT_ONCE = 2**16  # of one chunk of rows, replicas included: several such arrays fit a cache
SWEEPS = 5  # of coordinate descent after each round
ARRAYS_HELD = 12  # of that size at a time: variables, two moments, gradient, temporaries


@dataclass(frozen=True, slots=True)
class Window:
    """Rows of a layer whose codes are `base` or `base` + 1, as a loss in x = codes - base, up to a
    constant.

    f = <d H + 2 R, d>,   d = scales x,   R = Q_base H - B;   the gradient is divided by u_j = s_j^2
    H_jj: in these units a single coordinate's loss turns concave exactly at pull 1/4.

    Shapes: H (in, in); scales, R and pull (rows, in). All in the precision of the backend's
    activations.
    """

    H: Array
    scales: Array
    R: Array
    pull: Array

    def value(self, x: Array) -> Array:
        d = self.scales * x
        return ((d @ self.H + 2 * self.R) * d).sum(axis=-1)

    def gradient(self, x: Array) -> Array:
        return ((self.scales * x) @ self.H + self.R) * self.pull


@dataclass(frozen=True, slots=True)
class AnnealingCost:
    """What annealing a layer takes, to be shown before it starts."""

    flops: float
    bytes: float


def annealing_cost(
    out_features: int, in_features: int, settings: Annealing, *, rounds: int = 1, replicas: int = 1
) -> AnnealingCost:
    """Products with H in every step, and the working memory of one chunk of rows in float32."""
    evaluations = settings.steps + settings.steps // settings.evaluate_every
    flops = 2.0 * rounds * evaluations * replicas * out_features * in_features**2
    held = (
        ARRAYS_HELD
        * replicas
        * min(out_features, rows_at_once(in_features, replicas))
        * in_features
    )
    return AnnealingCost(flops, 4.0 * (held + in_features**2))


def rows_at_once(in_features: int, replicas: int) -> int:
    return max(1, ELEMENTS_AT_ONCE // (in_features * replicas))


def anneal_codes(
    codes: Array,
    fitted: GroupScales,
    target: Target,
    grid: Grid,
    backend: Backend,
    *,
    settings: Annealing | None = None,
    rounds: int = 1,
    replicas: int = 1,
) -> Array:
    """Refine the codes of a solved layer at fixed scales; rows that come out no better stay as they
    are.

    Each round lets every code choose between its value and the neighbour that the residual points
    to, anneals all choices of a row together and follows with coordinate descent. More rounds move
    codes by more than one.

    Shapes: codes (out, in); scales and offsets (out, groups).
    Source: Ichikawa and Arai, ICLR 2025; the window, the units and the pull's last value are ours.
    """
    settings = Annealing() if settings is None else settings
    small = backend.activations(target.H)
    for index in range(rounds):
        step = replace(settings, seed=settings.seed + index)
        base = window_around(codes, fitted, target, grid, backend)
        window = make_window(base, fitted, target, small, grid, backend)
        new = base + anneal_window(window, step, replicas, backend)
        new = descend_codes(new, fitted, target, grid, backend, sweeps=SWEEPS)
        codes = better_codes(codes, new, fitted, target, grid, backend)
    return codes


def window_around(
    codes: Array, fitted: GroupScales, target: Target, grid: Grid, backend: Backend
) -> Array:
    """Base codes such that base or base + 1 is the code itself, the other one where the residual
    points to.
    """
    residual = target.slack(dequantize(codes, fitted, grid, backend))
    up = residual * expand(fitted.scales, grid, codes.shape[1], backend) >= 0
    return backend.clip(backend.where(up, codes, codes - 1), 0, grid.max_code - 1)


def window_below(V: Array, fitted: GroupScales, grid: Grid, backend: Backend) -> Array:
    """Base codes next below a weight: the window of a solve without a start. Shapes: (out, in)."""
    scales, offsets = (
        expand(x, grid, V.shape[1], backend) for x in (fitted.scales, fitted.offsets)
    )
    return backend.round_clip((V - offsets) / scales - 0.5, 0, grid.max_code - 1)


def make_window(
    base: Array, fitted: GroupScales, target: Target, small: Array, grid: Grid, backend: Backend
) -> Window:
    """The loss over a window of codes; `small` is H in the precision of activations. Inputs of no
    energy stay free.
    """
    scales = expand(fitted.scales, grid, base.shape[1], backend)
    residual = -target.slack(dequantize(base, fitted, grid, backend))
    energy = backend.diagonal(target.H)
    pull = 2 / (scales * backend.where(energy > 0, energy, 1.0))
    return Window(small, *(backend.activations(x) for x in (scales, residual, pull)))


def anneal_window(window: Window, settings: Annealing, replicas: int, backend: Backend) -> Array:
    """Zeros and ones that minimise the loss of a window, a chunk of rows at a time. Shapes: (rows,
    in).
    """
    rows = rows_at_once(window.scales.shape[1], replicas)
    rng = np.random.default_rng(settings.seed)
    parts = []
    for start in range(0, window.scales.shape[0], rows):
        chunk = slice(start, start + rows)
        part = Window(window.H, window.scales[chunk], window.R[chunk], window.pull[chunk])
        drawn = rng.uniform(0.25, 0.75, (replicas, *part.scales.shape))
        x = backend.activations(backend.asarray(drawn))
        parts.append(backend.asarray(anneal(part, Binary(), x, settings, backend)[0]))
        backend.evaluate(parts[-1])
    return backend.concatenate(parts, axis=0)
