"""Second moments of a site's inputs, accumulated batch by batch."""

import math

from edgeq.errors import BadInput
from edgeq.protocols import Backend, Site
from edgeq.types import Array, LayerStatistics


def accumulate(site: Site, backend: Backend, *, drift: bool) -> LayerStatistics:
    """H and D over all batches of a site; D from the difference of the streams, never as a difference of moments.

    D is None when drift is not asked for, or when both streams are equal (nothing before was quantized).
    """
    H: Array | None = None
    D: Array | None = None
    n_tokens = 0
    for X, X_hat in site.batches():
        x_hat = backend.activations(X_hat)
        x_hat = x_hat.reshape(-1, x_hat.shape[-1])
        n_tokens += x_hat.shape[0]
        H = _added(H, backend.gram(x_hat, x_hat))
        if drift and X is not None:
            difference = backend.activations(X).reshape(x_hat.shape) - x_hat
            if D is not None or bool(abs(difference).max() > 0):
                D = _added(D, backend.gram(difference, x_hat))
        backend.evaluate(*(total for total in (H, D) if total is not None))
    assert H is not None
    if not math.isfinite(float(backend.diagonal(H).sum())):
        raise BadInput(f"inputs of layer {site.name!r} hold NaN or infinity; the model overflows on this text")
    H /= n_tokens  # in place here and below: of a wide layer each of these takes a gigabyte
    if D is not None:
        D /= n_tokens
    return LayerStatistics(H, D, n_tokens)


def _added(total: Array | None, term: Array) -> Array:
    if total is None:
        return term
    total += term
    return total
