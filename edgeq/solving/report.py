"""How a layer came out: its loss after each stage, and everything that was not done as usual.

The report of a whole run, which holds these, is `edgeq.run.report`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby, takewhile


class Stage(StrEnum):
    """The moments of a solve at which the loss of a layer is measured, in their order.

    The values are the names in reports. NEAREST is what plain rounding would give: its solution is
    only compared with.
    """

    NEAREST = "round to nearest"
    SOLVED = "solved"
    SWEPT = "swept"
    ANNEALED = "annealed"
    REFITTED = "refitted"
    ALTERNATED = "alternated"


@dataclass(frozen=True, slots=True)
class LayerReport:
    """The outcome of one layer, as report.json stores it.

    type is llama.cpp's name of a grid that is more than bits, groups and zeros, else empty.
    Losses are tr(E H E.T) / tr(W H W.T), with E the dequantized minus the corrected weight. A layer
    of an expert has that one's number in its mixture, how many tokens reached it, and the share of
    its H and D that others' tokens make up. Where tokens are weighed, as many as counting_tokens
    would count as much alike.
    """

    name: str
    shape: tuple[int, int]
    bits: int
    group_size: int | None
    losses: dict[Stage, float] = field(default_factory=dict)
    propagation_strength: float = 0.0
    held_out_gain: float | None = None
    damping: float | None = None
    damping_retries: int = 0
    propagation_damping: float | None = None
    propagation_retries: int = 0
    few_tokens: bool = False
    dead_columns: int = 0
    outlier_columns: int = 0
    expert: int | None = None
    tokens: int | None = None
    lent_share: float = 0.0
    type: str = ""
    counting_tokens: int | None = None

    @property
    def final_loss(self) -> float:
        """Return the loss after the last stage; 0 where none was measured."""
        return next(reversed(self.losses.values()), 0.0)


@dataclass(frozen=True, slots=True)
class ExpertReport:
    """How many tokens reached an expert, and the largest share that was lent to a layer of it."""

    name: str
    tokens: int
    lent_share: float


def experts_of(layers: Iterable[LayerReport]) -> list[ExpertReport]:
    """List the experts among solved layers, where those of one expert come together."""
    found = []
    for expert, group in groupby(layers, lambda layer: layer.expert):
        if expert is not None:
            own = list(group)
            parts = zip(*(layer.name.split(".") for layer in own), strict=False)
            common = [part[0] for part in takewhile(lambda part: len({*part}) == 1, parts)]
            # a stack of experts has its number behind the layer's name
            name = ".".join(common if str(expert) in common[-1:] else [*common, str(expert)])
            tokens = max(layer.tokens or 0 for layer in own)
            found.append(ExpertReport(name, tokens, max(layer.lent_share for layer in own)))
    return found
