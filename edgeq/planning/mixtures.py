"""Sizes of a mixture of experts, as plans of memory and time count them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgeq.decoder import Layer
from edgeq.types import LinearSpec

Site = tuple[LinearSpec, ...]


@dataclass(frozen=True, slots=True)
class MixtureSizes:
    """The sizes of a block's mixture; hidden and inner are the inputs of an expert's two sites.

    stack is the weights that lie in the largest stack of the model's own code. share is that of the
    tokens that reach an expert on average, 1 where the model's description does not say.
    """

    count: int
    hidden: int
    inner: int
    stack: int
    share: float

    @property
    def token(self) -> int:
        """Count the numbers of a token while passes stand at an expert, if all tokens reach it.

        The model's own code keeps the residual, the mixture's input, scores and choices; the
        halting passes what goes on, what is shown, and products with the first layers.
        """
        return 5 * self.hidden + 3 * self.inner + 4 * self.count


def mixture_of(layer: Layer) -> MixtureSizes | None:
    """Measure the mixture of a block; None where it has none."""
    experts = [linear for linear in layer.linears if linear.expert is not None]
    if not experts:
        return None
    count = 1 + max(linear.expert or 0 for linear in experts)
    described = layer.mlp.experts if layer.mlp else None
    share = 1.0 if described is None else described.per_token / described.count
    *first, last = [linear for linear in experts if linear.expert == experts[0].expert]
    weights = sum(math.prod(linear.shape) for linear in first)
    return MixtureSizes(count, first[0].shape[1], last.shape[1], count * weights, share)


def is_of_expert(site: Site) -> bool:
    """Say whether a site lies in an expert."""
    return site[0].expert is not None


def telling_sites(sites: Sequence[Site]) -> Iterator[int]:
    """Number the sites of a block at which most may be in memory: of all experts the last one's.

    Experts are equally large, and what earlier ones left behind only grows.
    """
    last = max((site[0].expert for site in sites if site[0].expert is not None), default=None)
    return (place for place, site in enumerate(sites) if site[0].expert in (None, last))
