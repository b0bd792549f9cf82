"""Measure the importance matrix of a model: mean squares of what its linear layers get.

The original model runs over calibration text block by block, and nothing is solved.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeq.calibration.texts import Calibration
from edgeq.decoder import Decoder
from edgeq.errors import BadInput
from edgeq.files.storage import output_file
from edgeq.protocols import Backend, ModelSource, Site
from edgeq.run.observing import SOLVING, Observer
from edgeq.run.pipeline import Job, start_activations, start_calibration
from edgeq.sources.imatrix import places_of
from edgeq.sources.imatrix_file import Entry, write_entries
from edgeq.types import LinearSpec, NumpyArray

RUNNING: Mapping[str, object] = {
    "exact": True,
    "solver": "rtn",
    "scales": "first",
    "propagation_strength": 0,
}
"""A recipe whose calibration runs one stream, that of the original while nothing is replaced."""


@dataclass(frozen=True, slots=True)
class Measured:
    """An importance matrix as it was measured, and the calibration that it is of.

    nameless lists tensors of linear layers that llama.cpp has no name for.
    """

    entries: Mapping[str, Entry]
    calibration: Calibration
    nameless: Sequence[str]

    def notes(self) -> Iterator[str]:
        """Say what the matrix does not tell."""
        unseen = {name: int((each.counts == 0).sum()) for name, each in self.entries.items()}
        missing = [name for name, count in unseen.items() if count]
        if missing:
            yield (
                f"{sum(unseen.values())} experts saw no token, such as in {missing[0]}; "
                "more --samples help"
            )
        if self.nameless:
            yield (
                f"{len(self.nameless)} tensors have no name in llama.cpp and no entry, such as "
                f"{self.nameless[0]}"
            )


class Sums:
    """Sums of squared inputs by place in the file, filled layer by layer."""

    def __init__(self, decoder: Decoder) -> None:
        self._places = places_of(decoder)
        self._linears = {linear.name: linear for linear in decoder.linears()}
        self._name_of = {
            tensor: name for name, place in self._places.items() for tensor in place.tensors
        }
        self._sums: dict[str, NumpyArray] = {}
        self._counts: dict[str, NumpyArray] = {}
        self.nameless: list[str] = []

    def add(self, layer: str, squares: NumpyArray, tokens: int) -> None:
        """Note what a layer got; layers that lie in one tensor get the same."""
        linear = self._linears[layer]
        name = self._name_of.get(linear.tensor)
        if name is None:
            self.nameless.append(linear.tensor)
            return
        place = self._places[name]
        if name not in self._sums:
            parts = place.parts * len(place.tensors)
            self._sums[name] = np.zeros((parts, place.columns))
            self._counts[name] = np.zeros(parts)
        part = self._part(name, linear)
        self._sums[name][part] = squares
        self._counts[name][part] = tokens

    def _part(self, name: str, linear: LinearSpec) -> int:
        """Find the part of an entry that a layer is: its number among stacked experts."""
        place = self._places[name]
        if place.parts > 1:
            return linear.expert or 0
        return place.tensors.index(linear.tensor)

    def entries(self) -> dict[str, Entry]:
        return {name: Entry(sums, self._counts[name]) for name, sums in self._sums.items()}


def check_names(source: ModelSource) -> None:
    """Refuse a model that llama.cpp has no names for. Raises: UnsupportedModel."""
    places_of(source.record.decoder)


def measure_importance(job: Job, observer: Observer) -> Measured:
    """Run the original model over calibration text, and sum up the squares of all inputs.

    Raises: BadInput where the model overflows on the text; UnsupportedModel for models that
    llama.cpp has no names for.
    """
    sums = Sums(job.source.record.decoder)
    blocks = job.source.blocks()
    observer.begin(len(blocks), 0)
    calibration = start_calibration(job, observer)
    activations = start_activations(job, calibration, observer)
    observer.progressed(SOLVING, 0, len(blocks))
    for block in blocks:
        with job.clock("forward passes"):
            for site in activations.sites(block):
                if not site.lends:  # else no layer runs here
                    squares, tokens = site_squares(site, job.backend)
                    for layer in site.layers():
                        sums.add(layer, squares, tokens)
        observer.finished_block(block.index)
    return Measured(sums.entries(), calibration, sums.nameless)


def site_squares(site: Site, backend: Backend) -> tuple[NumpyArray, int]:
    """Sum up the squares of a site's inputs over all tokens, and count these.

    Shapes: (in,), float64.
    Raises: BadInput for NaN and infinity, naming the site.
    """
    total: NumpyArray | None = None
    tokens = 0
    for _, batch in site.batches():
        x = backend.activations(batch)
        x = x.reshape(-1, x.shape[-1])
        squares = backend.to_numpy((x * x).sum(axis=0)).astype(np.float64)
        total = squares if total is None else total + squares
        tokens += x.shape[0]
    assert total is not None
    if not np.isfinite(total).all():
        raise BadInput(
            f"inputs of layer {site.name!r} hold NaN or infinity, or their squares do; "
            "the model overflows on this text"
        )
    return total, tokens


def write_importance(measured: Measured, path: Path) -> None:
    """Write an importance matrix to a file, whole or not at all. Raises: BadInput."""
    windows = measured.calibration.windows
    with output_file(path) as file:
        write_entries(
            file,
            measured.entries,
            datasets=[str(text["name"]) for text in measured.calibration.texts],
            chunks=windows.shape[0],
            size=windows.shape[1],
        )
