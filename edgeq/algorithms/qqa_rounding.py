"""Quasi-quantum annealing of a solved layer: each code may take the neighbour it is drawn to."""

from dataclasses import dataclass, replace

import numpy as np

from edgeq.algorithms.problem import Problem, better_rows, dequantize
from edgeq.algorithms.qqa import Annealing, anneal
from edgeq.algorithms.quantease import STEEPEST, Sweeps, descend_codes
from edgeq.algorithms.relaxations import Binary
from edgeq.grids.fitting import divisor, expand, level_gaps
from edgeq.protocols import Backend
from edgeq.types import Array, Solution

ELEMENTS_AT_ONCE = 2**16  # of one chunk of rows, replicas included: several such arrays fit a cache
SETTLING = Sweeps(5)  # of coordinate descent after each round


@dataclass(frozen=True, slots=True)
class Window:
    """State the loss of rows whose codes are `base` or the level above it, chosen by x = 0 or 1.

    f = <d H + 2 R, d>,   d = scales x,   R = Q_base H - B,   up to a constant

    scales are those of the layer times the gaps between both levels. The gradient is divided by
    u_j = s_j^2 H_jj: in these units a single coordinate's loss turns
    concave exactly at pull 1/4. An `Objective` of the annealer.

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


def annealing_cost(settings: Annealing, *, rounds: int = 1, replicas: int = 1) -> float:
    """Count the operations that products with H take, for each weight and input column."""
    evaluations = settings.steps + settings.steps // settings.evaluate_every
    return 2.0 * rounds * evaluations * replicas


def rows_at_once(in_features: int, replicas: int) -> int:
    return max(1, ELEMENTS_AT_ONCE // (in_features * replicas))


def anneal_codes(
    problem: Problem,
    solution: Solution,
    settings: Annealing,
    *,
    rounds: int = 1,
    replicas: int = 1,
) -> Solution:
    """Refine the codes of a solved layer at fixed scales; no row comes out worse.

    Each round lets every code choose between its value and the neighbour that the residual points
    to, anneals all choices of a row together and follows with coordinate descent. More rounds move
    codes by more than one. Replicas start from different points; with `settings.communication` they
    keep apart.

    Source: Ichikawa and Arai, ICLR 2025; the window, the units and the pull's last value are ours.
    """
    problem = replace(problem, order=None)  # the descent goes through the columns as they lie
    backend = problem.backend
    H = backend.activations(problem.H)
    for index in range(rounds):
        step = replace(settings, seed=settings.seed + index)
        base = replace(solution, codes=window_around(problem, solution))
        chosen = anneal_window(make_window(problem, base, H), step, replicas, backend)
        codes = base.codes + level_gaps(base.codes, problem.grid, backend, upwards=True) * chosen
        new = descend_codes(problem, replace(base, codes=codes), SETTLING)
        solution = better_rows(problem, solution, new)
    return solution


def window_around(problem: Problem, solution: Solution) -> Array:
    """Choose base codes such that base or the next level is the code, the other its attractor.

    Codes at an end of the grid have the level beside them, wherever they are drawn to.

    Shapes: (out, in).
    """
    codes, grid, backend = solution.codes, problem.grid, problem.backend
    residual = problem.slack(dequantize(problem, solution))
    up = residual * expand(solution.scales, grid, codes.shape[1], backend) >= 0
    below = codes - level_gaps(codes, grid, backend, upwards=False)
    base = backend.where(up, codes, below)
    return backend.where(base == grid.level_limits[1], below, base)


def make_window(problem: Problem, base: Solution, H: Array) -> Window:
    """State the loss over a window of codes; H in the precision of activations.

    Inputs of no energy stay free.
    """
    grid, backend = problem.grid, problem.backend
    gaps = level_gaps(base.codes, grid, backend, upwards=True)
    scales = gaps * expand(base.scales, grid, base.codes.shape[1], backend)
    residual = -problem.slack(dequantize(problem, base))
    energy = backend.diagonal(problem.H)
    pull = 2 / (divisor(scales, grid, backend) * backend.where(energy > 0, energy, 1.0))
    pull = backend.clip(pull, -STEEPEST, STEEPEST)
    return Window(H, *(backend.activations(x) for x in (scales, residual, pull)))


def anneal_window(window: Window, settings: Annealing, replicas: int, backend: Backend) -> Array:
    """Find zeros and ones that minimise the loss of a window, a chunk of rows at a time.

    Shapes: (rows, in).
    """
    rows = rows_at_once(window.scales.shape[1], replicas)
    rng = np.random.default_rng(settings.seed)
    parts = []
    for start in range(0, window.scales.shape[0], rows):
        chunk = slice(start, start + rows)
        part = Window(window.H, window.scales[chunk], window.R[chunk], window.pull[chunk])
        # around the middle of the box, to which the first steps pull
        drawn = rng.uniform(0.25, 0.75, (replicas, *part.scales.shape))
        x = backend.activations(backend.asarray(drawn))
        parts.append(backend.asarray(anneal(part, Binary(), x, settings, backend)[0]))
        backend.evaluate(parts[-1])
    return backend.concatenate(parts, axis=0)
