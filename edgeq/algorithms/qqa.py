"""Quasi-quantum annealing: choices relaxed to a box, drawn to its middle, then to its corners.

`anneal` takes any objective, in the binary or the categorical form of
`edgeq.algorithms.relaxations`, and any number of communicating replicas. Recipes reach it through
`edgeq.algorithms.qqa_rounding` alone, which anneals codes in the binary form.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edgeq.protocols import Backend
from edgeq.types import Array

# Of the Adam step, its usual ones. No weight decay: it would favour zeros.
FIRST_DECAY = 0.9
SECOND_DECAY = 0.999
EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class Annealing:
    """Say how to anneal.

    A negative pull is to the middle of the box, a positive one to its corners. communication, from
    0 to 1, is how much keeping replicas apart counts beside their own losses; it needs more than
    one of them.
    """

    steps: int = 500
    learning_rate: float = 0.15
    first_pull: float = -0.1
    last_pull: float = 0.25
    power: int = 2
    communication: float = 0.0
    temperature: float = 0.0
    evaluate_every: int = 25
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TraceEntry:
    """Note where a run stands after a step.

    That is the mean value of the rounded replicas, the best so far, and the replicas' diversity.
    """

    step: int
    pull: float
    mean_value: float
    best_value: float
    diversity: float


class Objective(Protocol):
    """What is minimised.

    Arrays are (replicas, ..., choices), for a categorical form with one more axis of options.
    """

    def value(self, x: Array) -> Array:
        """Give one value per replica and independent problem.

        Shapes: (replicas, ..., choices) -> (replicas, ...).
        """

    def gradient(self, x: Array) -> Array:
        """Give the gradient, up to a positive factor for each choice.

        The factor leaves the Adam step alone and sets the unit of the pull.
        """


class Relaxation(Protocol):
    """A discrete set inside of a box; `edgeq.algorithms.relaxations` has two."""

    @property
    def low(self) -> float:
        """Give the lower end of the box; the upper one is 1."""

    def point(self, x: Array) -> Array: ...

    def penalty_gradient(self, point: Array, power: int) -> Array: ...

    def pull_back(self, x: Array, gradient: Array) -> Array: ...

    def decode(self, x: Array, backend: Backend) -> Array: ...


def anneal(
    objective: Objective,
    relaxation: Relaxation,
    start: Array,
    settings: Annealing,
    backend: Backend,
) -> tuple[Array, Array, list[TraceEntry]]:
    """Minimise over discrete choices: the best decoded point of each problem, its value, a trace.

    (1 - c) mean_r [f(x_r) + g(t) Phi(x_r)] - c sum_i std_r(x_i)

    with g rising linearly, r over replicas, c the communication. The spread is not multiplied by
    the number of replicas, so that c means the same for any number of them. Each step is an Adam
    step, noise of variance 2 lr temperature, and a clip to the box.

    Shapes: start (replicas, ..., choices); the best point (..., choices), its values (...).
    Source: Ichikawa and Arai, Optimization by Parallel Quasi-Quantum Annealing, ICLR 2025,
    algorithm 1.
    """
    rng = np.random.default_rng(settings.seed)
    x, first, second = start, 0 * start, 0 * start
    best = best_value = None
    trace = []
    rise = settings.last_pull - settings.first_pull
    for step in range(1, settings.steps + 1):
        pull = settings.first_pull + rise * step / settings.steps
        gradient = full_gradient(objective, relaxation, x, pull, settings)
        first = FIRST_DECAY * first + (1 - FIRST_DECAY) * gradient
        second = SECOND_DECAY * second + (1 - SECOND_DECAY) * (gradient * gradient)
        rate = settings.learning_rate / (1 - FIRST_DECAY**step)
        x = x - rate * first / ((second / (1 - SECOND_DECAY**step)) ** 0.5 + EPSILON)
        if settings.temperature > 0:
            x = x + noise(x.shape, settings, rng, backend, like=start)
        x = backend.clip(x, relaxation.low, 1.0)
        backend.evaluate(x, first, second)
        if step % settings.evaluate_every == 0 or step == settings.steps:
            decoded = relaxation.decode(x, backend)
            values = objective.value(decoded)
            best, best_value = keep_best(best, best_value, decoded, values, backend)
            trace.append(trace_entry(step, pull, x, values, best_value))
    return best, best_value, trace


def full_gradient(
    objective: Objective, relaxation: Relaxation, x: Array, pull: float, settings: Annealing
) -> Array:
    """Give the gradient of the annealed loss at the box variables, times the number of replicas.

    Shapes: as x.
    """
    point = relaxation.point(x)
    gradient = objective.gradient(point) + pull * relaxation.penalty_gradient(point, settings.power)
    replicas, c = x.shape[0], settings.communication
    if c > 0 and replicas > 1:
        apart = point - point.mean(axis=0)
        spread = ((apart * apart).sum(axis=0) / (replicas - 1)) ** 0.5
        direction = apart / (spread + EPSILON)
        gradient = (1 - c) * gradient - (c * replicas / (replicas - 1)) * direction
    return relaxation.pull_back(x, gradient)


def noise(
    shape: Sequence[int],
    settings: Annealing,
    rng: np.random.Generator,
    backend: Backend,
    *,
    like: Array,
) -> Array:
    """Draw Gaussian steps from NumPy's generator, so that every backend takes the same ones.

    They are in the precision of `like`.
    """
    size = (2 * settings.learning_rate * settings.temperature) ** 0.5
    drawn = backend.asarray(size * rng.standard_normal(tuple(shape)))
    return drawn if drawn.dtype == like.dtype else backend.activations(drawn)


def keep_best(
    best: Any, best_value: Any, decoded: Array, values: Array, backend: Backend
) -> tuple[Array, Array]:
    """Keep the best of what was found so far and of each replica, problem by problem."""
    for replica in range(decoded.shape[0]):
        new, value = decoded[replica], values[replica]
        if best is None:
            best, best_value = new, value
            continue
        better = value < best_value
        mask = better.reshape(tuple(better.shape) + (1,) * (len(new.shape) - len(better.shape)))
        best = backend.where(mask, new, best)
        best_value = backend.where(better, value, best_value)
    return best, best_value


def trace_entry(step: int, pull: float, x: Array, values: Array, best_value: Array) -> TraceEntry:
    """Note a step of the run, summed over independent problems and averaged over replicas."""
    replicas = x.shape[0]
    apart = x - x.mean(axis=0)
    diversity = ((apart * apart).sum(axis=0) / max(1, replicas - 1)) ** 0.5
    mean = float(values.sum()) / replicas
    return TraceEntry(step, pull, mean, float(best_value.sum()), float(diversity.mean()))
