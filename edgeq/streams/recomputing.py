"""Recompute batch by batch (small): at each site both streams run anew from the block's start.

Only one batch is held while a layer is solved; in exchange a block is run about three times. Sites,
inputs and results are those of `edgeq.streams.schedule.Streams`.
"""

from collections.abc import Callable, Iterator, Sequence

from edgeq.errors import UnsupportedModel
from edgeq.streams.schedule import Forward
from edgeq.types import Array, NumpyArray

Pass = Callable[[], Array]
"""Runs one batch through the block, from its start."""


class RecomputedStreams:
    """Both streams' passes through one block, recomputed for each site and batch.

    The full-precision ones are paired with the quantized ones by batch; there may be fewer, or
    none. set_weight changes what a layer computes with and gives back what it computed with before.
    keep gets each output of the block, by stream (True is the quantized one) and batch.
    """

    def __init__(
        self,
        full: Sequence[Pass],
        quantized: Sequence[Pass],
        set_weight: Callable[[str, Array], Array],
        keep: Callable[[bool, int, Array], None],
    ) -> None:
        self._full, self._quantized = full, quantized
        self._set_weight, self._keep = set_weight, keep
        # weights of solved layers that the stream now running does not use
        self._spare: dict[str, Array] = {}
        self._replaced = False

    def sites(self) -> Iterator["RecomputedSite"]:
        """Yield one site after the other; when exhausted, both streams are through the block."""
        layers = self._site_layers()
        route = [name for names in layers for name in names]
        for names in layers:
            yield RecomputedSite(self, names, route[: route.index(names[0])])
        for quantized, runs in ((False, self._full), (True, self._quantized)):
            self._use(replaced=quantized)
            for batch, run in enumerate(runs):
                forward = Forward(run)
                follow(forward, route)
                self._keep(quantized, batch, forward.finished())

    def replace(self, layer: str, weight: NumpyArray) -> None:
        if self._full:
            self._use(replaced=False)
            self._spare[layer] = weight
        else:  # nobody needs the original any more
            self._set_weight(layer, weight)

    def inputs(self, route: Sequence[str], layer: str) -> Iterator[tuple[Array | None, Array]]:
        """Compute (X, X_hat) of a layer behind those of a route, batch by batch."""
        for batch, run in enumerate(self._quantized):
            X = None
            if batch < len(self._full):
                self._use(replaced=False)
                X = input_at(Forward(self._full[batch]), route, layer)
            self._use(replaced=True)
            yield X, input_at(Forward(run), route, layer)

    def _site_layers(self) -> list[list[str]]:
        """Group the layers that read one input, in execution order, by the pass of one batch."""
        forward = Forward(self._quantized[0])
        found: list[list[str]] = []
        last = None
        forward.resume()
        while forward.stop is not None:
            if last is not None and forward.stop.input is last:
                found[-1].append(forward.stop.layer)
            else:
                found.append([forward.stop.layer])
            last = forward.stop.input
            forward.resume()
        return found

    def _use(self, *, replaced: bool) -> None:
        """Let the solved layers compute with their new weights, or with the original ones."""
        if replaced != self._replaced:
            self._spare = {
                layer: self._set_weight(layer, weight) for layer, weight in self._spare.items()
            }
            self._replaced = replaced


class RecomputedSite:
    """The layers that read one input; those that the caller leaves unsolved keep their weights."""

    def __init__(
        self, streams: RecomputedStreams, layers: Sequence[str], route: Sequence[str]
    ) -> None:
        self.name = layers[0]
        self._streams, self._layers, self._route = streams, layers, route

    def batches(self) -> Iterator[tuple[Array | None, Array]]:
        """Compute (X, X_hat) per batch when asked for.

        X is None where no full-precision stream runs.
        """
        return self._streams.inputs(self._route, self.name)

    def layers(self) -> Iterator[str]:
        return iter(self._layers)

    def replace(self, layer: str, W: NumpyArray) -> None:
        self._streams.replace(layer, W)


def input_at(forward: Forward, route: Sequence[str], layer: str) -> Array:
    """Run a pass up to a layer behind others, and give the input it gets there."""
    follow(forward, route)
    if forward.stop is None or forward.stop.layer != layer:
        raise _another_way(forward, layer)
    found = forward.stop.input
    forward.abandon()
    return found


def follow(forward: Forward, route: Sequence[str]) -> None:
    """Run a pass through layers in order, up to whatever comes after them.

    Raises: UnsupportedModel when the pass takes another way.
    """
    forward.resume()
    for layer in route:
        if forward.stop is None or forward.stop.layer != layer:
            raise _another_way(forward, layer)
        forward.resume()


def _another_way(forward: Forward, layer: str) -> UnsupportedModel:
    here = f"layer {forward.stop.layer!r}" if forward.stop else "the end of the block"
    return UnsupportedModel(
        f"one batch stands at layer {layer!r} and another at {here}; "
        "edgeq needs models that run the same layers for every batch"
    )
