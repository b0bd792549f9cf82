"""Quantization error propagation: a layer makes up for what the quantized layers before it did."""

from edgeq.protocols import Backend
from edgeq.types import Array


def correct_weight(
    W: Array, D: Array, L: Array, backend: Backend, *, propagation_strength: float
) -> Array:
    """Move a weight so that the layer undoes error it inherits from quantized layers before it.

    V = W + propagation_strength * W D (H + lambda I)^-1,   with L the lower factor of H + lambda I

    Undamped strength 1 minimises ||X W.T - X_hat V.T||; 0 leaves W alone; between them it trades
    fit for robustness.

    Shapes: W and the result (out, in); D and L (in, in).
    Source: Arai and Ichikawa, Quantization Error Propagation, NeurIPS 2025.
    """
    return W + propagation_strength * backend.solve_product(W, D, L)
