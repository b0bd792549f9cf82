"""GPTQ: round one column after the other, each time moving the columns not yet rounded to absorb
the error.
"""

import numpy as np

from edgeq.grids.fitting import round_to_codes
from edgeq.protocols import Backend
from edgeq.types import Array, Grid, GroupScales, NumpyArray


def solve_columns(
    V: Array,
    U: Array,
    fitted: GroupScales,
    grid: Grid,
    backend: Backend,
    *,
    order: NumpyArray | None = None,
    block_size: int = 64,
) -> Array:
    """Choose codes column by column on fixed (static) group scales.

    e_j = (v_j - Q(v_j)) / U_jj,   v_k -= e_j U_jk for k > j,   with (H + lambda I)^-1 = U^T U

    The sum of e_j ** 2 is the loss tr((V-Q) (H + lambda I) (V-Q)^T). Updates beyond a block of
    columns come at once.

    order permutes the columns while solving only: U must belong to H in that order; groups keep
    their own columns. Shapes: V (out, in); U (in, in) upper; the codes (out, in). Source: Frantar
    et al., GPTQ, ICLR 2023, algorithm 1.
    """
    order = np.arange(V.shape[1]) if order is None else order
    columns = backend.copy(backend.take(V, order, axis=1).T)
    scales, offsets = backend.copy(fitted.scales.T), backend.copy(fitted.offsets.T)
    groups = grid.group_index(V.shape[1])[order]
    codes = []
    for start in range(0, V.shape[1], block_size):
        stop = min(start + block_size, V.shape[1])
        index = groups[start:stop]
        in_block = GroupScales(backend.take(scales, index, 0), backend.take(offsets, index, 0))
        block_codes, errors = solve_block(
            columns[start:stop], U[start:stop, start:stop], in_block, grid, backend
        )
        columns[stop:] -= U[start:stop, stop:].T @ errors
        backend.evaluate(columns, block_codes)
        codes.append(block_codes)
    return backend.take(backend.concatenate(codes, axis=0), np.argsort(order), axis=0).T


def solve_block(
    columns: Array, U: Array, fitted: GroupScales, grid: Grid, backend: Backend
) -> tuple[Array, Array]:
    """Codes of one block of columns and the errors e_j that the columns after it must absorb.

    Shapes: columns, fitted scales and offsets, codes and errors (columns, out): one row per column,
    contiguous.
    """
    work, codes, errors = backend.copy(columns), backend.copy(columns), backend.copy(columns)
    pivots = backend.to_numpy(backend.diagonal(U))
    for j in range(columns.shape[0]):
        scales, offsets = fitted.scales[j], fitted.offsets[j]
        codes[j] = round_to_codes(work[j], scales, offsets, grid, backend)
        errors[j] = (work[j] - (scales * codes[j] + offsets)) / float(pivots[j])
        work[j + 1 :] -= U[j, j + 1 :].reshape(-1, 1) * errors[j]
    return codes, errors


def activation_order(H: Array, backend: Backend) -> NumpyArray:
    """Columns by falling second moment: the columns that matter most are rounded while most freedom
    is left.
    """
    return np.argsort(-backend.to_numpy(backend.diagonal(H)), kind="stable")
