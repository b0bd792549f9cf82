"""What the weight of a layer is to become, and the loss that says how near a solution comes to it.

Algorithms take a `Problem` and, where they go on from one, a `Solution`. How problems come about
and which algorithms a recipe asks for is up to `edgeq.solving`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

import numpy as np

from edgeq.grids.fitting import expand
from edgeq.protocols import Backend
from edgeq.types import Array, Grid, NumpyArray, QuantizedLinear, Solution

Rows = TypeVar("Rows", Solution, QuantizedLinear)
BY_ROW = ("codes", "scales", "offsets", "super_scales", "super_minima")
"""What solutions hold for each row."""


def no_columns() -> NumpyArray:
    """Give the empty set of columns."""
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Problem:
    """State which weight Q a layer should get: on its grid, of least tr(Q H Q^T) - 2 <B, Q>.

    With B = V H, as where B is not given, that is tr((Q - V) H (Q - V)^T) up to a constant. What an
    algorithm does not need may be None.

    Shapes: V, B and truth (out, in); H, D and U (in, in); order and importance (in,).
    """

    V: Array
    """The weight to come near: the model's W, or W corrected. None where only B says what is best:
    B - Q H then is the slack."""
    H: Array
    """Second moment of the inputs, damped so that it is definite."""
    grid: Grid
    backend: Backend
    D: Array = None
    """Drift cross moment; None where no layer before this one was quantized."""
    B: Array = None
    """Linear term; None where it is V H."""
    truth: Array = None
    """Linear term of scales and outlier values where that is not B; it may have the full drift."""
    U: Array = None
    """Upper factor of H^-1 = U^T U, rows and columns in `order`."""
    order: NumpyArray | None = None
    """The columns in the order in which solvers go through them; None for the order they have."""
    importance: Array = None
    """What an error in each column costs, as the search for scales weighs it."""
    outlier_columns: NumpyArray = field(default_factory=no_columns)
    """Input columns that get values beside their codes."""
    whole: "Problem | None" = None
    """The problem that this one is left of once its outlier columns were eliminated."""

    def linear_term(self) -> Array:
        """Give B, as a product with H where it was not stated.

        Shapes: (out, in).
        """
        return self.V @ self.H if self.B is None else self.B

    def slack(self, Q: Array) -> Array:
        """Give B - Q H, half of the loss's fall in each weight.

        Shapes: (out, in).
        """
        if self.V is None:
            return self.B - Q @ self.H
        return (self.V - Q) @ self.H  # no large numbers that cancel: a float32 backend needs that

    def towards_truth(self) -> Self:
        """Put `truth`, where there is one, in the place of B."""
        return self if self.truth is None else replace(self, V=None, B=self.truth, truth=None)


def dequantize(problem: Problem, solution: Solution) -> Array:
    """Give the weights that codes stand for, without outliers.

    Shapes: (out, in).
    """
    in_features, grid, backend = solution.codes.shape[1], problem.grid, problem.backend
    scales = expand(solution.scales, grid, in_features, backend)
    return scales * solution.codes + expand(solution.offsets, grid, in_features, backend)


def loss_change(problem: Problem, old: Array, new: Array) -> Array:
    """Give by how much the loss of each row grows from one weight to another.

    d H d^T - 2 <B - Q_old H, d>, with d = Q_new - Q_old: no constant that would swallow small
    differences.

    Shapes: old and new (out, in); the result (out,).
    """
    step = new - old
    return ((step @ problem.H - 2 * problem.slack(old)) * step).sum(axis=-1)


def better_rows(problem: Problem, old: Solution, new: Solution) -> Solution:
    """Take the new solution of each row where its loss is smaller, the old one elsewhere."""
    change = loss_change(problem, dequantize(problem, old), dequantize(problem, new))
    better = (change < 0)[:, None]

    def rows(before: Array, after: Array) -> Array:
        return problem.backend.where(better, after, before)

    both = {
        name: rows(getattr(old, name), getattr(new, name))
        for name in BY_ROW
        if getattr(new, name) is not None
    }
    return replace(new, **both)


def rows_of(solution: Rows, rows: slice) -> Rows:
    """Take some rows of a solution without outliers."""
    taken = {
        name: getattr(solution, name)[rows]
        for name in BY_ROW
        if getattr(solution, name) is not None
    }
    return replace(solution, outliers=None, **taken)


def join_rows(parts: Sequence[Rows], concatenate: Callable[[list[Any], int], Any]) -> Rows:
    """Put solutions of some rows each under one another; for solutions without outliers.

    concatenate is that of the backend, or NumPy's for plain data.
    """
    assert all(part.outliers is None for part in parts)
    names = [name for name in BY_ROW if getattr(parts[0], name) is not None]
    joined = {name: concatenate([getattr(part, name) for part in parts], 0) for name in names}
    return replace(parts[0], **joined)
