"""Lend moments to the experts of a mixture, which few tokens may reach.

An expert's own tokens say best what its inputs are like, but a second moment of fewer tokens than
inputs says of most directions that they never occur. What all tokens of the mixture are like is the
better guess for these.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeq.protocols import Backend, Site
from edgeq.recipe.recipe import Recipe
from edgeq.solving.statistics import SiteMoments, gather
from edgeq.solving.token_weights import TokenWeights
from edgeq.types import LinearSpec

LENT_TOKENS = 2
"""For each input. Measured with inputs of the demo that a random router sends to 2 or 8 experts:
the held-out loss is never above that of the own moments alone, from 0.1 to 10 own tokens for each
input, nor more than a few percent above that of the moments of all; 1 and 4 do about as well."""


def lend(own: SiteMoments, others: SiteMoments, columns: int, backend: Backend) -> float:
    """Count other tokens in with an expert's own, and give the share of its moments they make up.

    It is as if LENT_TOKENS for each input, m in all, had reached the expert beside its own n, as
    the mean of a prior counts that is worth m tokens: the share is m / (n + m). Without own tokens
    it is 1, and an expert that many reach does not notice. Others are scaled to the mean square of
    the own inputs, since a router also chooses by magnitude. Of weighed tokens, n are those that
    count.
    """
    lent = LENT_TOKENS * columns
    scale = weight = 1.0
    energy, of_others = own.energy(backend), others.energy(backend)
    if own.n_tokens and energy > 0 and of_others > 0:
        scale = (energy / own.own) / (of_others / others.own)
    if own.n_tokens:
        weight = own.own / own.counting  # of a token that counts
    for part, other in zip(own.parts, others.parts, strict=True):
        part.lend(other, lent * weight / others.own, scale)
    return lent / (own.counting + lent)


@dataclass(slots=True)
class Lender:
    """Keeps what sites have to lend, until the layers of a block that take it are solved.

    weights say how much tokens count at each site; without them all count alike.
    """

    recipe: Recipe
    backend: Backend
    linears: Mapping[str, LinearSpec]
    weights: TokenWeights | None = None
    _kept: dict[str, SiteMoments] = field(default_factory=dict)

    def gather(self, site: Site) -> SiteMoments:
        """Sum up the moments that the recipe needs."""
        chooses = self.recipe.chooses_propagation
        drift = self.recipe.needs_drift
        weigh = None if self.weights is None else self.weights.of(site)
        return gather(site, self.backend, drift=drift, hold_out=chooses, weigh=weigh)

    def keep(self, site: Site) -> None:
        """Keep the moments of a site that lends."""
        self._kept |= dict.fromkeys(site.lends, self.gather(site))

    def moments(self, site: Site) -> tuple[SiteMoments, float]:
        """Sum up the moments of a site, with what is lent to it, and give the share of that."""
        own, others = self.gather(site), self._kept.pop(site.name, None)
        if others is None:
            return own, 0.0
        return own, lend(own, others, self.linears[site.name].shape[1], self.backend)
