"""GPTQ: round one column after the other, moving those not yet rounded to absorb its error."""

from dataclasses import replace

import numpy as np

from edgeq.algorithms.problem import Problem
from edgeq.protocols import Backend
from edgeq.types import Array, NumpyArray, Solution


def solve_columns(
    problem: Problem, solution: Solution, *, block_size: int | None = None
) -> Solution:
    """Choose codes column by column on the fixed (static) group scales of a solution.

    e_j = (v_j - Q(v_j)) / U_jj,   v_k -= e_j U_jk for k > j,   with H^-1 = U^T U

    The sum of e_j ** 2 is the loss tr((V-Q) H (V-Q)^T). Updates beyond a block of columns, of the
    backend's choice where none is given, come at once. The problem's order permutes the columns
    while solving only: groups keep their own.

    Source: Frantar et al., GPTQ, ICLR 2023, algorithm 1.
    """
    V, U, grid, backend = problem.V, problem.U, problem.grid, problem.backend
    order = np.arange(V.shape[1]) if problem.order is None else problem.order
    columns = backend.copy(backend.take(V, order, axis=1).T)
    scales, offsets = backend.copy(solution.scales.T), backend.copy(solution.offsets.T)
    groups = grid.group_index(V.shape[1])[order]
    codes, at_once = [], block_size or backend.columns_at_once
    for start in range(0, V.shape[1], at_once):
        stop = min(start + at_once, V.shape[1])
        index = groups[start:stop]
        block_codes, errors = backend.round_columns(
            columns[start:stop],
            U[start:stop, start:stop],
            backend.take(scales, index, 0),
            backend.take(offsets, index, 0),
            grid,
        )
        columns[stop:] -= U[start:stop, stop:].T @ errors
        backend.evaluate(columns, block_codes)
        codes.append(block_codes)
    chosen = backend.take(backend.concatenate(codes, axis=0), np.argsort(order), axis=0).T
    return replace(solution, codes=chosen)


def activation_order(H: Array, backend: Backend) -> NumpyArray:
    """Sort columns by falling second moment: those that matter most are rounded while most is free.

    Inputs of equal energy keep their order.
    """
    return np.argsort(-backend.to_numpy(backend.diagonal(H)), kind="stable")
