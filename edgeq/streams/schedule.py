"""Hold all batches at each layer (fast): forward passes halt there until it is solved.

Each batch's pass through a block runs in a greenlet of its own. Hooks on the linear layers hand
control back with the layer's name and input; when all passes of both streams stand at the same
layer it can be solved, replaced, and all passes go on. So every operation runs once. No framework
is known here: an activation source contributes the hooks and the weights.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from greenlet import getcurrent, greenlet

from edgeq.errors import UnsupportedModel
from edgeq.streams.routing import tokens_in_order
from edgeq.types import Array, NumpyArray, QuantizedLinear, Tokens


@dataclass(frozen=True, slots=True)
class Stop:
    """Where a forward pass stands: about to run `layer` on `input`.

    tokens are those that the rows of the input are, None outside of a pass. lends: no layer runs
    here, and the input is like those of the layers named, for the case that few tokens reach these.
    ways are those from here to layers behind, with what runs on them; `enter` takes one from such
    an input.
    """

    layer: str
    input: Array
    tokens: Tokens | None = None
    lends: tuple[str, ...] = ()
    ways: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    enter: Callable[[Array, str], object] | None = None


class Forward:
    """One batch's pass through a block, which halts at each linear layer.

    After `resume`, `stop` is where it stands, or None once `output` is there.
    """

    def __init__(self, run: Callable[[], Array]) -> None:
        self._pass = greenlet(run)
        self.stop: Stop | None = None
        self.output: Array | None = None

    def resume(self) -> None:
        """Run to the next linear layer or to the end."""
        arrived = self._pass.switch()
        if self._pass.dead:
            self.stop, self.output = None, arrived
        else:
            self.stop = arrived

    def abandon(self) -> None:
        """Give the pass up where it stands, with everything that it holds."""
        self._pass.throw()
        self.stop = None

    def finished(self) -> Array:
        """Give the hidden states behind the block, once the pass has come to its end."""
        assert self._pass.dead, "the pass has not come to its end"
        return self.output


def stand_still(layer: str, x: Array) -> None:
    """Hand control to the scheduler until it resumes this pass; for a hook before a linear layer.

    Outside of a scheduled pass (an ordinary forward) it does nothing.
    """
    stand_at(Stop(layer, x, tokens_in_order(math.prod(x.shape[:-1]))))


def stand_at(stop: Stop) -> None:
    """Hand control to the scheduler as `stand_still` does, at a stop of which more is known."""
    scheduler = getcurrent().parent
    if scheduler is not None:
        scheduler.switch(stop)


class Streams:
    """Both streams' passes through one block, held at one layer after the other.

    The full-precision ones are paired with the quantized ones by batch; there may be fewer, or
    none.
    """

    def __init__(
        self,
        full: Sequence[Forward],
        quantized: Sequence[Forward],
        set_weight: Callable[[str, NumpyArray | QuantizedLinear], object],
    ) -> None:
        self.full, self.quantized = full, quantized
        self._set_weight = set_weight
        self._replacements: dict[str, NumpyArray | QuantizedLinear] = {}

    def sites(self) -> Iterator["StandingSite"]:
        """Hold all passes at one site after the other; when exhausted, they are through."""
        self._resume(self.full)
        self._resume(self.quantized)
        while (layer := self._common_layer()) is not None:
            site = StandingSite(self, layer)
            yield site
            for _ in site.layers():  # whatever the caller left unsolved runs unchanged
                pass

    def replace(self, layer: str, weight: NumpyArray | QuantizedLinear) -> None:
        self._replacements[layer] = weight

    def pass_layer(self) -> None:
        """Run every pass through the layer it stands at.

        The full-precision stream goes first, with the original weight; the replacement is put in
        after it.
        """
        layer = self._common_layer()
        assert layer is not None
        self._resume(self.full)
        replacement = self._replacements.pop(layer, None)
        if replacement is not None:
            self._set_weight(layer, replacement)
        self._resume(self.quantized)

    def _common_layer(self) -> str | None:
        """Name the layer at which all passes stand; None once all are through the block.

        Raises: UnsupportedModel when they stand at different layers.
        """
        layers = [
            None if forward.stop is None else forward.stop.layer
            for forward in (*self.quantized, *self.full)
        ]
        for layer in layers:
            if layer != layers[0]:
                raise UnsupportedModel(
                    f"one batch stands at {_place(layers[0])} and another at {_place(layer)}; "
                    "edgeq needs models that run the same layers for every batch"
                )
        return layers[0]

    def _resume(self, forwards: Sequence[Forward]) -> None:
        for forward in forwards:
            forward.resume()


class StandingSite:
    """The layers that read one input, found by the identity of the input object."""

    def __init__(self, streams: Streams, first: str) -> None:
        self.name = first
        stops = [_stop_of(forward) for forward in streams.quantized]
        self.lends: Sequence[str] = stops[0].lends
        self._streams = streams
        self._inputs = [stop.input for stop in stops]
        self._tokens = [stop.tokens for stop in stops]
        self._full_inputs = [_stop_of(forward).input for forward in streams.full]
        self._layers = self._walk(first)

    def batches(self) -> Iterator[tuple[Array | None, Array]]:
        """Give (X, X_hat) per batch; X is None where no full-precision stream runs."""
        yield from itertools.zip_longest(self._full_inputs, self._inputs)

    def tokens(self, batch: int) -> Tokens | None:
        return self._tokens[batch]

    def layers(self) -> Iterator[str]:
        """Give the site's layers; asking for the next runs both streams through the one before."""
        return self._layers

    def replace(self, layer: str, W: NumpyArray | QuantizedLinear) -> None:
        self._streams.replace(layer, W)

    def _walk(self, layer: str) -> Iterator[str]:
        if self.lends:
            self._streams.pass_layer()
            return
        while True:
            yield layer
            self._streams.pass_layer()
            stops = [forward.stop for forward in self._streams.quantized]
            same = [
                stop is not None and stop.input is x
                for stop, x in zip(stops, self._inputs, strict=True)
            ]
            if not any(same) or stops[0] is None:
                return
            if not all(same):
                raise UnsupportedModel(
                    f"layer {stops[0].layer!r}: only some batches give it the input of {layer!r}"
                )
            layer = stops[0].layer


def _place(layer: str | None) -> str:
    return f"layer {layer!r}" if layer else "the end of the block"


def _stop_of(forward: Forward) -> Stop:
    assert forward.stop is not None
    return forward.stop
