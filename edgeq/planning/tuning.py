"""What tuning takes of memory and time, and which way of it fits into a limit.

Sizes are counted from the model's description, its grids and the recipe; nothing is run.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgeq.decoder import Decoder, Layer
from edgeq.planning.device_memory import Device, Load
from edgeq.planning.memory import (
    Limits,
    MemoryPlan,
    enough,
    fastest,
    heaviest,
    largest,
    load_of,
    smallest_on_device,
    smallest_on_host,
)
from edgeq.planning.moments import Moment, Process, distinct_layers
from edgeq.recipe.layer_grids import Grids
from edgeq.tuning.free import CODES
from edgeq.tuning.loop import MEASUREMENTS
from edgeq.tuning.model import BATCH_TOKENS, PREDICTIONS
from edgeq.types import Grid

FLOAT = 4  # bytes of weights, activations and gradients
PREDICTION_COPIES = 7  # of both models, their exponentials and slope: 6 to 7 were measured
ARRAYS = 7  # for each float: its start and unit, x, the best one, Adam's two means, a gradient
CODE_BYTES = 4 * FLOAT + 2  # for each code that moves: the same, but start and best as bytes
WIDEST_COPIES = 3  # of the largest matrix while a gradient becomes that of its scales


@dataclass(frozen=True, slots=True)
class TuningWay:
    """A way of tuning: codes and graphs stay in memory, or one block at a time is read."""

    resident: bool
    states_on_disk: bool = False


WAYS = (TuningWay(True), TuningWay(True, True), TuningWay(False), TuningWay(False, True))
"""From the fastest to the one that takes least."""


@dataclass(frozen=True, slots=True)
class TuningPlan:
    """The way tuning goes, and the moment at which it takes most.

    least is the smallest limit that some way keeps, in bytes. sizes are what it was counted from.
    on_device and device_least say the same of a device with memory of its own, where there is one.
    """

    way: TuningWay
    peak: Moment
    sizes: "TuningSizes"
    least: int = 0
    on_device: Moment | None = None
    device_least: int = 0

    @property
    def moves_codes(self) -> bool:
        return self.sizes.moved_codes > 0


@dataclass(frozen=True, slots=True)
class TuningSizes:
    """The sizes that tuning is made of.

    numbers are the floats that are free, moved_codes the codes that are. codes and weights are
    those of the blocks that are tuned. windows are drawn in all, held_out of them kept out, and a
    step takes so many.
    """

    decoder: Decoder
    numbers: int
    codes: int
    weights: int
    moved_codes: int
    windows: int
    held_out: int
    step_windows: int
    passes: int
    length: int


def sizes_of(
    decoder: Decoder, grids: Grids, *, windows: int, length: int, tuning: Mapping[str, Any]
) -> TuningSizes:
    """Count what tuning is made of.

    tuning has "passes", "step_windows", the share "held_out", and the kinds of numbers "free".
    """
    linears = {linear.tensor for linear in decoder.linears()}
    inside = {name: grid for name, grid in grids.items() if name in linears}
    quantized = {name: found for name, found in inside.items() if found[1] is not None}
    codes = [math.prod(shape) for shape, _ in quantized.values()]
    return TuningSizes(
        decoder,
        sum(free_numbers(shape, grid) for shape, grid in quantized.values() if grid),
        sum(codes),
        sum(math.prod(shape) for shape, _ in inside.values()),
        sum(codes) if CODES in tuning["free"] else 0,
        windows,
        math.ceil(tuning["held_out"] * windows),
        int(tuning["step_windows"]),
        int(tuning["passes"]),
        length,
    )


def free_numbers(shape: tuple[int, ...], grid: Grid) -> int:
    """Count the scales and free offsets of a matrix; of types of two levels, those of blocks."""
    rows, columns = shape
    kinds = 2 if grid.zeros == "offset" else 1
    blocks = grid.super_blocks is not None
    groups = grid.super_block_count(columns) if blocks else grid.group_count(columns)
    return rows * groups * kinds


def plan_tuning(
    sizes: TuningSizes,
    process: Process,
    limit: int | None,
    room: int | None = None,
    device: Device | None = None,
) -> TuningPlan:
    """Choose the fastest way that stays within the limits; without one, within the room there is.

    Where nothing stays within that room, it is the way that takes least. A device with memory of
    its own has a limit in any case.

    Units: bytes.
    Raises: TooLittleMemory with the smallest limit that would do.
    """
    loads = [(way, peak_of(sizes, process, way, device)) for way in WAYS]
    limits = Limits(limit, device)
    if limit is None:
        roomy = Limits(room, device)
        fitting = [pair for pair in loads if roomy.holds_host(pair[1])]
        least_first = sorted(loads, key=lambda pair: pair[1].host.total)
        loads = [pair for pair in fitting if roomy.holds_device(pair[1])] or least_first
    way, load = fastest(loads, limits, "tuning")
    ways = [(way, peak_of(sizes, process, way, device)) for way in WAYS]
    least = enough(smallest_on_host(ways, limits))
    plan = TuningPlan(way, load.host, sizes, least)
    if load.device is None:
        return plan
    least = enough(smallest_on_device(ways, limits))
    return replace(plan, on_device=load.device, device_least=least)


def with_tuning(memory: MemoryPlan, plan: TuningPlan) -> MemoryPlan:
    """Give the plan of a run that also tunes, by whichever of both takes more."""
    peak = largest((memory.peak, plan.peak))
    both = replace(memory, peak=peak, least=max(memory.least, plan.least))
    if memory.on_device is None or plan.on_device is None:
        return both
    return replace(
        both,
        on_device=largest((memory.on_device, plan.on_device)),
        device_least=max(memory.device_least, plan.device_least),
    )


def peak_of(
    sizes: TuningSizes, process: Process, way: TuningWay, device: Device | None = None
) -> Load:
    """Find the moments at which tuning takes most."""
    return heaviest(
        load_of(moment, sizes.decoder, process, device) for moment in moments(sizes, process, way)
    )


def moments(sizes: TuningSizes, process: Process, way: TuningWay) -> Iterator[Moment]:
    """Count what is in memory at each moment of tuning that may take most."""
    decoder = sizes.decoder
    layers = distinct_layers(decoder)
    block = max(sum(map(math.prod, layer.tensor_shapes().values())) for layer in layers)
    widest = max(math.prod(linear.shape) for layer in layers for linear in layer.linears)
    tables = FLOAT * sum(map(math.prod, decoder.outer_shapes().values()))
    tokens = sizes.length * sizes.windows
    step = sizes.length * min(sizes.step_windows, sizes.windows - sizes.held_out)
    batch = min(step, max(1, BATCH_TOKENS // sizes.length) * sizes.length)
    state = FLOAT * decoder.hidden
    held = {
        "framework and program": process.resident,
        "scales and what Adam keeps of them": ARRAYS * FLOAT * sizes.numbers,
        "positions of codes and what Adam keeps of them": CODE_BYTES * sizes.moved_codes,
        "the original's hidden states": 0 if way.states_on_disk else tokens * state,
    }
    graph = FLOAT * batch * max(graph_numbers(decoder, layer) for layer in layers)
    copies = PREDICTION_COPIES * FLOAT * min(PREDICTIONS, batch * decoder.vocabulary)
    if way.resident:
        held |= {
            "codes": sizes.codes,
            "embedding and head, of both models": 2 * tables,
            "weights of all blocks": FLOAT * sizes.weights,
            "graphs of a batch": len(decoder.layers) * graph,
        }
        yield Moment("predictions of a batch", held | {"predictions": copies})
        behind = FLOAT * (block + WIDEST_COPIES * widest)
        yield Moment("gradients of a block", held | {"gradients": behind})
        return
    between = (len(decoder.layers) + 1) * step * state
    held |= {
        "hidden states of a step": (0 if way.states_on_disk else between) + step * state,
    }
    yield Moment(
        "predictions of a step",
        held | {"embedding and head, of both models": 2 * tables, "predictions": copies},
    )
    of_block = {
        "codes and weights of a block": block + FLOAT * block,
        "gradients": FLOAT * (block + WIDEST_COPIES * widest),
        "graph of a batch": graph,
    }
    yield Moment("gradients of a block", held | of_block)


def graph_numbers(decoder: Decoder, layer: Layer) -> int:
    """Count the numbers that a block's graph keeps for a token."""
    widths = [linear.shape for linear in layer.linears if not linear.expert]
    return 6 * decoder.hidden + 2 * sum(rows for rows, _ in widths)


def passes_of(sizes: TuningSizes, way: TuningWay) -> float:
    """Count the forward passes of a window's tokens that tuning comes to, over all of them.

    The original runs once. A step runs forward and back, which costs twice as much, and streamed
    once more forward for the graphs.
    """
    steps = 3 if way.resident else 4
    training = sizes.windows - sizes.held_out
    measured = sizes.held_out * (1 + MEASUREMENTS)  # also before the first step
    return sizes.windows + steps * sizes.passes * training + measured


def tuning_seconds(sizes: TuningSizes, way: TuningWay, rates: Mapping[str, float]) -> float:
    """Estimate the seconds of tuning. Units: rates in operations per second."""
    decoder = sizes.decoder
    weights = sum(math.prod(linear.shape) for linear in decoder.linears())
    # both models predict, and the quantized one's predictions go back
    weights += 2 * decoder.hidden * decoder.vocabulary
    operations = 2 * sizes.length * (weights + decoder.hidden * sizes.length)
    return passes_of(sizes, way) * operations / rates["forward"]


def way_words(way: TuningWay) -> str:
    """Say in words in which way tuning fits into its memory."""
    states = "on disk" if way.states_on_disk else "in memory"
    kept = "codes and graphs kept" if way.resident else "a block at a time"
    return f"{kept}, hidden states {states}"
