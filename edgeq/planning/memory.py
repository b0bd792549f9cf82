"""How much memory a run takes at its worst moment, and which way of running it fits into a limit.

Sizes are counted from the model's description and the recipe; nothing is run. What the process
itself takes is asked of `edgeq.planning.process_memory`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgeq.algorithms.damping import INVERTED_COLUMNS
from edgeq.algorithms.propagation_choice import DAMPINGS
from edgeq.decoder import Decoder, Layer
from edgeq.errors import TooLittleMemory
from edgeq.planning.mixtures import is_of_expert, mixture_of, telling_sites
from edgeq.planning.process_memory import resident_bytes
from edgeq.planning.writing import Writing, ways_of_writing
from edgeq.recipe.recipe import Recipe
from edgeq.streams.backward import HEAD_COPIES, head_tokens
from edgeq.streams.blockwise import CALIBRATION_BATCH, Flow
from edgeq.words import show_size

FLOAT = 4  # bytes of weights and activations in forward passes
ENOUGH = 1.01  # what the process takes by itself differs a little from start to start
ROWS_AT_ONCE = 1024  # temporaries of more rows would outweigh the factors of a site
FEWEST_ROWS = 256  # fewer save little: the squares of a site decide the peak then
EMBEDDING_BYTES = 14  # at most, of each number: three copies in float32, codes and packed codes
WRITING = "the text that the model writes"
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

    rows_at_once is None where all rows of a layer are solved together.
    """

    schedule: Literal["standing", "recomputing"]
    batch_tokens: int
    states_on_disk: bool
    rows_at_once: int | None

    def flow(self, folder: Path) -> Flow:
        """Say how the calibration streams run; hidden states on disk lie in `folder`."""
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
    """The memory that a process takes whatever the model's size, and the precision of its solve.

    Units: bytes; precision is those of one number.
    """

    resident: int
    precision: int


USUAL_RESIDENT = 700 * 10**6  # bytes, with a framework imported: where the system does not say
MODEL_CODE = 170 * 10**6  # bytes: what frameworks import when the first model is built
TEXT_CHARACTER = 100  # bytes of text, tokens and what the tokenizer keeps of them


def measure_process(characters: int, precision: int) -> Process:
    """Measure this process, in which the framework has been imported.

    characters are those that are tokenized at once.

    Where the system does not say how large it is, a usual size is taken.
    """
    resident = resident_bytes() or USUAL_RESIDENT
    return Process(resident + MODEL_CODE + TEXT_CHARACTER * characters, precision)


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


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The way a run goes and the moment at which it takes most.

    least is the smallest limit that some way keeps, in bytes. writing is how the model writes its
    calibration text, None where it writes none.
    """

    way: Way
    peak: Moment
    least: int = 0
    writing: Writing | None = None


def choose_way(
    decoder: Decoder,
    recipe: Recipe,
    process: Process,
    limit: int | None,
    *,
    written: int = 0,
) -> MemoryPlan:
    """Choose the fastest way that stays within a limit; without one, the fastest of all.

    written are the sequences that the model writes itself, to calibrate or to tune on.

    Raises: TooLittleMemory with the smallest limit that would do.
    """
    ways: Sequence[Way] = WAYS
    if recipe.chooses_by_layer:
        ways = [replace(way, rows_at_once=None) for way in WAYS]
    peaks = [(way, peak_moment(decoder, recipe, process, way)) for way in ways]
    writings = moments_of_writing(decoder, recipe, process, written)
    least = max(
        min((peak for _, peak in peaks), key=lambda peak: peak.total),
        min((moment for _, moment in writings), key=lambda moment: moment.total),
        key=lambda moment: moment.total,
    )
    enough = math.ceil(ENOUGH * least.total)
    for way, peak in peaks:
        for writing, moment in writings:
            if limit is None or max(peak.total, moment.total) <= limit:
                worst = max(peak, moment, key=lambda moment: moment.total)
                return MemoryPlan(way, worst, enough, writing)
    assert limit is not None
    raise too_little(limit, least)


def too_little(limit: int, least: Moment) -> TooLittleMemory:
    """Say that no way keeps a limit, and what the way that takes least needs."""
    enough = math.ceil(ENOUGH * least.total)
    return TooLittleMemory(
        f"--max-ram {show_size(limit)}: this run needs at least {show_size(enough, up=True)} "
        f"(while it is at {least.name})",
        limit,
        enough,
    )


def moments_of_writing(
    decoder: Decoder, recipe: Recipe, process: Process, written: int
) -> list[tuple[Writing | None, Moment]]:
    """List the ways to write so many sequences, the fastest first; None alone writes none."""
    if not written:
        return [(None, Moment("", {}))]
    base = {"framework and program": process.resident}
    found = ways_of_writing(decoder, recipe, written)
    return [(writing, Moment(WRITING, base | parts)) for writing, parts in found]


def choose_writing(
    decoder: Decoder, recipe: Recipe, process: Process, limit: int | None, written: int
) -> Writing | None:
    """Choose the fastest way to write so many sequences within a limit; None writes none.

    Raises: TooLittleMemory with the smallest limit that would do.
    """
    found = moments_of_writing(decoder, recipe, process, written)
    for writing, moment in found:
        if limit is None or moment.total <= limit:
            return writing
    assert limit is not None
    raise too_little(limit, min((moment for _, moment in found), key=lambda each: each.total))


def peak_moment(decoder: Decoder, recipe: Recipe, process: Process, way: Way) -> Moment:
    """Find the moment at which a run takes most, once it has its text."""
    return max(moments(decoder, recipe, process, way), key=lambda moment: moment.total)


def moments(decoder: Decoder, recipe: Recipe, process: Process, way: Way) -> Iterator[Moment]:
    """Count what is in memory at each moment of a run that may take most, once it has its text."""
    base = {"framework and program": process.resident}
    # one table is rounded at a time; while calls are recorded, others that run first are there too
    sizes = sorted(map(math.prod, decoder.outer_shapes().values()))
    first = {name: shape for name, shape in decoder.others.items() if name != decoder.head}
    tables = {"embedding": EMBEDDING_BYTES * sizes[-1]}
    if first:
        tables["other tables"] = FLOAT * sum(map(math.prod, first.values()))
    yield Moment(EMBEDDING_MOMENT, base | tables)
    if recipe.needs_calibration:
        if recipe.token_weights != "none":
            yield from weighing_moments(decoder, recipe, way, base)
        for layer in distinct_layers(decoder):
            run = _RunSizes(decoder, layer, recipe, process.precision, way)
            if run.mixture is not None:
                stacking = {"weights of a block": FLOAT * (run.block + STACKED * run.mixture.stack)}
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
    states = 0 if way.states_on_disk else (len(decoder.layers) + 1) * taken
    held = {**base, "hidden states": FLOAT * (states + taken) * decoder.hidden}
    held["weights of tokens"] = sum(map(token_bytes, decoder.layers)) * tokens
    at_once = min(length, head_tokens(decoder.vocabulary))
    head = {
        "embedding and head": FLOAT * sum(map(math.prod, decoder.others.values())),
        "predictions": FLOAT * HEAD_COPIES * at_once * decoder.vocabulary,
    }
    yield Moment("weighing tokens by predictions", held | head)
    for layer in distinct_layers(decoder):
        run = _RunSizes(decoder, layer, recipe, FLOAT, replace(way, batch_tokens=length))
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


class _RunSizes:
    """The sizes that the moments of one run are made of."""

    def __init__(
        self, decoder: Decoder, layer: Layer, recipe: Recipe, precision: int, way: Way
    ) -> None:
        self.recipe = recipe
        self.way = way
        self.precision = precision
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
        # three matrices of the factorisation beside H, then D and what else is kept of moments
        factors = (4 + self.drift + self.paired + self.split + self.correctors) * square
        factors += 4 * INVERTED_COLUMNS * columns * self.precision  # strips of the inverse
        yield f"the factors of {first}", held | {"second moments and factors": factors}
        # H, H + lambda I and U, then D and the factor of its correction, and what else is kept
        kept = (3 + 2 * self.drift + self.paired + self.split + self.correctors) * square
        if standing:
            passing = {"one batch of text": self.transient(), "second moments and factors": kept}
            yield f"running the text past {first}", held | passing
        rows = max(layer.shape[0] for layer in layers)
        rows = min(rows, self.way.rows_at_once or rows)
        sweeps = 2 * bool(self.recipe.sweeps) * square  # H in the order of the sweeps, and scaled
        around = AROUND_OUTLIERS * self.recipe.keeps_columns * square
        annealed = columns * columns * FLOAT * bool(self.recipe.anneal_rounds)
        solve = {
            "second moments and factors": kept + sweeps + annealed + around,
            "weights in the solve": self._temporaries(rows * columns) + self._layer(site),
        }
        yield f"the solve of {first}", held | solve

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
        states = int(self.streams * self.tokens) * self.hidden * FLOAT
        if self.way.schedule == "recomputing" and is_of_expert(self.sites[site]):
            states *= 2  # inputs of the mixture, from which all its layers are reached
        return {
            "weights of a block": FLOAT * (self.block + copies),
            # a byte each, and a scale and an offset of 4 bytes for groups of 32
            "codes of a block": solved + 2 * solved // 8,
            "hidden states": 0 if self.way.states_on_disk else states,
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
        if self.way.states_on_disk:
            wide += self.hidden
        return int(self.streams * self.tokens) * FLOAT * wide

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
        return self.batch * FLOAT * (2 * self.hidden + widest)

    def _temporaries(self, elements: int) -> int:
        """Count the arrays as large as the rows in the solve: an upper bound for every step."""
        arrays = 8  # weight, corrected weight, codes, errors and their temporaries
        if self.recipe.sweeps or self.recipe.scales == "both":
            arrays += 4  # linear terms and what refinements move
        if self.recipe.anneal_rounds:
            arrays += 3  # in float32: annealed variables, their gradient and Adam's two moments
        return arrays * self.precision * elements

    def _layer(self, site: int) -> int:
        """Count a layer as it is read, in the precision of the solve, and dequantized."""
        largest = max(math.prod(layer.shape) for layer in self.sites[site])
        return largest * (2 * FLOAT + self.precision)
