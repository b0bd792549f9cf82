"""Count what is in memory at each moment of a run that may take most, by part.

Sizes are counted from the model's description and the recipe; nothing is run. What the process
itself takes is asked of `edgeq.planning.process_memory`. Which parts lie on a device with memory of
its own is said by `edgeq.planning.device_memory`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from edgeq.algorithms.damping import INVERTED_COLUMNS
from edgeq.algorithms.propagation_choice import DAMPINGS
from edgeq.decoder import Decoder, Layer
from edgeq.planning.mixtures import is_of_expert, mixture_of, telling_sites
from edgeq.planning.process_memory import resident_bytes, trim
from edgeq.protocols import Backend
from edgeq.recipe.recipe import Recipe
from edgeq.streams.backward import HEAD_COPIES, head_tokens
from edgeq.streams.blockwise import Flow

FLOAT = 4  # bytes
EMBEDDING_BYTES = 14  # at most, of each number: three copies in float32, codes and packed codes
EMBEDDING_MOMENT = "the embedding"
SPLIT_MOMENTS = 4  # H and D of what a correction is fitted to and of what it is judged on
STACKED = 2  # copies of a stack, beside itself: its tensors as they are read, and parts of it
GRAPH = 4  # what a window takes with its graph and gradients, for each pass through a block
SCORES = 3  # of attention: themselves, their softmax and a gradient
NUMBERED = 12  # bytes of a token's weight at an expert, with its number
AROUND_OUTLIERS = 4  # matrices of a layer's own factors and target beside those of its site


@dataclass(frozen=True, slots=True)
class Way:
    """A way of running: schedule, tokens of a batch, place of hidden states, rows solved at once.

    rows_at_once is None where all rows of a layer are solved together. Hidden states lie where
    passes run, unless they lie on disk or, with passes on a device, in the memory of its host.
    """

    schedule: Literal["standing", "recomputing"]
    batch_tokens: int
    states_on_disk: bool
    rows_at_once: int | None
    states_on_host: bool = False

    @property
    def states_apart(self) -> bool:
        """Say whether hidden states lie elsewhere than where passes run."""
        return self.states_on_disk or self.states_on_host

    def flow(self, folder: Path) -> Flow:
        """Say how the calibration streams run; hidden states on disk lie in `folder`."""
        place = folder if self.states_on_disk else None
        return Flow(self.schedule, self.batch_tokens, place, self.states_on_host)


@dataclass(frozen=True, slots=True)
class Process:
    """The memory that a process takes whatever the model's size, and how wide its numbers are.

    together is how many numbers of a layer are worked on at once, or of layers of one input.

    Units: bytes; those of one number of the solve (precision), of a factor, and of weights and
    activations in forward passes.
    """

    resident: int
    precision: int
    factor: int = 2 * FLOAT
    passes: int = FLOAT
    together: int = 0


USUAL_RESIDENT = 700 * 10**6  # bytes, with a framework imported: where the system does not say
MODEL_CODE = 170 * 10**6  # bytes: what frameworks import when the first model is built
TEXT_CHARACTER = 100  # bytes of text, tokens and what the tokenizer keeps of them


def measure_process(characters: int, backend: Backend, *, passes: int = FLOAT) -> Process:
    """Measure this process, in which the framework has been imported.

    characters are those that are tokenized at once, passes the bytes of a number in forward passes.

    Where the system does not say how large it is, a usual size is taken.
    """
    trim()  # what reading texts and the tokenizer left free
    resident = resident_bytes() or USUAL_RESIDENT
    one = backend.asarray(np.ones((1, 1)))
    return Process(
        resident + MODEL_CODE + TEXT_CHARACTER * characters,
        one.itemsize,
        backend.cholesky(one).itemsize,
        passes,
        backend.rows_at_once(1),
    )


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of a run and what is in memory then, by part.

    Units: bytes.
    """

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def moments(decoder: Decoder, recipe: Recipe, process: Process, way: Way) -> Iterator[Moment]:
    """Count what is in memory at each moment of a run that may take most, once it has its text."""
    base = {"framework and program": process.resident}
    # one table is rounded at a time; while calls are recorded, others that run first are there too
    sizes = sorted(map(math.prod, decoder.outer_shapes().values()))
    first = {name: shape for name, shape in decoder.others.items() if name != decoder.head}
    tables = {"embedding": EMBEDDING_BYTES * sizes[-1]}
    if first:
        tables["other tables"] = process.passes * sum(map(math.prod, first.values()))
    yield Moment(EMBEDDING_MOMENT, base | tables)
    if recipe.needs_calibration:
        if recipe.token_weights != "none":
            yield from weighing_moments(decoder, recipe, way, base)
        for layer in distinct_layers(decoder):
            run = RunSizes(decoder, layer, recipe, process, way)
            if run.mixture is not None:
                weights = process.passes * (run.block + STACKED * run.mixture.stack)
                stacking = {"weights of a block": weights}
                yield Moment("stacking the experts of a block", base | stacking)
            for site in telling_sites(layer.sites):
                for name, parts in run.site_moments(site):
                    yield Moment(name, base | parts)


def distinct_layers(decoder: Decoder) -> list[Layer]:
    """List the kinds of blocks of a model: those whose tensors and attention differ."""
    found: dict[str, Layer] = {}
    for layer in decoder.layers:
        found.setdefault(repr((layer.tensor_shapes(), layer.attention)), layer)
    return list(found.values())


def weighing_moments(
    decoder: Decoder, recipe: Recipe, way: Way, base: Mapping[str, int]
) -> Iterator[Moment]:
    """Count what is in memory while a model runs backward, of which no window is with another.

    Hidden states are those of as many tokens as are taken back at once, before every block.
    """
    length = recipe.sequence_length
    tokens = recipe.samples * length
    taken = min(tokens, max(length, way.batch_tokens // length * length))
    states = 0 if way.states_apart else (len(decoder.layers) + 1) * taken
    held = {**base, "hidden states": FLOAT * (states + taken) * decoder.hidden}
    held["weights of tokens"] = sum(map(token_bytes, decoder.layers)) * tokens
    at_once = min(length, head_tokens(decoder.vocabulary))
    head = {
        "embedding and head": FLOAT * sum(map(math.prod, decoder.others.values())),
        "predictions": FLOAT * HEAD_COPIES * at_once * decoder.vocabulary,
    }
    yield Moment("weighing tokens by predictions", held | head)
    for layer in distinct_layers(decoder):
        run = RunSizes(decoder, layer, recipe, Process(0, FLOAT), replace(way, batch_tokens=length))
        heads = layer.attention.heads if layer.attention else 0
        graph = GRAPH * run.transient() + SCORES * FLOAT * heads * length**2
        parts = {"weights of a block": FLOAT * run.block, "one window and its graph": graph}
        yield Moment("weighing tokens by gradients", held | parts)


def token_bytes(layer: Layer) -> int:
    """Count what is kept of a calibration token's weights at the sites of a block.

    Those of experts are numbered and lie with the tokens that reach them.
    """
    mixture = mixture_of(layer)
    share = 1.0 if mixture is None else mixture.share
    dense = sum(not is_of_expert(site) for site in layer.sites)
    return math.ceil(FLOAT * dense + NUMBERED * share * (len(layer.sites) - dense))


class RunSizes:
    """The sizes that the moments of one run are made of."""

    def __init__(
        self, decoder: Decoder, layer: Layer, recipe: Recipe, process: Process, way: Way
    ) -> None:
        self.recipe = recipe
        self.way = way
        self.precision = process.precision
        self.factor = process.factor
        self.passes = process.passes
        self.together = process.together
        self.sites = layer.sites
        self.hidden = decoder.hidden
        # a block whose attention or feed-forward part is not described is as wide as its layers
        widest = max((max(linear.shape) for linear in layer.linears), default=self.hidden)
        self.inner = layer.mlp.inner if layer.mlp else widest
        self.queries = self.keys = widest
        if layer.attention:
            self.queries = layer.attention.heads * layer.attention.head_size
            self.keys = layer.attention.key_heads * layer.attention.head_size
        self.block = sum(map(math.prod, layer.tensor_shapes().values()))
        self.mixture = mixture_of(layer)
        self.drift = int(recipe.needs_drift)
        self.streams = 1 + (recipe.propagation_share if recipe.needs_drift else 0.0)
        self.paired = int(recipe.needs_drift and recipe.propagation_share < 1)
        self.split = SPLIT_MOMENTS * recipe.chooses_propagation
        self.correctors = len(DAMPINGS) * recipe.chooses_propagation
        self.tokens = recipe.samples * recipe.sequence_length
        windows = max(1, way.batch_tokens // recipe.sequence_length)
        self.batch = min(self.tokens, windows * recipe.sequence_length)

    def site_moments(self, site: int) -> Iterator[tuple[str, dict[str, int]]]:
        """Count what is in memory while a site is worked on, by moment and part."""
        layers = self.sites[site]
        first = layers[0].name
        columns = layers[0].shape[1]
        square = columns * columns * self.precision
        held = self._common(site) | {"text held at this layer": self._standing(site)}
        held |= self._to_lend(site)
        standing = self.way.schedule == "standing"
        yield f"the statistics of {first}", held | self._statistics(columns)
        yield f"the factors of {first}", held | self._factors(columns)
        # H, H + lambda I and U, then D and what else is kept of moments, and factors of corrections
        kept = (3 + self.drift + self.paired + self.split) * square
        kept += (self.drift + self.correctors) * columns * columns * self.factor
        if standing:
            passing = {"one batch of text": self.transient(), "second moments and factors": kept}
            yield f"running the text past {first}", held | passing
        # layers of one input may be solved as one
        stacked = min(sum(layer.shape[0] for layer in layers), self.together // columns)
        solved = max(stacked, *(layer.shape[0] for layer in layers), 0)
        rows = min(solved, self.way.rows_at_once or solved)
        sweeps = 2 * bool(self.recipe.sweeps) * square  # H in the order of the sweeps, and scaled
        around = AROUND_OUTLIERS * self.recipe.keeps_columns * square
        annealed = columns * columns * FLOAT * bool(self.recipe.anneal_rounds)
        widened = self._widened(columns) if self.drift else 0  # D, in the correction
        solve = {
            "second moments and factors": kept + max(sweeps + annealed + around, widened),
            "weights in the solve": self._temporaries(rows * columns),
            "a layer as it is read and solved": 2 * FLOAT * solved * columns,
            "a layer in the solve": self.precision * solved * columns,
        }
        yield f"the solve of {first}", held | solve

    def _factors(self, columns: int) -> dict[str, int]:
        """Count the moments of a site while they are factored, and the factors."""
        square, wide = columns**2 * self.precision, columns**2 * self.factor
        moments = (1 + self.drift + self.paired + self.split) * square
        # H permuted, in the precision of the solve and in that of factors, and the factor; then U
        # and H + lambda I instead, and the factor of the correction
        first = square + wide + max(self._widened(columns), square)
        second = self.drift * (2 * square + wide + self._widened(columns))
        strips = 4 * INVERTED_COLUMNS * columns * self.factor
        tried = self.correctors * wide
        return {"second moments and factors": moments + tried + max(first + strips, second)}

    def _widened(self, columns: int) -> int:
        """Count a square's copy in the precision of factors, where that is another one."""
        return columns**2 * self.factor if self.factor != self.precision else 0

    def _statistics(self, columns: int) -> dict[str, int]:
        """Count a batch on its way into the moments, and the moments of both streams."""
        square = columns * columns * self.precision
        inputs = self.batch * columns * FLOAT
        # where both streams are compared, rows of each are copied; standing passes hold the rest
        running = 2 * self.drift * inputs
        if self.way.schedule == "recomputing":
            running = self.transient() + (2 + 2 * self.drift) * inputs
        # H and a batch's part of it, then D and those of other tokens; the part first in float32
        moments = (2 + self.drift + self.paired + self.split) * square + columns * columns * FLOAT
        return {"one batch of text": running, "second moments": moments}

    def _common(self, site: int) -> dict[str, int]:
        """Count the block, what its solved layers compute with, their codes, and hidden states."""
        before = [layer for layers in self.sites[: site + 1] for layer in layers]
        solved = sum(math.prod(layer.shape) for layer in before)
        # recomputing, the full-precision stream needs the original weights again
        copies = solved if self.drift and self.way.schedule == "recomputing" else 0
        states = int(self.streams * self.tokens) * self.hidden * self.passes
        if self.way.schedule == "recomputing" and is_of_expert(self.sites[site]):
            states *= 2  # inputs of the mixture, from which all its layers are reached
        return {
            "weights of a block": self.passes * (self.block + copies),
            # a byte each, and a scale and an offset of 4 bytes for groups of 32
            "codes of a block": solved + 2 * solved // 8,
            "hidden states": 0 if self.way.states_apart else states,
            "hidden states on the host": states if self.way.states_on_host else 0,
        }

    def _standing(self, site: int) -> int:
        """Count what passes hold while they stand at a site: what the model's own code keeps."""
        if self.way.schedule == "recomputing":
            return 0
        # numbers a token at each site of a block: inputs of attention, of its output, of all other
        # layers
        widths = (self.hidden, self.hidden + 2 * self.queries + 2 * self.keys)
        wide: int = widths[site] if site < len(widths) else 2 * self.hidden + self.inner
        if self.mixture is not None and is_of_expert(self.sites[site]):
            wide = self.mixture.token
        if self.way.states_apart:
            wide += self.hidden
        return int(self.streams * self.tokens) * self.passes * wide

    def _to_lend(self, site: int) -> dict[str, int]:
        """Count the moments of all tokens that are kept for experts that few tokens reach."""
        if self.mixture is None or not is_of_expert(self.sites[site]):
            return {}
        # H and D, and H of other tokens, or both of the two parts of a split
        kinds = 1 + self.drift + self.paired + self.split // 2
        squares = self.mixture.hidden**2 + self.mixture.inner**2
        return {"moments to lend": kinds * squares * self.precision}

    def transient(self) -> int:
        """Count what one batch takes on its way through a block, at its widest place."""
        # gate, up and their product; or queries, keys and values with their rotated copies
        widest: int = max(3 * self.inner, 4 * self.queries + 4 * self.keys)
        if self.mixture is not None:
            widest = max(widest, self.mixture.token)
        return self.batch * self.passes * (2 * self.hidden + widest)

    def _temporaries(self, elements: int) -> int:
        """Count the arrays as large as the rows in the solve: an upper bound for every step."""
        arrays = 8  # weight, corrected weight, codes, errors and their temporaries
        if self.recipe.sweeps or self.recipe.scales == "both":
            arrays += 4  # linear terms and what refinements move
        if self.recipe.anneal_rounds:
            arrays += 3  # in float32: annealed variables, their gradient and Adam's two moments
        return arrays * self.precision * elements
