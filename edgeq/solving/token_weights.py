"""How much each calibration token counts at each site: as much as its output decides.

A layer's loss sums up errors of all tokens alike, though most of them change little of what the
model says in the end. The gradient of log p(y) by a layer's output says how much: a token counts by
its magnitude, the mean over the layers of a site. What runs the model backward is up to
`edgeq.streams.backward`; how moments are weighed, to `edgeq.solving.statistics`.

Source: Kim et al., GuidedQuant, ICML 2025, which weighs by squares and several groups of outputs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgeq.protocols import Site
from edgeq.types import NumpyArray, Tokens

CLIP = 10.0
"""No token counts more than so many times the mean, or less than that part of it."""

Sites = Sequence[Sequence[str]]
"""The names of linear layers, those together that read one input."""

Known = tuple[NumpyArray | None, NumpyArray]
"""Numbers of tokens, as `edgeq.types.Tokens` has them, and their weights; None for all tokens."""


@dataclass(slots=True)
class Magnitudes:
    """The magnitudes of gradients at one site, window after window.

    numbers are those of the tokens that reach an expert; there are none where all reach a site.
    """

    numbers: list[NumpyArray] = field(default_factory=list)
    values: list[NumpyArray] = field(default_factory=list)

    def weights(self, clip: float) -> Known:
        """Turn magnitudes into weights of mean 1, of tokens by rising numbers.

        Shapes: (tokens,).
        """
        numbers = np.concatenate(self.numbers) if self.numbers else None
        return numbers, clipped(np.concatenate(self.values), clip).astype(np.float32)


def clipped(magnitudes: NumpyArray, clip: float) -> NumpyArray:
    """Scale magnitudes to a mean of 1, and clip them to a factor around it; all 0 count alike.

    Shapes: (tokens,).
    """
    values = magnitudes.astype(np.float64)
    mean = values.mean() if values.size else 0.0
    if not mean > 0:
        return np.ones_like(values)
    weights = np.clip(values / mean, 1 / clip, clip)
    found: NumpyArray = weights / weights.mean()
    return found


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """The weights of tokens by site.

    of_site has them by the name of each linear layer; layers of one site share them. lenders has
    those for inputs that lend moments, by the names of the layers that these are lent to.
    """

    of_site: Mapping[str, Known]
    lenders: Mapping[str, Known]

    def of(self, site: Site) -> Callable[[Tokens], NumpyArray]:
        """Give what says how much tokens count at a site."""
        numbers, weights = self.lenders[site.lends[0]] if site.lends else self.of_site[site.name]

        def weigh(tokens: Tokens) -> NumpyArray:
            if numbers is None:
                found: NumpyArray = weights[tokens.numbers]
                return found
            return looked_up(tokens.numbers, numbers, weights)

        return weigh


def looked_up(wanted: NumpyArray, numbers: NumpyArray, weights: NumpyArray) -> NumpyArray:
    """Find the weights of tokens by their numbers, and the least of all for those without.

    A token may reach an expert here and not where gradients were measured: batches of another size
    are rounded differently, and scores of routers may be almost equal.

    Shapes: (wanted,); numbers, which rise, and weights (tokens,).
    """
    if not numbers.size:
        return np.ones(len(wanted), np.float32)
    places = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
    found: NumpyArray = np.where(numbers[places] == wanted, weights[places], weights.min())
    return found


@dataclass(slots=True)
class Collected:
    """What was measured so far of a model's sites, block by block and, of each, window by window.

    sites are those of each block, experts the names of all layers of experts.
    """

    sites: Sequence[Sites]
    experts: frozenset[str]
    of_site: dict[str, Magnitudes] = field(default_factory=dict)
    of_mixture: dict[int, Magnitudes] = field(default_factory=dict)

    def add(self, block: int, window: int, noted: Mapping[str, NumpyArray]) -> None:
        """Note the magnitudes of a window's tokens at the layers of a block, 0 for unreached ones.

        Windows come in order. Shapes: noted has (tokens,).
        """
        for site in self.sites[block]:
            values = mean_of(noted[name] for name in site)
            known = self.of_site.setdefault(site[0], Magnitudes())
            if site[0] in self.experts:
                reached = np.flatnonzero(values)
                known.numbers.append(window * len(values) + reached)
                values = values[reached]
            known.values.append(values)
        of_experts = [name for site in self.sites[block] for name in site if name in self.experts]
        if of_experts:
            values = mean_of(noted[name] for name in of_experts)
            self.of_mixture.setdefault(block, Magnitudes()).values.append(values)

    def weights(self, clip: float = CLIP) -> TokenWeights:
        """Turn all that was measured into weights, in its place."""
        found: dict[str, Known] = {}
        lenders: dict[str, Known] = {}
        for block, sites in enumerate(self.sites):
            of_mixture = self.of_mixture.pop(block, None)
            lent = None if of_mixture is None else of_mixture.weights(clip)
            for site in sites:
                of_site = self.of_site.pop(site[0]).weights(clip)
                found |= dict.fromkeys(site, of_site)
                if lent is not None and site[0] in self.experts:
                    lenders |= dict.fromkeys(site, lent)
        return TokenWeights(found, lenders)


def mean_of(parts: Iterable[NumpyArray]) -> NumpyArray:
    """Take the mean of arrays of one shape, in float32."""
    found: NumpyArray = np.mean(list(parts), axis=0).astype(np.float32)
    return found
