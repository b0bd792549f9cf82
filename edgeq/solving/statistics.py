"""Second moments of a site's inputs, accumulated batch by batch.

Where the batches come from is up to streams; what is made of the moments, to `edgeq.solving.site`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from edgeq.errors import BadInput
from edgeq.protocols import Backend, Site
from edgeq.types import Array, LayerStatistics, NumpyArray, Tokens

HELD_OUT = 0.25  # of each window, its last tokens: enough to judge by, most left to fit to


@dataclass(slots=True)
class Moments:
    """Sums of H and D over tokens; D stays None while the streams are equal.

    n_tokens counts the tokens of the layer. own is the sum of their weights, which are 1 where
    nothing weighs them, and squares that of the squares of these. weight is what the sums of
    moments are divided by: own, and what the layer was lent.
    """

    H: Array | None = None
    D: Array | None = None
    n_tokens: int = 0
    weight: float = 0.0
    own: float = 0.0
    squares: float = 0.0

    @property
    def counting(self) -> float:
        """Count the tokens that would count as much alike: (sum w)^2 / sum w^2."""
        return self.own**2 / self.squares if self.squares else 0.0

    def add(
        self, x: Array | None, x_hat: Array, backend: Backend, weights: NumpyArray | None = None
    ) -> None:
        """Add the moments of one batch; x is None where no full-precision stream runs.

        weights say how much each token counts; without them, all count alike.

        Shapes: x and x_hat (tokens, in), of an expert perhaps without tokens; weights (tokens,).
        """
        tokens, columns = x_hat.shape
        if not tokens:
            if self.H is None:
                self.H = backend.asarray(np.zeros((columns, columns)))
            return
        self.n_tokens += tokens
        weights = None if weights is None else weights.astype(np.float64)
        total = float(tokens if weights is None else weights.sum())
        self.weight += total
        self.own += total
        self.squares += float(tokens if weights is None else (weights**2).sum())
        difference = None if x is None else x - x_hat
        if weights is not None:
            roots = backend.activations(np.sqrt(weights)[:, None])
            x_hat = x_hat * roots
            difference = None if difference is None else difference * roots
        self.H = _added(self.H, backend.gram(x_hat, x_hat))
        if difference is not None and (self.D is not None or bool(abs(difference).max() > 0)):
            self.D = _added(self.D, backend.gram(difference, x_hat))
        backend.evaluate(*(total for total in (self.H, self.D) if total is not None))

    def lend(self, other: "Moments", share: float, scale: float) -> None:
        """Count in a share of other tokens, whose inputs are multiplied by the root of a scale."""
        for name in ("H", "D"):
            lent = getattr(other, name)
            if lent is not None:
                setattr(self, name, _added(getattr(self, name), lent * (share * scale)))
        self.weight += share * other.weight

    def mean(self) -> LayerStatistics:
        """Turn the sums into statistics, in their place: of a wide layer each takes a gigabyte."""
        assert self.H is not None
        weight = self.weight or 1.0  # sums over no tokens are zeros
        self.H /= weight
        if self.D is not None:
            self.D /= weight
        return LayerStatistics(self.H, self.D, round(self.counting))


def united(one: Moments, other: Moments) -> Moments:
    """Add the moments of two sets of tokens, in new arrays."""
    return Moments(
        _sum(one.H, other.H),
        _sum(one.D, other.D),
        one.n_tokens + other.n_tokens,
        one.weight + other.weight,
        one.own + other.own,
        one.squares + other.squares,
    )


@dataclass(slots=True)
class SiteMoments:
    """The moments of a site: of tokens that both streams run on, and of those of one alone.

    held_out are those of the first kind that a correction is judged on. They have no moments where
    nothing is held out; all others then are in fit.
    """

    fit: Moments = field(default_factory=Moments)
    held_out: Moments = field(default_factory=Moments)
    single: Moments = field(default_factory=Moments)

    @property
    def parts(self) -> tuple[Moments, Moments, Moments]:
        """List the moments in an order that is the same for all sites."""
        return self.fit, self.held_out, self.single

    @property
    def n_tokens(self) -> int:
        """Count the tokens of the site's own."""
        return sum(part.n_tokens for part in self.parts)

    @property
    def own(self) -> float:
        """Sum up the weights of these tokens."""
        return sum(part.own for part in self.parts)

    @property
    def counting(self) -> float:
        """Count the tokens that would count as much alike."""
        squares = sum(part.squares for part in self.parts)
        return self.own**2 / squares if squares else 0.0

    def energy(self, backend: Backend) -> float:
        """Sum up the squares of all inputs."""
        sums = (part.H for part in self.parts if part.H is not None)
        return sum(float(backend.diagonal(H).sum()) for H in sums)


@dataclass(frozen=True, slots=True)
class Split:
    """Statistics of two parts of the tokens that both streams run on.

    A correction is fitted to one part and judged on the other.
    """

    fit: LayerStatistics
    held_out: LayerStatistics


Weigh = Callable[[Tokens], NumpyArray]
"""Says how much tokens count, the same in both streams. Shapes: (rows,)."""


def gather(
    site: Site,
    backend: Backend,
    *,
    drift: bool,
    hold_out: bool = False,
    weigh: Weigh | None = None,
) -> SiteMoments:
    """Sum up the moments of a site, and of its two parts where a part of the tokens is held out.

    The last quarter of each window is held out, not of each batch: what is chosen must not depend
    on how many windows run together. weigh says how much tokens count; without it all do alike.
    """
    found = SiteMoments()
    for batch, (X, X_hat) in enumerate(site.batches()):
        tokens = site.tokens(batch)
        weights = None
        if weigh is not None:
            assert tokens is not None, "streams know their windows"
            weights = weigh(tokens)
        if X is None or not drift:
            found.single.add(None, _rows(X_hat, backend), backend, weights)
        elif not hold_out:
            found.fit.add(_rows(X, backend), _rows(X_hat, backend), backend, weights)
        else:
            # no names for the rows: they would stay in memory while the next batch is computed
            for part, x, x_hat, of_part in zip(
                (found.fit, found.held_out),
                _both_parts(X, tokens, backend),
                _both_parts(X_hat, tokens, backend),
                _both_weights(weights, tokens),
                strict=True,
            ):
                part.add(x, x_hat, backend, of_part)
    return found


def accumulate(site: Site, backend: Backend, *, drift: bool) -> LayerStatistics:
    """Accumulate H and D over all batches of a site.

    D comes from the difference of the streams, never as a difference of moments. It is the mean
    over the tokens that both streams run on; where these are fewer than those of H, paired_H is
    their H. D is None when drift is not asked for, or when both streams are equal (nothing before
    was quantized).

    Raises: BadInput when the model overflows.
    """
    return statistics_of(site.name, gather(site, backend, drift=drift), backend)[0]


def accumulate_split(site: Site, backend: Backend) -> tuple[LayerStatistics, Split]:
    """Accumulate as `accumulate` does, and over two parts of the tokens of both streams as well."""
    moments = gather(site, backend, drift=True, hold_out=True)
    total, split = statistics_of(site.name, moments, backend)
    assert split is not None
    return total, split


def statistics_of(
    name: str, moments: SiteMoments, backend: Backend
) -> tuple[LayerStatistics, Split | None]:
    """Turn the moments of a site into statistics, in their place, and those of its two parts.

    Raises: BadInput for NaN and infinity, naming the site.
    """
    fit, held_out = moments.fit, moments.held_out
    if held_out.H is None:
        return combined(name, fit, moments.single, backend), None
    total = combined(name, united(fit, held_out), moments.single, backend)
    return total, Split(fit.mean(), held_out.mean())


def combined(name: str, paired: Moments, single: Moments, backend: Backend) -> LayerStatistics:
    """Combine statistics of tokens that both streams run on with those of others.

    Raises: BadInput for NaN and infinity.
    """
    total = paired if paired.weight else single
    mixed = paired.weight > 0 and single.weight > 0
    if mixed:
        total = united(replace(paired, D=None), single)
    elif total.H is None:
        total = paired  # without tokens: which of the two has sums of zeros does not matter
    statistics = total.mean()
    if not math.isfinite(float(backend.diagonal(statistics.H).sum())):
        raise BadInput(
            f"inputs of layer {name!r} hold NaN or infinity; the model overflows on this text"
        )
    if not mixed or paired.D is None:
        return statistics
    of_paired = paired.mean()
    return LayerStatistics(
        statistics.H, of_paired.D, statistics.n_tokens, of_paired.H, of_paired.n_tokens
    )


def _both_parts(x: Array, tokens: Tokens | None, backend: Backend) -> Iterator[Array]:
    """Give the rows of a batch to fit to, then those that are held out."""
    if tokens is None or len(x.shape) > 2:  # whole windows
        cut = x.shape[-2] - math.ceil(HELD_OUT * x.shape[-2])
        for part in (slice(cut), slice(cut, None)):
            yield _rows(x[..., part, :], backend)
    else:
        for chosen in _both_choices(tokens):
            yield backend.take(_rows(x, backend), np.flatnonzero(chosen), 0)


def _both_weights(weights: NumpyArray | None, tokens: Tokens | None) -> list[NumpyArray | None]:
    """Give the weights of the rows that `_both_parts` gives."""
    if weights is None or tokens is None:
        return [None, None]
    return [weights[chosen] for chosen in _both_choices(tokens)]


def _both_choices(tokens: Tokens) -> tuple[NumpyArray, NumpyArray]:
    """Say which rows are fitted to, and which are held out."""
    return tokens.places <= 1 - HELD_OUT, tokens.places > 1 - HELD_OUT


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
