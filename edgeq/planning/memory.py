"""Which way of running fits into the memory that there is, or that a run may take.

What is in memory at each moment of a way is counted in `edgeq.planning.moments`, and where it lies
in `edgeq.planning.device_memory`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from edgeq.decoder import Decoder
from edgeq.errors import TooLittleMemory
from edgeq.planning.device_memory import DEVICE_WAYS, Device, Load, divided, with_transfers
from edgeq.planning.moments import Moment, Process, Way, moments
from edgeq.planning.writing import Writing, ways_of_writing
from edgeq.recipe.recipe import Recipe
from edgeq.streams.blockwise import CALIBRATION_BATCH
from edgeq.words import show_size

Choice = TypeVar("Choice")
Loads = Sequence[tuple[Choice, Load]]
ENOUGH = 1.01  # what the process takes by itself differs a little from start to start
ROWS_AT_ONCE = 1024  # temporaries of more rows would outweigh the factors of a site
FEWEST_ROWS = 256  # fewer save little: the squares of a site decide the peak then
WRITING = "the text that the model writes"
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
class MemoryPlan:
    """The way a run goes and the moment at which it takes most.

    least is the smallest limit that some way keeps, in bytes. writing is how the model writes its
    calibration text, None where it writes none. on_device is the moment at which most lies on a
    device with memory of its own, device_least the smallest limit on that; None and 0 where there
    is none.
    """

    way: Way
    peak: Moment
    least: int = 0
    writing: Writing | None = None
    device: Device | None = None
    on_device: Moment | None = None
    device_least: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may take: of the machine's memory, and of a device with memory of its own.

    ram is in bytes, None where all may be taken; device is None where there is none.
    """

    ram: int | None = None
    device: Device | None = None

    def holds_host(self, load: Load) -> bool:
        """Say whether what lies in the machine's memory keeps its limit."""
        return self.ram is None or load.host.total <= self.ram

    def holds_device(self, load: Load) -> bool:
        """Say whether what lies on the device keeps its limit."""
        return self.device is None or load.on_device <= self.device.room


def choose_way(
    decoder: Decoder,
    recipe: Recipe,
    process: Process,
    limit: int | None,
    *,
    written: int = 0,
    device: Device | None = None,
) -> MemoryPlan:
    """Choose the fastest way that stays within the limits; without any, the fastest of all.

    limit is that of the machine's memory. Of a device with memory of its own, what is free there
    may be taken, or what its own limit says. written are the sequences that the model writes
    itself, to calibrate or to tune on.

    Raises: TooLittleMemory with the smallest limit that would do.
    """
    ways: Sequence[Way] = WAYS if device is None else DEVICE_WAYS
    if recipe.chooses_by_layer:
        ways = [replace(way, rows_at_once=None) for way in ways]
    limits = Limits(limit, device)
    running = [(way, peak_load(decoder, recipe, process, way, device)) for way in ways]
    writing = loads_of_writing(decoder, recipe, process, written, device)
    way, load = fastest(running, limits)
    kept, to_write = fastest(writing, limits)
    least = largest(smallest_on_host(each, limits) for each in (running, writing))
    plan = MemoryPlan(way, largest((load.host, to_write.host)), enough(least), kept)
    if device is None:
        return plan
    assert load.device is not None and to_write.device is not None
    least = largest(smallest_on_device(each, limits) for each in (running, writing))
    return replace(
        plan,
        device=device,
        on_device=largest((load.device, to_write.device)),
        device_least=enough(least),
    )


def fastest(loads: Loads[Choice], limits: Limits, what: str = "this run") -> tuple[Choice, Load]:
    """Choose the first of several ways that keeps the limits. what is named where none does.

    Raises: TooLittleMemory with the smallest limit that would do.
    """
    if limits.device is not None and not any(limits.holds_device(load) for _, load in loads):
        raise too_little_on_device(limits.device, smallest_on_device(loads, Limits()), what)
    for choice, load in loads:
        if limits.holds_host(load) and limits.holds_device(load):
            return choice, load
    assert limits.ram is not None
    raise too_little(limits.ram, smallest_on_host(loads, limits), what)


def smallest_on_host(loads: Loads[Any], limits: Limits) -> Moment:
    """Find the least that ways take of the machine's memory, of those that the device holds."""
    found = [load.host for _, load in loads if limits.holds_device(load)]
    return min(found, key=lambda moment: moment.total)


def smallest_on_device(loads: Loads[Any], limits: Limits) -> Moment:
    """Find the least that ways take of the device, of those that the machine's memory holds."""
    found = [load.device for _, load in loads if limits.holds_host(load)]
    return min(filter(None, found), key=lambda moment: moment.total)


def largest(found: Iterable[Moment]) -> Moment:
    """Find the moment at which most is in memory."""
    return max(found, key=lambda moment: moment.total)


def enough(least: Moment) -> int:
    """Give the smallest limit that a moment keeps: a little more than was counted."""
    return math.ceil(ENOUGH * least.total)


def too_little(limit: int, least: Moment, what: str) -> TooLittleMemory:
    """Say that no way keeps a limit, and what the way that takes least needs."""
    needed = enough(least)
    return TooLittleMemory(
        f"--max-ram {show_size(limit)}: {what} needs at least {show_size(needed, up=True)} "
        f"(while it is at {least.name})",
        limit,
        needed,
    )


def too_little_on_device(device: Device, least: Moment, what: str) -> TooLittleMemory:
    """Say that no way keeps the limit of a device, and what the way that takes least needs."""
    needed = enough(least)
    limit = f"--max-vram {show_size(device.room)}"
    if device.limit is None or device.limit > device.free:
        limit = f"of the device's {show_size(device.total)} {show_size(device.free)} are free"
    return TooLittleMemory(
        f"{limit}: {what} needs at least {show_size(needed, up=True)} there "
        f"(while it is at {least.name})",
        device.room,
        needed,
        option="--max-vram" if needed <= device.free else "",
    )


def loads_of_writing(
    decoder: Decoder, recipe: Recipe, process: Process, written: int, device: Device | None
) -> list[tuple[Writing | None, Load]]:
    """List the ways to write so many sequences, the fastest first; None alone writes none."""
    if not written:
        nothing = Moment("", {})
        return [(None, Load(nothing, None if device is None else nothing))]
    base = {"framework and program": process.resident}
    found = ways_of_writing(decoder, recipe, written)
    moments = [(writing, Moment(WRITING, base | parts)) for writing, parts in found]
    return [(each, load_of(moment, decoder, process, device)) for each, moment in moments]


def choose_writing(
    decoder: Decoder,
    recipe: Recipe,
    process: Process,
    limit: int | None,
    written: int,
    device: Device | None = None,
) -> Writing | None:
    """Choose the fastest way to write so many sequences within the limits; None writes none.

    Raises: TooLittleMemory with the smallest limit that would do.
    """
    found = loads_of_writing(decoder, recipe, process, written, device)
    return fastest(found, Limits(limit, device))[0]


def peak_load(
    decoder: Decoder, recipe: Recipe, process: Process, way: Way, device: Device | None
) -> Load:
    """Find the moments at which a run takes most, once it has its text."""
    return heaviest(
        load_of(moment, decoder, process, device)
        for moment in moments(decoder, recipe, process, way)
    )


def heaviest(loads: Iterable[Load]) -> Load:
    """Find the moments at which the host and the device hold most."""
    found = list(loads)
    on_device = [load.device for load in found if load.device is not None]
    return Load(largest(load.host for load in found), largest(on_device) if on_device else None)


def peak_moment(decoder: Decoder, recipe: Recipe, process: Process, way: Way) -> Moment:
    """Find the moment at which a run without a device takes most, once it has its text."""
    return peak_load(decoder, recipe, process, way, None).host


def load_of(moment: Moment, decoder: Decoder, process: Process, device: Device | None) -> Load:
    """Say where what is in memory at a moment lies."""
    if device is None:
        return Load(moment)
    return divided(with_transfers(moment, decoder, process))
