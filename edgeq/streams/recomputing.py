"""Recompute batch by batch (small): at each site both streams run anew from the block's start.

Only one batch is held while a layer is solved; in exchange a block is run about three times. Sites,
inputs and results are those of `edgeq.streams.schedule.Streams`.

The many layers of a mixture of experts are reached from its input, which is kept for all batches:
from the block's start, each of them would take the way through attention anew.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from edgeq.errors import UnsupportedModel
from edgeq.streams.hidden_states import HiddenStates, StatesInMemory
from edgeq.streams.schedule import Forward, Stop
from edgeq.types import Array, NumpyArray, QuantizedLinear, Tokens

Pass = Callable[[], Array]
"""Runs one batch through the block, from its start."""


class RecomputedStreams:
    """Both streams' passes through one block, recomputed for each site and batch.

    The full-precision ones are paired with the quantized ones by batch; there may be fewer, or
    none. set_weight changes what a layer computes with and gives back what it computed with before.
    keep gets each output of the block, by stream (True is the quantized one) and batch. Inputs of
    mixtures are kept in what `store` makes.
    """

    def __init__(
        self,
        full: Sequence[Pass],
        quantized: Sequence[Pass],
        set_weight: Callable[[str, Array], Array],
        keep: Callable[[bool, int, Array], None],
        store: Callable[[], HiddenStates] = StatesInMemory,
    ) -> None:
        self._full, self._quantized = full, quantized
        self._set_weight, self._keep = set_weight, keep
        self._entries = _Entries(store)
        self._tokens: dict[int, Tokens | None] = {}
        # weights of solved layers that the stream now running does not use
        self._spare: dict[str, Array] = {}
        self._replaced = False

    def sites(self) -> Iterator["RecomputedSite"]:
        """Yield one site after the other; when exhausted, both streams are through the block."""
        stops = self._site_stops()
        route = [stop.layer for of_site in stops for stop in of_site]
        for of_site in stops:
            names = [stop.layer for stop in of_site]
            yield RecomputedSite(
                self, names, route[: route.index(names[0])], lends=of_site[0].lends
            )
        for quantized, runs in ((False, self._full), (True, self._quantized)):
            self._use(replaced=quantized)
            for batch, run in enumerate(runs):
                forward = Forward(run)
                follow(forward, route)
                self._keep(quantized, batch, forward.finished())

    def replace(self, layer: str, weight: NumpyArray | QuantizedLinear) -> None:
        if self._full:
            self._use(replaced=False)
            self._spare[layer] = weight
        else:  # nobody needs the original any more
            self._set_weight(layer, weight)

    def inputs(self, route: Sequence[str], layer: str) -> Iterator[tuple[Array | None, Array]]:
        """Compute (X, X_hat) of a layer behind those of a route, batch by batch."""
        for batch in range(len(self._quantized)):
            X = None
            if batch < len(self._full):
                X = self._stop_at(False, batch, route, layer).input
            stop = self._stop_at(True, batch, route, layer)
            self._tokens[batch] = stop.tokens
            yield X, stop.input

    def tokens(self, batch: int) -> Tokens | None:
        """Say which tokens the rows are that `inputs` gave of a batch."""
        return self._tokens[batch]

    def _stop_at(self, quantized: bool, batch: int, route: Sequence[str], layer: str) -> Stop:
        """Run one batch of a stream anew up to a layer, from as near to it as can be."""
        self._use(replaced=quantized)
        entry = self._entries.find(quantized, batch, layer)
        if entry is not None:
            way, run = entry
            return stop_at(Forward(run), way, layer)
        runs = self._quantized if quantized else self._full
        stop = stop_at(Forward(runs[batch]), route, layer)
        self._entries.keep(quantized, batch, stop)
        return stop

    def _site_stops(self) -> list[list[Stop]]:
        """Group the stops that have one input, in execution order, by the pass of one batch."""
        forward = Forward(self._quantized[0])
        found: list[list[Stop]] = []
        last = None
        forward.resume()
        while forward.stop is not None:
            if last is not None and forward.stop.input is last:
                found[-1].append(replace(forward.stop, input=None))
            else:
                found.append([replace(forward.stop, input=None)])
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


class _Entries:
    """The inputs of mixtures that passes came to, from which layers behind are reached."""

    def __init__(self, store: Callable[[], HiddenStates]) -> None:
        self._store = store
        self._states: dict[tuple[str, bool], HiddenStates] = {}
        self._stops: dict[tuple[str, bool], list[Stop]] = {}

    def keep(self, quantized: bool, batch: int, stop: Stop) -> None:
        """Keep the input of a stop that leads to others; batches come in order."""
        if stop.enter is None:
            return
        key = (stop.layer, quantized)
        states = self._states.setdefault(key, self._store())
        stops = self._stops.setdefault(key, [])
        if batch == len(states):
            states.append(stop.input)
            stops.append(replace(stop, input=None))

    def find(
        self, quantized: bool, batch: int, layer: str
    ) -> tuple[Sequence[str], Callable[[], object]] | None:
        """Find the way to a layer, and the pass that takes it, from an input that was kept."""
        for key, stops in self._stops.items():
            if key[1] is not quantized or batch >= len(stops):
                continue
            stop = stops[batch]
            if layer in stop.ways and stop.enter is not None:
                run = partial(_enter, stop.enter, self._states[key], batch, layer)
                return stop.ways[layer], run
        return None


def _enter(
    enter: Callable[[Array, str], object], states: HiddenStates, batch: int, layer: str
) -> object:
    return enter(states.read(batch), layer)


class RecomputedSite:
    """The layers that read one input; those that the caller leaves unsolved keep their weights."""

    def __init__(
        self,
        streams: RecomputedStreams,
        layers: Sequence[str],
        route: Sequence[str],
        *,
        lends: Sequence[str] = (),
    ) -> None:
        self.name, self.lends = layers[0], lends
        self._streams, self._layers, self._route = streams, layers, route

    def batches(self) -> Iterator[tuple[Array | None, Array]]:
        """Compute (X, X_hat) per batch when asked for.

        X is None where no full-precision stream runs.
        """
        return self._streams.inputs(self._route, self.name)

    def tokens(self, batch: int) -> Tokens | None:
        return self._streams.tokens(batch)

    def layers(self) -> Iterator[str]:
        return iter(() if self.lends else self._layers)

    def replace(self, layer: str, W: NumpyArray | QuantizedLinear) -> None:
        self._streams.replace(layer, W)


def stop_at(forward: Forward, route: Sequence[str], layer: str) -> Stop:
    """Run a pass up to a layer behind others, and give up there, with the input it gets."""
    follow(forward, route)
    if forward.stop is None or forward.stop.layer != layer:
        raise _another_way(forward, layer)
    found = forward.stop
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
