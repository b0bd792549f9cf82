"""How much memory a run takes at its worst moment, and which way of running it fits into a
limit.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgeq.algorithms.damping import INVERTED_COLUMNS
from edgeq.algorithms.propagation_choice import DAMPINGS
from edgeq.calibration.self_text import CACHE_BYTES, bytes_per_token
from edgeq.decoder import Decoder
from edgeq.errors import BadInput
from edgeq.planning.process_memory import resident_bytes
from edgeq.recipe.recipe import Recipe
from edgeq.streams.blockwise import CALIBRATION_BATCH, Flow
from edgeq.words import show_size

FLOAT = 4  # bytes of weights and activations in forward passes
ENOUGH = 1.01  # what the process takes by itself differs a little from start to start
ROWS_AT_ONCE = 1024
FEWEST_ROWS = 256
WRITING = "the text that the model writes"
SPLIT_MOMENTS = 4  # H and D of what a correction is fitted to and of what it is judged on
AROUND_OUTLIERS = 4  # matrices of a layer's own factors and target beside those of its site


@dataclass(frozen=True, slots=True)
class Way:
    """One way of running: the schedule, tokens of a batch, where hidden states lie, rows solved at
    once (None: all).
    """

    schedule: Literal["standing", "recomputing"]
    batch_tokens: int
    states_on_disk: bool
    rows_at_once: int | None

    def flow(self, folder: Path) -> Flow:
        """How the calibration streams run; hidden states on disk lie in `folder`."""
        return Flow(self.schedule, self.batch_tokens, folder if self.states_on_disk else None)


WAYS = (
    Way("standing", CALIBRATION_BATCH, False, None),
    Way("standing", CALIBRATION_BATCH, False, ROWS_AT_ONCE),
    Way("standing", CALIBRATION_BATCH // 4, False, ROWS_AT_ONCE),
    Way("recomputing", CALIBRATION_BATCH, False, ROWS_AT_ONCE),
    Way("recomputing", CALIBRATION_BATCH // 4, False, ROWS_AT_ONCE),
    Way("recomputing", CALIBRATION_BATCH // 4, True, ROWS_AT_ONCE),
    Way("recomputing", 1, True, FEWEST_ROWS),
)
"""From the fastest to the one that takes least; the first is what runs without a limit."""


@dataclass(frozen=True, slots=True)
class Process:
    """What a process takes whatever the model's size, and the bytes of a number that its backend
    solves in.
    """

    resident: int
    precision: int


MODEL_CODE = 170 * 10**6  # bytes: what frameworks import when the first model is built
TEXT_CHARACTER = 100  # bytes of text, tokens and what the tokenizer keeps of them


def measure_process(characters: int, precision: int) -> Process:
    """This process, in which the framework has been imported; where the system does not tell, a
    usual size.
    """
    resident = resident_bytes() or 700 * 10**6
    return Process(resident + MODEL_CODE + TEXT_CHARACTER * characters, precision)


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment of a run and what is in memory then, by part. Units: bytes."""

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How a run goes and the moment at which it takes most."""

    way: Way
    peak: Moment


def choose_way(
    decoder: Decoder,
    recipe: Recipe,
    process: Process,
    limit: int | None,
    *,
    writes_text: bool = False,
) -> MemoryPlan:
    """The fastest way that fits, where the model also writes its calibration text if it
    `writes_text`.

    Raises: BadInput with the smallest limit that would do.
    """
    ways = [replace(way, rows_at_once=None) for way in WAYS] if recipe.chooses_by_layer else WAYS
    plans = [
        MemoryPlan(way, peak_moment(decoder, recipe, process, way, writes_text)) for way in ways
    ]
    if limit is None:
        return plans[0]
    for plan in plans:
        if plan.peak.total <= limit:
            return plan
    least = min(plans, key=lambda plan: plan.peak.total)
    simpler = (
        "choose --quality fast or a smaller model"
        if recipe.needs_drift
        else "choose a smaller model"
    )
    advice = "calibrate on a text file" if least.peak.name == WRITING else simpler
    enough = show_size(ENOUGH * least.peak.total, up=True)
    raise BadInput(
        f"--max-ram {show_size(limit)}: this run needs at least "
        f"{enough} (while it is at {least.peak.name}); give that "
        f"much, or {advice}"
    )


def peak_moment(
    decoder: Decoder, recipe: Recipe, process: Process, way: Way, writes_text: bool = False
) -> Moment:
    return max(moments(decoder, recipe, process, way, writes_text), key=lambda moment: moment.total)


def moments(
    decoder: Decoder, recipe: Recipe, process: Process, way: Way, writes_text: bool
) -> Iterator[Moment]:
    """The moments of a run that may take most."""
    base = {"framework and program": process.resident}
    table = decoder.vocabulary * decoder.hidden
    yield Moment("the embedding", {**base, "embedding": 14 * table})
    if recipe.needs_calibration and writes_text:
        yield Moment(WRITING, base | writing_parts(decoder, recipe))
    if recipe.needs_calibration:
        run = _Run(decoder, recipe, process.precision, way)
        for site in range(len(decoder.layers[0].sites)):
            for name, parts in run.site_moments(site):
                yield Moment(name, base | parts)


def writing_parts(decoder: Decoder, recipe: Recipe) -> dict[str, int]:
    """Count the whole model, keys and values of what is written together, and predictions."""
    text = recipe.samples * recipe.sequence_length * bytes_per_token(decoder)
    return {
        "whole model": FLOAT * sum(map(math.prod, decoder.tensor_shapes().values())),
        "keys and values": min(CACHE_BYTES, text),
        "predictions": 4 * FLOAT * recipe.samples * decoder.vocabulary,
    }


class _Run:
    """The sizes that the moments of one run are made of."""

    def __init__(self, decoder: Decoder, recipe: Recipe, precision: int, way: Way) -> None:
        layer = decoder.layers[0]
        self.recipe, self.way, self.precision = recipe, way, precision
        self.sites, self.hidden, self.inner = layer.sites, decoder.hidden, layer.mlp.inner
        self.queries = layer.attention.heads * layer.attention.head_size
        self.keys = layer.attention.key_heads * layer.attention.head_size
        self.block = sum(map(math.prod, layer.tensor_shapes().values()))
        self.drift = int(recipe.needs_drift)
        self.streams = 1 + (recipe.propagation_share if recipe.needs_drift else 0.0)
        self.paired = int(recipe.needs_drift and recipe.propagation_share < 1)
        self.split = SPLIT_MOMENTS * recipe.chooses_propagation
        self.correctors = len(DAMPINGS) * recipe.chooses_propagation
        self.tokens = recipe.samples * recipe.sequence_length
        self.batch = min(
            self.tokens, max(1, way.batch_tokens // recipe.sequence_length) * recipe.sequence_length
        )

    def site_moments(self, site: int) -> Iterator[tuple[str, dict[str, int]]]:
        layers = self.sites[site]
        first, columns = layers[0].name, layers[0].shape[1]
        square, inputs = columns * columns * self.precision, self.batch * columns * FLOAT
        held = self._common(site) | {"standing passes": self._standing(site)}
        kept = (3 + 2 * self.drift + self.paired + self.split + self.correctors) * square
        standing = self.way.schedule == "standing"
        yield (
            f"the statistics of {first}",
            held
            | {
                "running pass": 2 * self.drift * inputs
                if standing
                else self._transient() + (2 + 2 * self.drift) * inputs,
                "second moments": (2 + self.drift + self.paired + self.split) * square
                + columns * columns * FLOAT,
            },
        )
        factors = (4 + self.drift + self.paired + self.split + self.correctors) * square
        factors += 4 * INVERTED_COLUMNS * columns * self.precision
        yield f"the factors of {first}", held | {"second moments and factors": factors}
        if standing:
            passing = {"running pass": self._transient(), "second moments and factors": kept}
            yield f"the way on from {first}", held | passing
        rows = max(layer.shape[0] for layer in layers)
        rows = min(rows, self.way.rows_at_once or rows)
        sweeps = 2 * bool(self.recipe.sweeps) * square
        around = AROUND_OUTLIERS * self.recipe.keeps_columns * square
        annealed = columns * columns * FLOAT * bool(self.recipe.anneal_rounds)
        yield (
            f"the solve of {first}",
            held
            | {
                "second moments and factors": kept + sweeps + annealed + around,
                "weights in the solve": self._temporaries(rows * columns) + self._layer(site),
            },
        )

    def _common(self, site: int) -> dict[str, int]:
        """The block, what its solved layers compute with, their codes, and hidden states."""
        before = [layer for layers in self.sites[: site + 1] for layer in layers]
        solved = sum(math.prod(layer.shape) for layer in before)
        copies = solved if self.drift and self.way.schedule == "recomputing" else 0
        in_memory = (
            0 if self.way.states_on_disk else int(self.streams * self.tokens) * self.hidden * FLOAT
        )
        return {
            "weights of a block": FLOAT * (self.block + copies),
            "codes of a block": solved + 2 * solved // 8,
            "hidden states": in_memory,
        }

    def _standing(self, site: int) -> int:
        """What passes hold while they stand at a site, by what the model's own code keeps in its
        frames.
        """
        if self.way.schedule == "recomputing":
            return 0
        wide: int = (
            self.hidden,
            self.hidden + 2 * self.queries + 2 * self.keys,
            2 * self.hidden + self.inner,
            2 * self.hidden + self.inner,
        )[site]
        return (
            int(self.streams * self.tokens)
            * FLOAT
            * (wide + (self.hidden if self.way.states_on_disk else 0))
        )

    def _transient(self) -> int:
        """What one batch takes on its way through a block."""
        widest: int = max(3 * self.inner, 4 * self.queries + 4 * self.keys)
        return self.batch * FLOAT * (2 * self.hidden + widest)

    def _temporaries(self, elements: int) -> int:
        arrays = (
            8
            + 4 * bool(self.recipe.sweeps or self.recipe.scales == "both")
            + 3 * bool(self.recipe.anneal_rounds)
        )
        return arrays * self.precision * elements

    def _layer(self, site: int) -> int:
        """A layer as it is read, in the precision of the solve, and dequantized."""
        largest = max(math.prod(layer.shape) for layer in self.sites[site])
        return largest * (2 * FLOAT + self.precision)
