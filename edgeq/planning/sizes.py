"""How large a checkpoint and its exports become, found from shapes and grids alone.

What a tensor takes in an export is for its exporter to say.
"""

import math
from typing import Any

from edgeq.checkpoint.tensor_file import stored_parts
from edgeq.dtypes import ITEM_BYTES
from edgeq.format_parts import Exporter
from edgeq.protocols import ModelSource
from edgeq.recipe.layer_grids import Grids
from edgeq.types import Grid


def tensor_bytes(name: str, shape: tuple[int, ...], grid: Grid | None, source: ModelSource) -> int:
    """Count the bytes of a tensor in the checkpoint; a dense one is stored as it is read."""
    if grid is None:
        return math.prod(shape) * item_bytes(source, name)
    parts = stored_parts(name, (shape[0], shape[1]), grid).values()
    return sum(math.prod(of_part) * ITEM_BYTES[dtype] for dtype, of_part in parts)


def item_bytes(source: ModelSource, name: str) -> int:
    """Return the bytes of a number of a tensor as it is read: 4 unless it is stored in 16 bits."""
    return ITEM_BYTES.get(source.stored_as(name), 4)


def export_overhead(exporter: Exporter, source: ModelSource) -> int:
    """Count at most what an export of a model holds beside its weights."""
    return exporter.overhead_bytes(source.record, source.companions())


def format_row(exporter: Exporter, grids: Grids, source: ModelSource) -> dict[str, Any]:
    """Estimate the size of an export, and say what keeps the model out of it and who reads it.

    A tensor on a grid that the format refuses counts as a dense one.
    """
    held = {
        name: (shape, grid if grid and exporter.why_not_grid(shape, grid) is None else None)
        for name, (shape, grid) in grids.items()
        if not source.record.decoder.is_redundant(name)
    }
    items = {name: item_bytes(source, name) for name in grids}
    companions = source.companions()
    refused = exporter.reject_reason(source.record, companions, grids)
    return {
        "format": exporter.format.name,
        "bytes": exporter.planned_bytes(source.record, held, items),
        "read_by": exporter.format.read_by,
        "refused": refused,
        "notes": [] if refused else list(exporter.notes(source.record, companions, grids)),
    }
