"""Second moments of a site's inputs, accumulated batch by batch."""

import math
from dataclasses import dataclass

from edgeq.errors import BadInput
from edgeq.protocols import Backend, Site
from edgeq.types import Array, LayerStatistics

HELD_OUT = 0.25  # of each batch, its last tokens


@dataclass(slots=True)
class Moments:
    """Running sums of H and D; D over those tokens only that both streams run on."""

    H: Array | None = None
    D: Array | None = None
    n_tokens: int = 0
    drift_tokens: int = 0

    def add(self, x: Array | None, x_hat: Array, backend: Backend) -> None:
        """Shapes: x, x_hat (tokens, in); x None where no full-precision stream runs."""
        self.n_tokens += x_hat.shape[0]
        self.H = _added(self.H, backend.gram(x_hat, x_hat))
        if x is not None:
            self.drift_tokens += x_hat.shape[0]
            difference = x - x_hat
            if self.D is not None or bool(abs(difference).max() > 0):
                self.D = _added(self.D, backend.gram(difference, x_hat))
        backend.evaluate(*(total for total in (self.H, self.D) if total is not None))

    def mean(self) -> LayerStatistics:
        assert self.H is not None
        D = None if self.D is None else self.D / self.drift_tokens
        return LayerStatistics(self.H / self.n_tokens, D, self.n_tokens)


@dataclass(frozen=True, slots=True)
class Split:
    """The tokens of a site in two parts: what a correction is fitted to, and what it is judged on."""

    fit: LayerStatistics
    held_out: LayerStatistics


def accumulate(site: Site, backend: Backend, *, drift: bool) -> LayerStatistics:
    """H and D over all batches of a site; D from the difference of the streams, never as a difference of moments.

    D is None when drift is not asked for, or when both streams are equal (nothing before was quantized). It is the mean
    over the tokens that both streams run on, which may be fewer than those of H.
    """
    return accumulate_parts(site, backend, drift=drift, held_out=0.0)[0]


def accumulate_split(site: Site, backend: Backend) -> tuple[LayerStatistics, Split]:
    """H and D of all tokens, and of two parts of them: the last quarter of each batch is held out."""
    total, fit, held_out = accumulate_parts(site, backend, drift=True, held_out=HELD_OUT)
    return total, Split(fit, held_out)


def accumulate_parts(site: Site, backend: Backend, *, drift: bool, held_out: float) -> list[LayerStatistics]:
    """Moments of all tokens; with a share of each batch held out, also of the others and of these. Raises: BadInput."""
    parts = [Moments()] if held_out == 0 else [Moments(), Moments()]
    for X, X_hat in site.batches():
        x_hat = _as_rows(backend.activations(X_hat))
        x = _as_rows(backend.activations(X)) if drift and X is not None else None
        cut = x_hat.shape[0] - math.ceil(held_out * x_hat.shape[0])
        bounds = [(0, cut), (cut, x_hat.shape[0])][: len(parts)]
        for part, (start, stop) in zip(parts, bounds, strict=True):
            part.add(None if x is None else x[start:stop], x_hat[start:stop], backend)
    total = parts[0] if held_out == 0 else merged(*parts)
    if not math.isfinite(float(backend.diagonal(total.H).sum())):
        raise BadInput(f"inputs of layer {site.name!r} hold NaN or infinity; the model overflows on this text")
    return [total.mean(), *(part.mean() for part in parts)][: 1 if held_out == 0 else 3]


def merged(one: Moments, other: Moments) -> Moments:
    """The moments of all tokens of both."""
    assert one.H is not None
    D = one.D if other.D is None else _added(one.D, other.D)
    return Moments(one.H + other.H, D, one.n_tokens + other.n_tokens, one.drift_tokens + other.drift_tokens)


def _as_rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _added(total: Array | None, term: Array) -> Array:
    return term if total is None else total + term
