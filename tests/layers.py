"""A solved layer with all that refiners take, in backend arrays and in plain ones."""

from dataclasses import replace

import numpy as np
import plain

from edgeq.algorithms.damping import inverse_upper_factor
from edgeq.algorithms.gptq import solve_columns
from edgeq.algorithms.group_scale import search_scales
from edgeq.algorithms.problem import Problem, dequantize
from edgeq.algorithms.rtn import round_to_nearest

ZEROS = ("symmetric", "integer", "offset")


class SolvedLayer:
    """Codes of GPTQ (or of rounding) on stage 1 scales; B and H in float32-exact numbers."""

    def __init__(
        self, rng, grid, backend, *, solver="gptq", damping=0.01, drift=0.2, H=None, **sizes
    ):
        self.W, self.X, self.X_hat = plain.random_layer(
            rng, drift=drift, **{"in_features": 40, **sizes}
        )
        raw, D = plain.moments(self.X, self.X_hat)
        self.H = (
            plain.damped(raw if H is None else H, damping).astype(np.float32).astype(np.float64)
        )
        self.H = (self.H + self.H.T) / 2
        self.V = (
            self.W if H is not None else self.W + 0.5 * np.linalg.solve(self.H, (self.W @ D).T).T
        )
        self.V = self.V.astype(np.float32).astype(np.float64)
        self.grid, self.backend = grid, backend
        self.B = self.V @ self.H
        self.problem = Problem(
            None, backend.asarray(self.H), grid, backend, B=backend.asarray(self.B)
        )
        importance = backend.diagonal(self.problem.H)
        near_V = replace(self.problem, V=backend.asarray(self.V), importance=importance)
        self.solution = round_to_nearest(near_V, search_scales(near_V))
        if solver == "gptq":
            U = inverse_upper_factor(self.problem.H, backend)
            self.solution = solve_columns(replace(near_V, U=U), self.solution)
        self.scales, self.offsets = plain.column_values(
            self.solution, grid, self.W.shape[1], backend
        )

    def with_codes(self, codes):
        """Other codes on the same scales."""
        return replace(self.solution, codes=codes)

    def losses(self, solution):
        """tr(E H E^T) of every row, in float64."""
        Q = dequantize(self.problem, solution)
        return plain.weighted_loss(self.backend.to_numpy(Q).astype(np.float64), self.V, self.H)

    def noise(self):
        """What float32 may get wrong in a row's loss."""
        precision = 1e-13 if self.backend.name != "mlx" else 1e-6
        return precision * plain.weighted_loss(self.V, 0 * self.V, self.H)

    def numpy_codes(self, solution=None):
        codes = (self.solution if solution is None else solution).codes
        return self.backend.to_numpy(codes).astype(np.float64)


def correlated_moment(rng, size, loud=0.0):
    """A second moment with eigenvalues 1 / i in a random basis, a share of the inputs eight times
    as loud.
    """
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    H = basis @ np.diag(1 / np.arange(1, size + 1)) @ basis.T * size
    gain = np.where(np.arange(size) < loud * size, 8.0, 1.0)
    return (H * gain).T * gain
