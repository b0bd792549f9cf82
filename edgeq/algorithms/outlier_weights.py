"""Single weights in full precision beside the codes: outlier-aware QuantEase, unstructured.

No setting reaches this: no runtime has a product for such weights. Whole columns, which have one,
are `edgeq.algorithms.outliers`.
"""

from dataclasses import replace

import numpy as np

from edgeq.algorithms.problem import Problem, dequantize
from edgeq.algorithms.quantease import descend_codes
from edgeq.protocols import Backend
from edgeq.types import Array, Solution

POWER_STEPS = 30  # of the power iteration: then it is within the margin on second moments
MARGIN = 1.05  # power iteration comes to the largest eigenvalue from below


def refine_with_weights(
    problem: Problem, solution: Solution, E: Array, *, count: int, turns: int = 5
) -> tuple[Solution, Array]:
    """Refine codes and `count` full-precision weights by turns; no half raises the layer's loss.

    min tr((Q+E) H (Q+E)^T) - 2 <B, Q+E>,   E with `count` weights other than zero

    E is where to start, such as zeros.

    Shapes: E and the one returned (out, in).
    Source: Behdin et al., QuantEase, 2023, section 4 (algorithm 3).
    """
    B = problem.linear_term()
    problem = replace(problem, V=None, B=B)
    eigenvalue = largest_eigenvalue(problem.H, problem.backend)
    for _ in range(turns):
        solution = descend_codes(replace(problem, B=B - E @ problem.H), solution)
        Q = dequantize(problem, solution)
        E = threshold_step(problem, Q, E, eigenvalue=eigenvalue, count=count)
        E = fit_weights(problem, Q, E)
    return solution, E


def threshold_step(problem: Problem, Q: Array, E: Array, *, eigenvalue: float, count: int) -> Array:
    """Take one step of iterative hard thresholding, which never raises the loss.

    E <- P_k(E - ((Q + E) H - B) / eigenvalue),   with the largest eigenvalue of H, or more
    """
    fall = (Q + E) @ problem.H - problem.linear_term()
    return keep_largest(E - fall / eigenvalue, count, problem.backend)


def fit_weights(problem: Problem, Q: Array, E: Array, *, steps: int = 30) -> Array:
    """Fit the values on the support of E beside Q, by conjugate gradients in every row at a time.

    Exact after as many steps as the largest support of a row has weights.

    Shapes: E and Q (out, in).
    """
    H, backend = problem.H, problem.backend
    support = backend.where(abs(E) > 0, 1.0, 0.0)
    residual = (problem.linear_term() - (Q + E) @ H) * support
    direction, energy = residual, (residual * residual).sum(axis=1)
    for _ in range(steps):
        through = (direction @ H) * support
        curvature = (direction * through).sum(axis=1)
        moving = curvature > 0
        length = backend.where(moving, energy / backend.where(moving, curvature, 1.0), 0.0)[:, None]
        E, residual = E + length * direction, residual - length * through
        new_energy = (residual * residual).sum(axis=1)
        growing = energy > 0
        ratio = backend.where(growing, new_energy / backend.where(growing, energy, 1.0), 0.0)
        direction, energy = residual + ratio[:, None] * direction, new_energy
        backend.evaluate(E, residual, direction)
    return E


def largest_eigenvalue(H: Array, backend: Backend) -> float:
    """Bound the largest eigenvalue of a positive semidefinite matrix from above, closely.

    By the smaller of a power iteration with a margin and a row sum.
    """
    bound = float(abs(H).sum(axis=1).max())
    # drawn: orthogonal to no eigenvector
    x = backend.asarray(np.random.default_rng(0).standard_normal(H.shape[0]))
    estimate = 0.0
    for _ in range(POWER_STEPS):
        x = x / float((x * x).sum()) ** 0.5
        x = H @ x
        estimate = float((x * x).sum()) ** 0.5
    return min(bound, MARGIN * estimate)


def keep_largest(E: Array, count: int, backend: Backend) -> Array:
    """Set all but the `count` largest magnitudes to zero, the first ones of equals kept.

    Shapes: (out, in).
    """
    values = abs(backend.to_numpy(E)).ravel()
    kept = np.zeros(values.size)
    kept[np.argsort(-values, kind="stable")[:count]] = 1
    return E * backend.asarray(kept.reshape(E.shape))
