"""What of a run lies in a device's own memory, apart from that of the machine that it sits in.

The moments are those of `edgeq.planning.moments`: each of their parts lies on the device, on the
host, or on its way between them. Devices that share the machine's memory, as Apple's do, are
counted there alone.
"""

import math
from dataclasses import dataclass
from typing import Literal

from edgeq.decoder import Decoder
from edgeq.planning.moments import FLOAT, Moment, Process, Way, distinct_layers
from edgeq.solving.layer import ROWS_AT_ONCE as TABLE_ROWS
from edgeq.streams.blockwise import CALIBRATION_BATCH

Place = Literal["device", "host", "both"]
PLACES: dict[str, Place] = {
    "framework and program": "host",
    "embedding": "host",
    "rows of a table": "device",
    "other tables": "device",
    "weights of a block": "device",
    "weights on their way": "host",
    "codes of a block": "both",
    "hidden states": "device",
    "hidden states on the host": "host",
    "hidden states on their way": "host",
    "text held at this layer": "device",
    "one batch of text": "device",
    "second moments": "device",
    "moments to lend": "device",
    "second moments and factors": "device",
    "weights in the solve": "device",
    "a layer in the solve": "both",
    "a layer as it is read and solved": "host",
    "weights of tokens": "host",
    "embedding and head": "device",
    "predictions": "device",
    "one window and its graph": "device",
    "whole model": "device",
    "keys and values": "device",
    "model outside of its blocks": "device",
    "blocks that stay": "device",
    "codes": "device",
    "embedding and head, of both models": "device",
    "weights of all blocks": "device",
    "graphs of a batch": "device",
    "graph of a batch": "device",
    "gradients": "device",
    "codes and weights of a block": "device",
    "scales and what Adam keeps of them": "device",
    "positions of codes and what Adam keeps of them": "device",
    "the original's hidden states": "device",
    "hidden states of a step": "device",
}
"""Where each part of a moment lies while passes and solves run on a device."""
LIBRARIES = 300 * 10**6  # bytes: workspaces of products and factorisations
BETWEEN = 0.05  # of what arrays take: an allocator keeps room between those of other sizes
READ_COPIES = 2  # of a tensor on its way: as it is read, and in float32
TABLE_COPIES = 8  # of the rows of a table that are rounded at once: candidates and their codes
DEVICE_ROWS = 4096  # of a layer, solved at once: each share of rows goes through all columns anew
FEW_ROWS, FEWEST_ROWS = 1024, 256
DEVICE_WAYS = (
    Way("standing", CALIBRATION_BATCH, False, None),
    Way("standing", CALIBRATION_BATCH, False, DEVICE_ROWS),
    Way("standing", CALIBRATION_BATCH // 4, False, DEVICE_ROWS),
    Way("recomputing", CALIBRATION_BATCH, False, DEVICE_ROWS),
    Way("recomputing", CALIBRATION_BATCH, False, DEVICE_ROWS, states_on_host=True),
    Way("recomputing", CALIBRATION_BATCH // 4, False, DEVICE_ROWS, states_on_host=True),
    Way("recomputing", CALIBRATION_BATCH // 4, False, FEW_ROWS, states_on_host=True),
    Way("recomputing", CALIBRATION_BATCH // 4, True, FEW_ROWS),
    Way("recomputing", 1, False, FEWEST_ROWS, states_on_host=True),
    Way("recomputing", 1, True, FEWEST_ROWS),
)
"""From the fastest to those that take least, of the device, then of the host."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device's own memory: what is free, what there is, and the limit that a user set.

    Units: bytes.
    """

    free: int
    total: int
    limit: int | None = None

    @property
    def room(self) -> int:
        """Give what a run may take."""
        return self.free if self.limit is None else min(self.free, self.limit)


@dataclass(frozen=True, slots=True)
class Load:
    """What a run takes at its worst moments: of the host, and of a device with its own memory."""

    host: Moment
    device: Moment | None = None

    @property
    def on_device(self) -> int:
        """Count the bytes on the device; none where there is none."""
        return 0 if self.device is None else self.device.total


def with_transfers(moment: Moment, decoder: Decoder, process: Process) -> Moment:
    """Add what only runs on a device have: what is on its way from or to it, and tables there."""
    layers = distinct_layers(decoder)
    block = max((sum(map(math.prod, each.tensor_shapes().values())) for each in layers), default=0)
    tables = decoder.outer_shapes().values()
    largest = max((math.prod(shape) for shape in tables), default=0)
    parts = dict(moment.parts)
    # the next block's while this one is solved
    parts["weights on their way"] = FLOAT * max(block, READ_COPIES * largest // 2)
    if "codes of a block" in parts:  # a copy of them is committed meanwhile
        parts["hidden states on their way"] = parts["hidden states"]
    if "embedding" in parts:
        columns = max((math.prod(shape[1:]) for shape in tables), default=0)
        parts["rows of a table"] = TABLE_COPIES * TABLE_ROWS * columns * process.precision
    return Moment(moment.name, parts)


def divided(moment: Moment) -> Load:
    """Divide what is in memory at a moment between the host and a device."""
    host = {name: size for name, size in moment.parts.items() if PLACES[name] != "device"}
    device = {name: size for name, size in moment.parts.items() if PLACES[name] != "host"}
    room = LIBRARIES + int(BETWEEN * sum(device.values()))
    device["libraries, and room between arrays"] = room
    return Load(Moment(moment.name, host), Moment(moment.name, device))
