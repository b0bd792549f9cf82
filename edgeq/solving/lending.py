"""Lend moments to the experts of a mixture that few tokens reach.

An expert's own tokens say best what its inputs are like, but a second moment of fewer tokens than
inputs says of most directions that they never occur. What all tokens of the mixture are like is the
better guess for these.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeq.protocols import Backend, Site
from edgeq.recipe.recipe import Recipe
from edgeq.solving.propagation import FEW_TOKENS
from edgeq.solving.statistics import SiteMoments, gather
from edgeq.types import LinearSpec

ENOUGH_TOKENS = FEW_TOKENS
"""For each input: with so many an expert needs no loan, and its corrections no more damping."""


def lend(own: SiteMoments, others: SiteMoments, columns: int, backend: Backend) -> float:
    """Fill up the moments of an expert with those of other tokens, and give the share that is lent.

    It is as if other tokens had reached the expert too, as many as its own n lack to ENOUGH_TOKENS
    for each of its inputs: the mean of a prior that counts for so many tokens. The share falls from
    1 at n = 0 to 0 at ENOUGH_TOKENS * columns, from where on nothing changes. Others are scaled to
    the mean square of the own inputs, since a router also chooses by magnitude.
    """
    enough = ENOUGH_TOKENS * columns
    missing = enough - own.n_tokens
    if missing <= 0:
        return 0.0
    scale = 1.0
    energy, of_others = own.energy(backend), others.energy(backend)
    if own.n_tokens and energy > 0 and of_others > 0:
        scale = (energy / own.n_tokens) / (of_others / others.n_tokens)
    for part, other in zip(own.parts, others.parts, strict=True):
        part.lend(other, missing / others.n_tokens, scale)
    return missing / enough


@dataclass(slots=True)
class Lender:
    """Keeps what sites have to lend, until the layers of a block that may need it are solved."""

    recipe: Recipe
    backend: Backend
    linears: Mapping[str, LinearSpec]
    _kept: dict[str, SiteMoments] = field(default_factory=dict)
    _reached: dict[int, int] = field(default_factory=dict)

    def gather(self, site: Site) -> SiteMoments:
        """Sum up the moments that the recipe needs."""
        chooses = self.recipe.chooses_propagation
        drift = self.recipe.needs_drift
        return gather(site, self.backend, drift=drift, hold_out=chooses)

    def keep(self, site: Site) -> None:
        """Keep the moments of a site that lends, unless its layers are known to have enough."""
        if any(self._may_need(self.linears[name]) for name in site.lends):
            self._kept |= dict.fromkeys(site.lends, self.gather(site))

    def own(self, site: Site) -> tuple[SiteMoments, float]:
        """Sum up the moments of a site, filled up where few tokens reach it.

        Gives the share that is lent, too.
        """
        moments, linear = self.gather(site), self.linears[site.name]
        if linear.expert is None:
            return moments, 0.0
        self._reached[linear.expert] = moments.n_tokens
        others = self._kept.pop(site.name, None)
        if others is None:
            return moments, 0.0
        return moments, lend(moments, others, linear.shape[1], self.backend)

    def _may_need(self, linear: LinearSpec) -> bool:
        assert linear.expert is not None
        reached = self._reached.get(linear.expert, 0)
        return reached < ENOUGH_TOKENS * linear.shape[1]
