"""Second moments of a site's inputs, accumulated batch by batch.

Where the batches come from is up to streams; what is made of the moments, to `edgeq.solving.site`.
"""

import math
from dataclasses import dataclass

from edgeq.errors import BadInput
from edgeq.protocols import Backend, Site
from edgeq.types import Array, LayerStatistics

HELD_OUT = 0.25  # of each window, its last tokens: enough to judge by, most left to fit to


@dataclass(slots=True)
class Moments:
    """Sums of H and D over tokens; D stays None while the streams are equal."""

    H: Array | None = None
    D: Array | None = None
    n_tokens: int = 0

    def add(self, x: Array | None, x_hat: Array, backend: Backend) -> None:
        """Add the moments of one batch; x is None where no full-precision stream runs.

        Shapes: x and x_hat (tokens, in).
        """
        self.n_tokens += x_hat.shape[0]
        self.H = _added(self.H, backend.gram(x_hat, x_hat))
        if x is not None:
            difference = x - x_hat
            if self.D is not None or bool(abs(difference).max() > 0):
                self.D = _added(self.D, backend.gram(difference, x_hat))
        backend.evaluate(*(total for total in (self.H, self.D) if total is not None))

    def mean(self) -> LayerStatistics:
        """Turn the sums into statistics, in their place: of a wide layer each takes a gigabyte."""
        assert self.H is not None
        self.H /= self.n_tokens
        if self.D is not None:
            self.D /= self.n_tokens
        return LayerStatistics(self.H, self.D, self.n_tokens)


def united(one: Moments, other: Moments) -> Moments:
    """Add the moments of two sets of tokens, in new arrays."""
    return Moments(_sum(one.H, other.H), _sum(one.D, other.D), one.n_tokens + other.n_tokens)


@dataclass(frozen=True, slots=True)
class Split:
    """Statistics of two parts of the tokens that both streams run on.

    A correction is fitted to one part and judged on the other.
    """

    fit: LayerStatistics
    held_out: LayerStatistics


def accumulate(site: Site, backend: Backend, *, drift: bool) -> LayerStatistics:
    """Accumulate H and D over all batches of a site.

    D comes from the difference of the streams, never as a difference of moments. It is the mean
    over the tokens that both streams run on; where these are fewer than those of H, paired_H is
    their H. D is None when drift is not asked for, or when both streams are equal (nothing before
    was quantized).

    Raises: BadInput when the model overflows.
    """
    paired, single = Moments(), Moments()
    for X, X_hat in site.batches():
        if drift and X is not None:
            paired.add(_rows(X, backend), _rows(X_hat, backend), backend)
        else:
            single.add(None, _rows(X_hat, backend), backend)
    return combined(site, paired, single, backend)


def accumulate_split(site: Site, backend: Backend) -> tuple[LayerStatistics, Split]:
    """Accumulate as `accumulate` does, and over two parts of the tokens of both streams as well.

    The last quarter of each window is held out, not of each batch: what is chosen must not depend
    on how many windows run together.
    """
    fit, held_out, single = Moments(), Moments(), Moments()
    for X, X_hat in site.batches():
        if X is None:
            single.add(None, _rows(X_hat, backend), backend)
            continue
        cut = X_hat.shape[-2] - math.ceil(HELD_OUT * X_hat.shape[-2])
        for part, tokens in ((fit, slice(cut)), (held_out, slice(cut, None))):
            # no names for the rows: they would stay in memory while the next batch is computed
            part.add(
                _rows(X[..., tokens, :], backend), _rows(X_hat[..., tokens, :], backend), backend
            )
    total = combined(site, united(fit, held_out), single, backend)
    return total, Split(fit.mean(), held_out.mean())


def combined(site: Site, paired: Moments, single: Moments, backend: Backend) -> LayerStatistics:
    """Combine statistics of tokens that both streams run on with those of others.

    Raises: BadInput for NaN and infinity.
    """
    total = paired if paired.n_tokens else single
    mixed = paired.n_tokens > 0 and single.n_tokens > 0
    if mixed:
        total = Moments(_sum(paired.H, single.H), None, paired.n_tokens + single.n_tokens)
    statistics = total.mean()
    if not math.isfinite(float(backend.diagonal(statistics.H).sum())):
        raise BadInput(
            f"inputs of layer {site.name!r} hold NaN or infinity; the model overflows on this text"
        )
    if not mixed or paired.D is None:
        return statistics
    of_paired = paired.mean()
    return LayerStatistics(
        statistics.H, of_paired.D, total.n_tokens, of_paired.H, of_paired.n_tokens
    )


def _rows(x: Array, backend: Backend) -> Array:
    x = backend.activations(x)
    return x.reshape(-1, x.shape[-1])


def _added(total: Array | None, term: Array | None) -> Array | None:
    """Add a term to a total, in its place: of a wide layer each of these takes a gigabyte."""
    if total is None or term is None:
        return term if total is None else total
    total += term
    return total


def _sum(a: Array | None, b: Array | None) -> Array | None:
    if a is not None and b is not None:
        return a + b
    only = b if a is None else a
    return None if only is None else 1 * only
