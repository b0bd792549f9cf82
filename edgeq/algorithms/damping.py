"""Choose lambda, in this one place, and make inputs that calibration never saw harmless.

What is solved with the factors is up to the other algorithms.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeq.errors import NotPositiveDefinite
from edgeq.protocols import Backend
from edgeq.types import Array, LayerStatistics, NumpyArray

RETRIES = 4  # each one multiplies the damping by ten
INVERTED_COLUMNS = 512  # in one strip: wide enough for fast solves, narrow beside a wide layer
DEAD_FRACTION = 1e-8  # of the mean diagonal: below it an input counts as never seen


@dataclass(frozen=True, slots=True)
class DampedFactor:
    """Hold a factor of H + lambda I.

    damping is the fraction that worked, retries how often it was raised to get there.
    """

    factor: Array
    damping: float
    retries: int


def damped(H: Array, damping: float, backend: Backend) -> Array:
    """Give H + lambda I with lambda = damping * mean(diag H).

    Shapes: (in, in).
    """
    return backend.add_diagonal(H, damping * backend.diagonal(H).mean())


def factorise(
    H: Array,
    damping: float,
    backend: Backend,
    factor: Callable[[Array, Backend], Array],
    *,
    order: NumpyArray | None = None,
) -> DampedFactor:
    """Factor H + lambda I, raising lambda tenfold each time it is not positive definite.

    With `order`, the factor is that of H so permuted.
    Raises: NotPositiveDefinite when the last retry fails too.
    """
    for retries in range(RETRIES + 1):
        fraction = damping * 10.0**retries
        # nested calls: a name for the damped matrix would keep it in memory while it is factored
        try:
            L = factor(in_order(damped(H, fraction, backend), order, backend), backend)
            return DampedFactor(L, fraction, retries)
        except NotPositiveDefinite:
            if retries == RETRIES:
                raise
    raise AssertionError("unreachable")


def lower_factor(A: Array, backend: Backend) -> Array:
    """Give the lower Cholesky factor L, A = L L^T."""
    return backend.cholesky(A)


def inverse_upper_factor(A: Array, backend: Backend) -> Array:
    """Give the upper U with A^-1 = U^T U, from one Cholesky of the flipped matrix.

    That saves a second factor and an inverse: flipping rows and columns of A gives A' = M M^T,
    and U is M^-1 flipped back.
    """
    backwards = np.arange(A.shape[0])[::-1]
    flipped = in_order(A, backwards, backend)
    # at most three matrices of this size are in memory then, unless the caller holds a reference
    del A
    return in_order(inverse_lower(backend.cholesky(flipped), flipped, backend), backwards, backend)


def in_order(A: Array, order: NumpyArray | None, backend: Backend) -> Array:
    """Put rows and columns of a symmetric matrix into another order; None keeps theirs."""
    return A if order is None else backend.take(backend.take(A, order, 0), order, 1)


def inverse_lower(M: Array, work: Array, backend: Backend) -> Array:
    """Invert a lower factor, a strip of columns at a time below the diagonal; overwrites `work`."""
    size = work.shape[0]
    for start in range(0, size, INVERTED_COLUMNS):
        stop = min(start + INVERTED_COLUMNS, size)
        unit = backend.asarray(np.eye(size - start, stop - start))
        work[start:, start:stop] = backend.solve_triangular(M[start:, start:], unit)
        work[:start, start:stop] = 0.0
        backend.evaluate(work)
    return work


def settle_dead_columns(
    statistics: LayerStatistics, backend: Backend
) -> tuple[LayerStatistics, int]:
    """Decouple inputs that calibration (almost) never excited: their weights are plainly rounded.

    Coupled, they would be erased. Such a column gets H_jj = mean(diag H) and no off-diagonals.
    Returns the statistics and the number of columns.
    """
    diagonal = backend.diagonal(statistics.H)
    mean = diagonal.mean()
    mean = backend.where(mean > 0, mean, 1.0)
    dead = diagonal <= DEAD_FRACTION * mean  # NaN is not dead: the factorisation will refuse it
    count = int(backend.to_numpy(dead).sum())
    if count == 0:
        return statistics, 0
    D, paired_H = statistics.D, statistics.paired_H
    if D is not None:
        D = backend.where(dead.reshape(1, -1), 0.0, D)
    if paired_H is not None:
        paired_H = decoupled(paired_H, dead, mean, backend)
    H = decoupled(statistics.H, dead, mean, backend)
    return LayerStatistics(H, D, statistics.n_tokens, paired_H, statistics.paired_tokens), count


def decoupled(H: Array, dead: Array, value: Array, backend: Backend) -> Array:
    """Put `value` on the diagonal of dead columns and zero elsewhere in them.

    Shapes: H (in, in); dead (in,).
    """
    column = dead.reshape(1, -1)
    H = backend.where(column, 0.0, backend.where(column.T, 0.0, H))
    return backend.add_diagonal(H, backend.where(dead, value, 0.0))
