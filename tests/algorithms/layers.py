"""A solved layer with all that refiners take, in backend arrays and in plain ones."""

import numpy as np
import plain

from edgeq.algorithms.damping import inverse_upper_factor
from edgeq.algorithms.gptq import solve_columns
from edgeq.algorithms.group_scale import search_scales
from edgeq.algorithms.layer_loss import Target, dequantize
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
        self.target = Target(backend.asarray(self.B), backend.asarray(self.H))
        V = backend.asarray(self.V)
        self.fitted = search_scales(V, backend.diagonal(self.target.H), grid, backend)
        self.codes = round_to_nearest(V, self.fitted, grid, backend)
        if solver == "gptq":
            U = inverse_upper_factor(self.target.H, backend)
            self.codes = solve_columns(V, U, self.fitted, grid, backend)
        self.scales, self.offsets = plain.column_values(self.fitted, grid, self.W.shape[1], backend)

    def losses(self, codes, fitted=None):
        """tr(E H E^T) of every row, in float64."""
        Q = dequantize(codes, self.fitted if fitted is None else fitted, self.grid, self.backend)
        return plain.weighted_loss(self.backend.to_numpy(Q).astype(np.float64), self.V, self.H)

    def noise(self):
        """What float32 may get wrong in a row's loss."""
        precision = 1e-13 if self.backend.name != "mlx" else 1e-6
        return precision * plain.weighted_loss(self.V, 0 * self.V, self.H)

    def numpy_codes(self, codes=None):
        return self.backend.to_numpy(self.codes if codes is None else codes).astype(np.float64)


def correlated_moment(rng, size, loud=0.0):
    """A second moment with eigenvalues 1 / i in a random basis, a share of the inputs eight times
    as loud.
    """
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    H = basis @ np.diag(1 / np.arange(1, size + 1)) @ basis.T * size
    gain = np.where(np.arange(size) < loud * size, 8.0, 1.0)
    return (H * gain).T * gain
