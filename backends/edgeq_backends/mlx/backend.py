"""Compute in Apple MLX: products in float32 on its default device, solves in float64 on the CPU."""

import itertools
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from edgeq.errors import NotPositiveDefinite
from edgeq.types import NumpyArray, ScaleDtype
from edgeq_backends.half_steps import half_step_limits, nearest_by_half_step

# MLX reads it once, at import; its products would have 10 bits on newer GPUs
os.environ.setdefault("MLX_ENABLE_TF32", "0")

import mlx.core as mx

from edgeq_backends.mlx.column_loops import MlxColumnLoops
from edgeq_backends.mlx.group_loops import MlxGroupLoops
from edgeq_backends.mlx.in_numpy import gram, on_cpu, product_of

STORED = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}
CACHED = 2**17  # numbers of which a CPU's cache holds a few arrays
ON_DEVICE = 2**24  # of which a GPU works on together: 64 MB each
FEWEST_ROWS = 32  # with fewer the start of an operation costs more than its work
STRIP_COLUMNS = 384  # narrower strips cost more in overhead than the symmetry saves
CONSISTENT = 1e-9  # relative; float64 rounding is far below it, the row of a failed pivot far above


class MlxBackend(MlxColumnLoops, MlxGroupLoops):
    """The verbs of `Backend` in MLX: in float32, and in float64 where rounding would be amplified.

    GPUs have float32 only: float64 runs on the CPU's stream. Memory is shared between both, so that
    nothing is copied on the way.
    """

    name = "mlx"
    computes_in = "float32"

    def __init__(self, *, exact: bool = False) -> None:
        """Make a backend, which has one precision."""

    def working(self) -> AbstractContextManager[object]:
        return nullcontext()

    def asarray(self, x: Any) -> mx.array:
        # MLX takes no ml_dtypes, and its own float64 exists on the CPU only
        if not isinstance(x, mx.array):
            x = mx.array(np.asarray(x, dtype=np.float32))
        array: mx.array = x.astype(mx.float32)
        return array

    def activations(self, x: Any) -> mx.array:
        return self.asarray(x)

    def to_numpy(self, x: mx.array) -> NumpyArray:
        return np.array(x)

    def copy(self, x: mx.array) -> mx.array:
        return mx.array(mx.contiguous(x))

    def gram(self, X: mx.array, Y: mx.array) -> mx.array:
        if on_cpu():
            return gram(X, Y)
        return symmetric_product(X) if X is Y else X.T @ Y

    def diagonal(self, A: mx.array) -> mx.array:
        return mx.diagonal(A)

    def add_diagonal(self, A: mx.array, value: mx.array | float) -> mx.array:
        return A + mx.eye(A.shape[0]) * value

    def cholesky(self, A: mx.array) -> mx.array:
        A = widened(A)
        L = mx.linalg.cholesky(A, stream=mx.cpu)
        if not bool(is_factor(L, A).item()):
            raise NotPositiveDefinite(size=A.shape[-1])
        return L

    def solve_triangular(self, L: mx.array, B: mx.array, *, transposed: bool = False) -> mx.array:
        inverse = inverse_of(L)  # by which MLX solves as well
        return product_of(mx.swapaxes(inverse, -1, -2, stream=mx.cpu) if transposed else inverse, B)

    def solve_product(self, A: mx.array, B: mx.array, L: mx.array) -> mx.array:
        inverse = inverse_of(L)
        return product_of(A, B, mx.swapaxes(inverse, -1, -2, stream=mx.cpu), inverse)

    def round_clip(self, x: mx.array, low: float, high: float) -> mx.array:
        return mx.clip(mx.round(x), low, high)

    def nearest(self, x: mx.array, table: Sequence[int]) -> mx.array:
        low, high = half_step_limits(table)
        nearest = mx.array(nearest_by_half_step(tuple(table)).astype(np.float32))
        steps = mx.clip(mx.ceil(2 * x), low, high)
        places = mx.where(mx.isnan(x), high + 1, steps) - low
        return mx.take(nearest, places.astype(mx.int32)).astype(x.dtype)

    def clip(self, x: mx.array, low: float, high: float) -> mx.array:
        return mx.clip(x, low, high)

    def round_to(self, x: mx.array, dtype: ScaleDtype) -> mx.array:
        return x.astype(STORED[dtype]).astype(mx.float32)

    def min_max(self, x: mx.array, axis: int) -> tuple[mx.array, mx.array]:
        return x.min(axis=axis), x.max(axis=axis)

    def where(self, mask: mx.array, a: mx.array | float, b: mx.array | float) -> mx.array:
        return mx.where(mask, a, b)

    def take(self, x: mx.array, indices: NumpyArray, axis: int) -> mx.array:
        return mx.take(x, mx.array(indices.astype(np.int32)), axis=axis)

    def concatenate(self, parts: Sequence[mx.array], axis: int) -> mx.array:
        return mx.concatenate(list(parts), axis=axis)

    def evaluate(self, *arrays: mx.array) -> None:
        mx.eval(*arrays)

    def device_memory(self) -> None:
        """Say that the device shares the machine's memory, as those of Apple do."""

    def rows_at_once(self, columns: int) -> int:
        return max(FEWEST_ROWS, (CACHED if on_cpu() else ON_DEVICE) // columns)


def widened(A: mx.array) -> mx.array:
    """Convert to float64, which MLX has on the CPU only."""
    return A.astype(mx.float64, stream=mx.cpu)


def inverse_of(L: mx.array) -> mx.array:
    """Invert a lower factor, in float64.

    Shapes: (..., n, n).
    """
    return mx.linalg.tri_inv(L, stream=mx.cpu)


def is_factor(L: mx.array, A: mx.array) -> mx.array:
    """Say whether L is a Cholesky factor of A; MLX gives a meaningless matrix where there is none.

    At the first bad pivot the rows before it are right, so that either its pivot is not positive or
    its row's squares do not sum up to A's diagonal. The diagonal of L alone can look sound: of a
    matrix of ones it is all ones.

    Shapes: (..., n, n) in float64 -> ().
    """
    with mx.stream(mx.cpu):
        pivots = mx.diagonal(L, 0, -2, -1)
        expected = mx.diagonal(A, 0, -2, -1)
        squares = (L * L).sum(axis=-1)
        consistent = mx.abs(squares - expected) <= CONSISTENT * mx.abs(expected)
        return mx.all((pivots > 0) & mx.isfinite(pivots) & consistent)


def symmetric_product(X: mx.array) -> mx.array:
    """Compute X.T @ X, exactly symmetric, in little more than half the work of the plain product.

    k lower strips are multiplied and mirrored: (k + 1) / 2k of the work.

    Shapes: (tokens, in) -> (in, in).
    """
    size = X.shape[1]
    strips = max(1, size // STRIP_COLUMNS)
    bounds = [round(strip * size / strips) for strip in range(strips + 1)]
    rows = []
    for start, stop in itertools.pairwise(bounds):
        strip = X[:, start:stop].T @ X[:, :stop]
        rows.append(mx.pad(strip, [(0, 0), (0, size - stop)]))
    lower = mx.tril(mx.concatenate(rows, axis=0))
    return lower + mx.tril(lower, -1).T
