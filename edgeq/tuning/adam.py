"""Descend along gradients by Adam, in operators that arrays of every framework have."""

import math

from edgeq.types import Array

BETAS = (0.9, 0.95)
TINY = 1e-12  # added to the size of a gradient, against division by zero
WARM_UP = 0.05  # share of the steps in which the rate rises


def rate_at(step: int, steps: int, rate: float) -> float:
    """Give the rate of a step, counted from 0: it rises to `rate`, then falls along a cosine."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return rate * (step + 1) / warm
    return rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def descend(
    x: Array, gradient: Array, moments: tuple[Array, Array], *, step: int, rate: float
) -> tuple[Array, tuple[Array, Array]]:
    """Take one step, counted from 0.

    x - rate * m / (sqrt(v) + tiny), with m and v the running means of gradients and their squares,
    both corrected for their start at zero.

    Shapes: all alike.
    Source: Kingma and Ba, ICLR 2015, algorithm 1.
    """
    first, second = BETAS
    mean = first * moments[0] + (1 - first) * gradient
    square = second * moments[1] + (1 - second) * gradient * gradient
    size = (square / (1 - second ** (step + 1))) ** 0.5 + TINY
    return x - rate / (1 - first ** (step + 1)) * mean / size, (mean, square)
