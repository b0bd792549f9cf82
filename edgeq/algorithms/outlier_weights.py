"""Single weights in full precision beside the codes, wherever they help most: outlier-aware
QuantEase, unstructured.
"""

import numpy as np

from edgeq.algorithms.layer_loss import Target, dequantize
from edgeq.algorithms.quantease import descend_codes
from edgeq.protocols import Backend
from edgeq.types import Array, Grid, GroupScales

POWER_STEPS = 30
MARGIN = 1.05  # power iteration comes to the largest eigenvalue from below


def largest_eigenvalue(H: Array, backend: Backend) -> float:
    """Of a positive semidefinite matrix, from above: the smaller of a power iteration with a margin
    and a row sum.
    """
    bound = float(abs(H).sum(axis=1).max())
    x = backend.asarray(
        np.random.default_rng(0).standard_normal(H.shape[0])
    )  # orthogonal to no eigenvector
    estimate = 0.0
    for _ in range(POWER_STEPS):
        x = x / float((x * x).sum()) ** 0.5
        x = H @ x
        estimate = float((x * x).sum()) ** 0.5
    return min(bound, MARGIN * estimate)


def keep_largest(E: Array, count: int, backend: Backend) -> Array:
    """E with all but its `count` largest magnitudes set to zero, the first ones of equals kept.
    Shapes: (out, in).
    """
    values = abs(backend.to_numpy(E)).ravel()
    kept = np.zeros(values.size)
    kept[np.argsort(-values, kind="stable")[:count]] = 1
    return E * backend.asarray(kept.reshape(E.shape))


def threshold_step(
    E: Array, Q: Array, target: Target, eigenvalue: float, count: int, backend: Backend
) -> Array:
    """One step of iterative hard thresholding: E <- P_k(E - ((Q + E) H - B) / lambda_max). Never
    raises the loss.
    """
    return keep_largest(E - ((Q + E) @ target.H - target.B) / eigenvalue, count, backend)


def fit_weights(E: Array, Q: Array, target: Target, backend: Backend, *, steps: int = 30) -> Array:
    """The best values on the support of E beside Q, by conjugate gradients in every row at a time.

    Exact after as many steps as the largest support of a row has weights. Shapes: E and Q (out,
    in).
    """
    support = backend.where(abs(E) > 0, 1.0, 0.0)
    residual = (target.B - (Q + E) @ target.H) * support
    direction, energy = residual, (residual * residual).sum(axis=1)
    for _ in range(steps):
        through = (direction @ target.H) * support
        curvature = (direction * through).sum(axis=1)
        moving = curvature > 0
        length = backend.where(moving, energy / backend.where(moving, curvature, 1.0), 0.0)[:, None]
        E, residual = E + length * direction, residual - length * through
        new_energy = (residual * residual).sum(axis=1)
        growing = energy > 0
        ratio = backend.where(growing, new_energy / backend.where(growing, energy, 1.0), 0.0)[
            :, None
        ]
        direction, energy = residual + ratio * direction, new_energy
        backend.evaluate(E, residual, direction)
    return E


def refine_with_weights(
    codes: Array,
    fitted: GroupScales,
    E: Array,
    target: Target,
    grid: Grid,
    backend: Backend,
    *,
    count: int,
    turns: int = 5,
) -> tuple[Array, Array]:
    """Codes and `count` full-precision weights by turns; both halves lower the loss of the layer or
    leave it.

    min tr((Q+E) H (Q+E)^T) - 2 <B, Q+E>,   E with `count` weights other than zero

    Shapes: codes, E and the results (out, in).
    Source: Behdin et al., QuantEase, 2023, section 4 (algorithm 3).
    """
    eigenvalue = largest_eigenvalue(target.H, backend)
    for _ in range(turns):
        codes = descend_codes(
            codes, fitted, Target(target.B - E @ target.H, target.H), grid, backend
        )
        Q = dequantize(codes, fitted, grid, backend)
        E = threshold_step(E, Q, target, eigenvalue, count, backend)
        E = fit_weights(E, Q, target, backend)
    return codes, E
