"""Measure how much each calibration token counts, before a run that weighs them.

What the weights are is said by `edgeq.solving.token_weights`.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from edgeq.decoder import Decoder
from edgeq.errors import BadInput
from edgeq.protocols import ModelSource
from edgeq.recipe.recipe import Recipe
from edgeq.solving.token_weights import Collected, TokenWeights
from edgeq.types import NumpyArray

MeasureTokens = Callable[
    [ModelSource, NumpyArray, Recipe], Iterator[tuple[int, int, Mapping[str, NumpyArray]]]
]
"""Runs a model backward over windows; see `edgeq.streams.backward.measure_tokens`."""


def measure_weights(
    measured: Iterator[tuple[int, int, Mapping[str, NumpyArray]]],
    source: ModelSource,
    windows: int,
    tell: Callable[[int, int], None],
) -> TokenWeights:
    """Make weights of all tokens at all sites of what is measured while a model runs backward.

    tell gets how many windows have been taken back through a block, and how many will be.

    Raises: BadInput where gradients are not finite.
    """
    collected = empty(source.record.decoder)
    total = windows * len(source.blocks())
    tell(0, total)
    for done, (block, window, noted) in enumerate(measured, 1):
        check_finite(noted)
        collected.add(block, window, noted)
        tell(done, total)
    return collected.weights()


def empty(decoder: Decoder) -> Collected:
    """Give what collects magnitudes at the sites of a model."""
    sites = [
        [[linear.inside(decoder.block_name(index)).name for linear in site] for site in layer.sites]
        for index, layer in enumerate(decoder.layers)
    ]
    experts = frozenset(linear.name for linear in decoder.linears() if linear.expert is not None)
    return Collected(sites, experts)


def check_finite(noted: Mapping[str, NumpyArray]) -> None:
    """Refuse gradients of NaN or infinity. Raises: BadInput naming the layer."""
    for name, values in noted.items():
        if not np.isfinite(values).all():
            raise BadInput(
                f"gradients at layer {name!r} hold NaN or infinity; the model overflows on this "
                'text, so leave out token_weights or set it to "none"'
            )
