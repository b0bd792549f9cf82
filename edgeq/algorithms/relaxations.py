"""The two boxes that quasi-quantum annealing searches: between two values, and between options.

`edgeq.algorithms.qqa.anneal` takes either.
"""

from dataclasses import dataclass

import numpy as np

from edgeq.protocols import Backend
from edgeq.types import Array

LOWEST = 1e-5  # of shares: they are divided by their sum


@dataclass(frozen=True, slots=True)
class Binary:
    """Choose between two values: x in [0, 1], decoded at 1/2.

    Phi = sum_i (1 - (2 x_i - 1)^power)
    """

    low: float = 0.0

    def point(self, x: Array) -> Array:
        return x

    def penalty(self, point: Array, power: int) -> Array:
        """Give Phi.

        Shapes: (..., choices) -> (...).
        """
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
    """Choose one of K options: shares p = x / sum_k x, decoded to the largest.

    Phi = sum_i (1 - sum_k (K p_ik - 1)^power / ((K - 1)^power + K - 1)); with two options, power 2,
    that is Binary's.
    """

    low: float = LOWEST

    def point(self, x: Array) -> Array:
        return x / x.sum(axis=-1)[..., None]

    def penalty(self, point: Array, power: int) -> Array:
        """Give Phi.

        Shapes: (..., choices, options) -> (...).
        """
        options = point.shape[-1]
        outward = ((options * point - 1) ** power).sum(axis=-1)
        return (1 - outward / corner(options, power)).sum(axis=-1)

    def penalty_gradient(self, point: Array, power: int) -> Array:
        options = point.shape[-1]
        return (-power * options / corner(options, power)) * (options * point - 1) ** (power - 1)

    def pull_back(self, x: Array, gradient: Array) -> Array:
        """Give the gradient at x from that at p: (G_k - sum_j G_j p_j) / sum_k x."""
        total = x.sum(axis=-1)[..., None]
        return (gradient - (gradient * x).sum(axis=-1)[..., None] / total) / total

    def decode(self, x: Array, backend: Backend) -> Array:
        """Put one in the place of the largest share, the first of equal ones.

        Shapes: as x.
        """
        options = x.shape[-1]
        return backend.asarray(np.eye(options)[np.argmax(backend.to_numpy(x), axis=-1)])


def corner(options: int, power: int) -> float:
    """Give what the outward powers sum to where one option has everything."""
    return float((options - 1) ** power + options - 1)


def random_start(shape: tuple[int, ...], seed: int, backend: Backend) -> Array:
    """Draw a start for `anneal`, uniform in the box, the same on every backend."""
    return backend.asarray(np.random.default_rng(seed).uniform(LOWEST, 1.0, shape))
