"""Grids by tensor: what will be solved on which, checked before any work starts.

What a grid is stands in `edgeq.types`; what a format holds is asked of its exporter.
"""

import fnmatch
import math
from collections.abc import Mapping, Sequence

from edgeq.errors import BadInput
from edgeq.protocols import Exporter, ModelSource
from edgeq.recipe.recipe import Recipe
from edgeq.types import Grid

Grids = Mapping[str, tuple[tuple[int, ...], Grid | None]]


def plan_grids(source: ModelSource, recipe: Recipe) -> Grids:
    """Give every tensor to be written its shape and grid, None where it stays as it is.

    A tied head is not written.

    Raises: BadInput when an override matches no layer.
    """
    specs = [linear for block in source.blocks() for linear in block.linears]
    linears = [linear.name for linear in specs]
    for override in recipe.overrides:
        if not fnmatch.filter(linears, override.layers):
            raise BadInput(
                f"pattern {override.layers!r} of --keep-dense or an override matches no layer; "
                f"layers are named like {linears[0]!r}"
            )
    weights = {linear.tensor: linear.name for linear in specs}
    decoder = source.record.decoder
    grids: dict[str, tuple[tuple[int, ...], Grid | None]] = {}
    for name in source.tensor_names():
        shape = source.shape(name)
        if decoder.tied_head and name == decoder.head:
            continue
        if name in weights:
            grids[name] = (shape, recipe.grid_of(weights[name]))
        else:
            grids[name] = (shape, recipe.embedding_grid if len(shape) == 2 else None)
    return grids


def check_exports(exporters: Sequence[Exporter], source: ModelSource, grids: Grids) -> None:
    """Raise BadInput with the first reason why an export could not be written."""
    for exporter in exporters:
        reason = exporter.reject_reason(source.record, source.companions(), grids)
        if reason is not None:
            raise BadInput(f"format {exporter.format.name!r}: {reason}")


def asymmetric_zeros(exporters: Sequence[Exporter]) -> str:
    """Choose the asymmetric kind of zero point that all exports hold without loss.

    That is free offsets where they can, else whole zero points.

    Raises: BadInput when they have none in common.
    """
    kinds = ("offset", "integer") if exporters else ("integer",)
    formats = [exporter.format for exporter in exporters]
    common = [kind for kind in kinds if all(kind in each.zero_kinds for each in formats)]
    if common:
        return common[0]
    held = []
    for each in formats:
        of_format = " or ".join(kind for kind in kinds if kind in each.zero_kinds)
        held.append(f"{each.name} {of_format or 'none'}")
    raise BadInput(
        "--asymmetric: the exports hold different kinds of zero point without loss "
        f"({', '.join(held)}); leave out --asymmetric, or set zeros = 'integer' in a recipe "
        "to have whole zero points and rounded offsets where a format needs them"
    )


def bits_per_weight(stored: Mapping[str, tuple[tuple[int, ...], int]]) -> dict[str, float]:
    """Count bits per weight of the linear layers and of the model, scales and offsets included.

    stored has each tensor's shape and the bytes that it takes.
    """
    totals = {"linear layers": [0, 0], "model": [0, 0]}
    for name, (shape, size) in stored.items():
        in_block = ".layers." in name and len(shape) == 2
        for part in ("model", "linear layers") if in_block else ("model",):
            totals[part][0] += 8 * size
            totals[part][1] += math.prod(shape)
    return {part: bits / weights for part, (bits, weights) in totals.items() if weights}
