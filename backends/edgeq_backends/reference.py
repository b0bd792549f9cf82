"""Compute in NumPy float64: the executable specification of the `Backend` protocol."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from edgeq.algorithms.column_loops import ColumnLoops
from edgeq.algorithms.group_loops import GroupLoops
from edgeq.dtypes import NUMPY
from edgeq.errors import NotPositiveDefinite
from edgeq.types import NumpyArray, ScaleDtype
from edgeq_backends.half_steps import nearest_in_table

CACHED = 2**17  # numbers of which a CPU's cache holds a few arrays


class ReferenceBackend(ColumnLoops, GroupLoops):
    """Every verb in float64, written for reading rather than for speed."""

    name = "reference"
    computes_in = "float64"

    def __init__(self, *, exact: bool = True) -> None:
        """Make a backend, which is always exact."""

    def working(self) -> AbstractContextManager[object]:
        return nullcontext()

    def asarray(self, x: Any) -> NumpyArray:
        return np.asarray(x, dtype=np.float64)

    def activations(self, x: Any) -> NumpyArray:
        return self.asarray(x)

    def to_numpy(self, x: NumpyArray) -> NumpyArray:
        return x

    def copy(self, x: NumpyArray) -> NumpyArray:
        return np.array(x, order="C")

    def gram(self, X: NumpyArray, Y: NumpyArray) -> NumpyArray:
        product: NumpyArray = X.T @ Y
        return product

    def diagonal(self, A: NumpyArray) -> NumpyArray:
        return np.diagonal(A).copy()

    def add_diagonal(self, A: NumpyArray, value: NumpyArray | float) -> NumpyArray:
        return A + np.diag(np.broadcast_to(value, A.shape[0]))

    def cholesky(self, A: NumpyArray) -> NumpyArray:
        if not np.isfinite(A).all():
            raise NotPositiveDefinite(size=A.shape[-1])
        try:
            return np.linalg.cholesky(A)
        except np.linalg.LinAlgError as error:
            raise NotPositiveDefinite(size=A.shape[-1]) from error

    def solve_triangular(
        self, L: NumpyArray, B: NumpyArray, *, transposed: bool = False
    ) -> NumpyArray:
        return np.linalg.solve(np.swapaxes(L, -1, -2) if transposed else L, B)

    def solve_product(self, A: NumpyArray, B: NumpyArray, L: NumpyArray) -> NumpyArray:
        return np.linalg.solve(L.T, np.linalg.solve(L, (A @ B).T)).T

    def round_clip(self, x: NumpyArray, low: float, high: float) -> NumpyArray:
        return np.clip(np.rint(x), low, high)

    def nearest(self, x: NumpyArray, table: Sequence[int]) -> NumpyArray:
        return nearest_in_table(x, table)

    def clip(self, x: NumpyArray, low: float, high: float) -> NumpyArray:
        return np.clip(x, low, high)

    def round_to(self, x: NumpyArray, dtype: ScaleDtype) -> NumpyArray:
        with np.errstate(over="ignore"):  # infinity is found, and named, where layers are counted
            return x.astype(NUMPY[dtype]).astype(np.float64)

    def min_max(self, x: NumpyArray, axis: int) -> tuple[NumpyArray, NumpyArray]:
        return x.min(axis=axis), x.max(axis=axis)

    def where(self, mask: NumpyArray, a: NumpyArray | float, b: NumpyArray | float) -> NumpyArray:
        return np.where(mask, a, b)

    def take(self, x: NumpyArray, indices: NumpyArray, axis: int) -> NumpyArray:
        return np.take(x, indices, axis=axis)

    def concatenate(self, parts: Sequence[NumpyArray], axis: int) -> NumpyArray:
        return np.concatenate(parts, axis=axis)

    def evaluate(self, *arrays: NumpyArray) -> None:
        """Do nothing: NumPy is eager."""

    def device_memory(self) -> None:
        """Say that there is no device: NumPy computes in the machine's memory."""

    def rows_at_once(self, columns: int) -> int:
        return max(1, CACHED // columns)
