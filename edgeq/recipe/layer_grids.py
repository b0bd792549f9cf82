"""Grids by tensor: what will be solved on which, checked before any work starts.

What a grid is stands in `edgeq.types`; what a format holds is asked of its exporter.
"""

import fnmatch
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from edgeq.decoder import Decoder
from edgeq.errors import BadInput
from edgeq.format_parts import Exporter
from edgeq.protocols import ModelSource
from edgeq.recipe.layer_types import LayerTypes, embedding_grids, type_of_grid
from edgeq.recipe.recipe import Recipe
from edgeq.types import Grid, LinearSpec
from edgeq.words import describe_grid

Grids = Mapping[str, tuple[tuple[int, ...], Grid | None]]


def plan_grids(source: ModelSource, recipe: Recipe) -> Grids:
    """Give every tensor to be written its shape and grid, None where it stays as it is.

    A tied head is not written.

    Shapes: of a tensor with a grid that of the matrix which is solved, (out, in); of others their
    own.
    Raises: BadInput when an override matches no layer, or sets parts of one tensor apart.
    """
    specs = [linear for block in source.blocks() for linear in block.linears]
    linears = [linear.name for linear in specs]
    for override in recipe.overrides:
        if not fnmatch.filter(linears, override.layers):
            raise BadInput(
                f"pattern {override.layers!r} of --keep-dense or an override matches no layer; "
                f"layers are named like {linears[0]!r}"
            )
    decoder = source.record.decoder
    solved = grids_of_layers(specs, recipe, decoder)
    outer = embedding_grids(recipe, decoder)
    grids: dict[str, tuple[tuple[int, ...], Grid | None]] = {}
    for name in source.tensor_names():
        if decoder.tied_head and name == decoder.head:
            continue
        shape, grid = solved.get(name, (source.shape(name), None))
        grid = outer.get(name, grid)
        grids[name] = (source.shape(name) if grid is None else shape, grid)
    return grids


def grids_of_layers(
    specs: Sequence[LinearSpec], recipe: Recipe, decoder: Decoder | None = None
) -> Grids:
    """Give the tensors of linear layers their grids, and the shapes that they are solved in.

    Mixes need the decoder that the layers are of.

    Raises: BadInput where a recipe sets layers apart that lie in one tensor.
    """
    types = LayerTypes(recipe, decoder)
    first: dict[str, LinearSpec] = {}
    grids: dict[str, tuple[tuple[int, ...], Grid | None]] = {}
    for linear in specs:
        grid = types.grid_of(linear)
        known = first.setdefault(linear.tensor, linear)
        _, other = grids.setdefault(linear.tensor, (linear.matrix_shape, grid))
        if grid != other:
            kinds = ["dense" if each is None else describe_grid(each) for each in (other, grid)]
            raise BadInput(
                f"layers {known.name!r} and {linear.name!r} lie in one tensor, {linear.tensor!r}, "
                f"but are to have {' and '.join(kinds)}; give all layers of it one grid"
            )
        if known is not linear and grid is not None and grid.outlier_columns:
            raise BadInput(
                f"layers {known.name!r} and {linear.name!r} lie in one tensor, {linear.tensor!r}, "
                "which has no place for outlier columns of each; quantize without them"
            )
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


def kept_dense(grids: Grids) -> dict[str, int]:
    """Count the matrices and larger tensors that stay as they are, by name, * for any number."""
    found: Counter[str] = Counter()
    for name, (shape, grid) in grids.items():
        if grid is None and len(shape) > 1:
            found[".".join("*" if part.isdigit() else part for part in name.split("."))] += 1
    return dict(found)


def bits_per_weight(
    stored: Mapping[str, tuple[tuple[int, ...], int]], decoder: Decoder
) -> dict[str, float]:
    """Count bits per weight of the linear layers and of the model, scales and offsets included.

    stored has each tensor's shape and the bytes that it takes.
    """
    totals = {"linear layers": [0, 0], "model": [0, 0]}
    for name, (shape, size) in stored.items():
        is_linear = decoder.linear_of(name) is not None
        for part in ("model", "linear layers") if is_linear else ("model",):
            totals[part][0] += 8 * size
            totals[part][1] += math.prod(shape)
    return {part: bits / weights for part, (bits, weights) in totals.items() if weights}


def grids_by_part(grids: Grids, decoder: Decoder, recipe: Recipe) -> dict[str, dict[str, int]]:
    """Count the matrices of linear layers, embedding and head on each grid.

    Grids are named by their types where the recipe asks for any, else by their bits.
    """

    def called(tensor: str) -> str:
        grid = grids[tensor][1]
        if grid is None:
            return "dense"
        return (type_of_grid(grid) if recipe.names_types else None) or describe_grid(grid)

    outer = {decoder.embedding: "embedding"}
    if not decoder.tied_head:
        outer[decoder.head] = "head"
    found: dict[str, Counter[str]] = {"linear layers": Counter()}
    for linear in decoder.linears():
        if linear.tensor in grids:
            found["linear layers"][called(linear.tensor)] += 1
    for tensor, part in outer.items():
        if tensor in grids:
            found[part] = Counter([called(tensor)])
    return {part: dict(counts.most_common()) for part, counts in found.items()}
