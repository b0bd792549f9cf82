"""The two boxes that quasi-quantum annealing searches: choices between two values, and between
several options.
"""

from dataclasses import dataclass

import numpy as np

from edgeq.protocols import Backend
from edgeq.types import Array

__all__ = ["Binary", "Categorical", "random_start"]


@dataclass(frozen=True, slots=True)
class Binary:
    """x in [0, 1], decoded at 1/2. Phi = sum_i (1 - (2 x_i - 1)^power)."""

    low: float = 0.0

    def point(self, x: Array) -> Array:
        return x

    def penalty(self, point: Array, power: int) -> Array:
        """Phi. Shapes: (..., choices) -> (...)."""
        return (1 - (2 * point - 1) ** power).sum(axis=-1)

    def penalty_gradient(self, point: Array, power: int) -> Array:
        outward = 2 * point - 1
        return (-2 * power) * (outward if power == 2 else outward ** (power - 1))

    def pull_back(self, x: Array, gradient: Array) -> Array:
        return gradient

    def decode(self, x: Array, backend: Backend) -> Array:
        return backend.round_clip(x, 0, 1)


@dataclass(frozen=True, slots=True)
class Categorical:
    """Shares p = x / sum_k x of K options, decoded to the largest.

    Phi = sum_i (1 - sum_k (K p_ik - 1)^power / ((K - 1)^power + K - 1)); with two options, power 2,
    that is Binary's.
    """

    low: float = 1e-5

    def point(self, x: Array) -> Array:
        return x / x.sum(axis=-1)[..., None]

    def penalty(self, point: Array, power: int) -> Array:
        """Phi. Shapes: (..., choices, options) -> (...)."""
        options = point.shape[-1]
        return (1 - ((options * point - 1) ** power).sum(axis=-1) / corner(options, power)).sum(
            axis=-1
        )

    def penalty_gradient(self, point: Array, power: int) -> Array:
        options = point.shape[-1]
        return (-power * options / corner(options, power)) * (options * point - 1) ** (power - 1)

    def pull_back(self, x: Array, gradient: Array) -> Array:
        """The gradient at x from that at p: (G_k - sum_j G_j p_j) / sum_k x."""
        total = x.sum(axis=-1)[..., None]
        return (gradient - (gradient * x).sum(axis=-1)[..., None] / total) / total

    def decode(self, x: Array, backend: Backend) -> Array:
        """One in the place of the largest share, the first of equal ones. Shapes: as x."""
        options = x.shape[-1]
        return backend.asarray(np.eye(options)[np.argmax(backend.to_numpy(x), axis=-1)])


def corner(options: int, power: int) -> float:
    """What the outward powers sum to where one option has everything."""
    return float((options - 1) ** power + options - 1)


def random_start(shape: tuple[int, ...], seed: int, backend: Backend) -> Array:
    """Uniform in the box, the same on every backend."""
    return backend.asarray(np.random.default_rng(seed).uniform(1e-5, 1.0, shape))
