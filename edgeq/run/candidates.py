"""The types that each tensor of a model may have under a budget, and what each takes.

What a format holds, and how many bytes a tensor takes in it, is asked of its exporter.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from edgeq.errors import BadInput
from edgeq.format_parts import Exporter
from edgeq.grids.types import GRIDS
from edgeq.planning.sizes import item_bytes
from edgeq.protocols import ModelSource
from edgeq.recipe.layer_grids import Grids, plan_grids
from edgeq.recipe.recipe import Recipe
from edgeq.types import Grid, LinearSpec

LAYER_TYPES = (
    ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0"),
    ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
)
"""GGUF types of linear layers, the first row where all of it fits: llama.cpp's own for rows of
whole super-blocks, and for others. Ternary types are left out, which no solve makes usable, and
Q2_0, which installed runtimes do not read."""
EMBEDDING_TYPES = (
    ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0"),
    ("Q4_0", "IQ4_NL", "Q5_0", "Q8_0"),
)
"""Of embedding and head, rows as above: the largest matrix of a small model."""
EMBEDDING_BITS = (4, 5, 6, 8)
GROUPS = (32, 64, 128)
"""Of formats without types: sizes that all of them hold."""
CHOSEN = ("bits", "group_size", "zeros", "type")
"""Settings that the budget chooses: a layer that an override gives one of them keeps that."""
EMBEDDING = "embedding and head"


@dataclass(frozen=True, slots=True)
class TypeOption:
    """A type that an item may have: its name, the settings that ask for it, grid and bytes."""

    label: str
    settings: Mapping[str, Any]
    grid: Grid
    size: int


@dataclass(frozen=True, slots=True)
class Item:
    """Tensors that get one type: those of one matrix, of a stack, or that a runtime fuses.

    layers are the linear layers in it, none for embedding and head. patterns name them in recipes.
    """

    name: str
    layers: tuple[LinearSpec, ...]
    tensors: tuple[str, ...]
    patterns: tuple[str, ...]
    options: tuple[TypeOption, ...]


@dataclass(frozen=True, slots=True)
class Container:
    """The formats that hold the model: its types are those that all of them hold."""

    source: ModelSource
    exporters: tuple[Exporter, ...]
    _known: dict[Any, int] = field(default_factory=dict, compare=False)

    def bytes_of(self, grids: Grids) -> int:
        """Count the weights of some tensors, in the format that takes most."""
        items = {name: item_bytes(self.source, name) for name in grids}
        record = self.source.record
        kept = {name: of for name, of in grids.items() if not record.decoder.is_redundant(name)}
        return max(each.planned_bytes(record, kept, items) for each in self.exporters)

    def size_of(self, grids: Grids) -> int:
        """Count what some quantized tensors add to a file, whatever else is in it.

        Blocks are alike: tensors of one place in them are counted once.
        """
        key = tuple((re.sub(r"\d+", "*", name), *of) for name, of in grids.items())
        if () not in self._known:
            self._known[()] = self.bytes_of({})
        if key not in self._known:
            self._known[key] = self.bytes_of(grids) - self._known[()]
        return self._known[key]

    def why_not(self, shape: tuple[int, ...], grid: Grid) -> str | None:
        """Say what keeps a grid out of one of the formats; None where all hold it."""
        reasons = (each.why_not_grid(shape, grid) for each in self.exporters)
        return next((reason for reason in reasons if reason is not None), None)


def find_items(recipe: Recipe, container: Container) -> list[Item]:
    """List everything that has a choice of types, in execution order.

    Layers for which a recipe states bits or a type are not among them.

    Raises: BadInput where nothing has a choice.
    """
    source = container.source
    grids = plan_grids(source, recipe)
    items = []
    known: dict[tuple[str, ...], bool] = {}  # blocks are alike: each pair of names is tried once
    for block in source.blocks():
        parts: dict[str, list[LinearSpec]] = {}
        for linear in block.linears:
            if not states_type(recipe, linear.name) and grids[linear.tensor][1] is not None:
                parts.setdefault(part_of(linear), []).append(linear)
        for together in joined(list(parts.values()), container, grids, known):
            item = layer_item(together, container, recipe)
            if item is not None:
                items.append(item)
    if not items:
        raise BadInput("a budget needs layers whose type it may choose, and the recipe states all")
    outer = embedding_item(container, recipe, grids)
    return items if outer is None else [outer, *items]


def states_type(recipe: Recipe, layer: str) -> bool:
    """Say whether an override states what a layer is stored in."""
    return any(
        fnmatchcase(layer, item.layers) and any(name in item.settings for name in CHOSEN)
        for item in recipe.overrides
    )


def part_of(linear: LinearSpec) -> str:
    """Name what must have one type whatever the format: a matrix, or a layer of all experts."""
    return linear.tensor if linear.expert is None else pattern_of(linear)


def pattern_of(linear: LinearSpec) -> str:
    """Name a layer as overrides do, a layer of an expert together with those of the others."""
    if linear.expert is None:
        return linear.name
    parts = linear.name.split(".")
    # the number of the expert is the last one
    place = max(i for i, part in enumerate(parts) if part == str(linear.expert))
    return ".".join((*parts[:place], "*", *parts[place + 1 :]))


def joined(
    parts: list[list[LinearSpec]],
    container: Container,
    grids: Grids,
    known: dict[tuple[str, ...], bool],
) -> Iterator[list[LinearSpec]]:
    """Join neighbours of one input that a format wants on one grid: apart, it refuses them."""
    decoder = container.source.record.decoder
    inputs = {
        linear.inside(decoder.block_name(index)).name: (index, number)
        for index, layer in enumerate(decoder.layers)
        for number, site in enumerate(layer.sites)
        for linear in site
    }
    together: list[list[LinearSpec]] = []
    for part in parts:
        pair = [*together[-1], *part] if together else []
        if len({inputs[linear.name] for linear in pair if linear.expert is None}) > 1:
            pair = []
        key = tuple(re.sub(r"\d+", "*", linear.name) for linear in pair)
        if pair and key not in known:
            known[key] = must_agree(parts, part, container, grids)
        if pair and known[key]:
            together[-1] += part
        else:
            together.append(list(part))
    yield from together


def must_agree(
    block: Sequence[Sequence[LinearSpec]],
    part: Sequence[LinearSpec],
    container: Container,
    grids: Grids,
) -> bool:
    """Say whether a format refuses a block just because one part of it lies on another grid."""
    record, companions = container.source.record, container.source.companions()
    everything = [linear for each in block for linear in each]
    held = [option.grid for option in types_for(everything, container)]
    if len(held) < 2:
        return False
    alike = {**grids, **{each.tensor: (each.matrix_shape, held[0]) for each in everything}}
    apart = {**alike, **{each.tensor: (each.matrix_shape, held[1]) for each in part}}
    return any(
        exporter.reject_reason(record, companions, apart) is not None
        and exporter.reject_reason(record, companions, alike) is None
        for exporter in container.exporters
    )


def layer_item(linears: Sequence[LinearSpec], container: Container, recipe: Recipe) -> Item | None:
    """Make the item of layers that get one type; None where no type fits them."""
    tensors = tuple(dict.fromkeys(linear.tensor for linear in linears))
    shapes = {linear.tensor: linear.matrix_shape for linear in linears}
    options = []
    for option in types_for(linears, container, recipe):
        size = container.size_of({name: (shapes[name], option.grid) for name in tensors})
        options.append(TypeOption(option.label, option.settings, option.grid, size))
    patterns = tuple(dict.fromkeys(map(pattern_of, linears)))
    if not options:
        return None
    return Item(patterns[0], tuple(linears), tensors, patterns, tuple(options))


def types_for(
    linears: Sequence[LinearSpec], container: Container, recipe: Recipe | None = None
) -> list[TypeOption]:
    """List the types that all formats hold for all of some layers, without their sizes."""
    recipe = recipe or Recipe()
    shapes = {linear.matrix_shape for linear in linears}

    def fits(option: TypeOption) -> bool:
        return all(container.why_not(shape, option.grid) is None for shape in shapes)

    if has_types(container):
        rows = [[named(label) for label in row] for row in LAYER_TYPES]
        whole = [row for row in rows if all(map(fits, row))]
        return whole[0] if whole else [option for option in rows[-1] if fits(option)]
    plain = (
        plain_option(bits, size, recipe)
        for bits in range(2, 9)
        for size in GROUPS
        if all(bits in each.format.bits for each in container.exporters)
    )
    return [option for option in plain if fits(option)]


def has_types(container: Container) -> bool:
    """Say whether GGUF's types are what is chosen from: it is the one format, or there is none."""
    return [each.format.name for each in container.exporters] == ["gguf"]


def named(label: str) -> TypeOption:
    """Make the option of one of llama.cpp's types."""
    return TypeOption(label, {"type": label}, GRIDS[label], 0)


def plain_option(bits: int, size: int, recipe: Recipe) -> TypeOption:
    """Make the option of a number of bits and a group size, with the zero points of the recipe."""
    settings = {"bits": bits, "group_size": size}
    grid = Grid(bits, size, recipe.zeros, recipe.scale_dtype)
    return TypeOption(f"{bits} bits, group {size}", settings, grid, 0)


def embedding_item(container: Container, recipe: Recipe, grids: Grids) -> Item | None:
    """Make the item of embedding and head; None where they stay as the recipe has them."""
    decoder = container.source.record.decoder
    tensors = [name for name in (decoder.embedding, decoder.head) if name in grids]
    if any(grids[name][1] is None for name in tensors) or not tensors:
        return None
    if any(each.format.embedding == "dense" for each in container.exporters):
        return None
    if has_types(container):
        rows = [[embedding_type(label) for label in row] for row in EMBEDDING_TYPES]
    else:
        rows = [[embedding_bits(bits, recipe) for bits in EMBEDDING_BITS]]
    shapes = [grids[name][0] for name in tensors]

    def fits(option: TypeOption) -> bool:
        return all(container.why_not(shape, option.grid) is None for shape in shapes)

    whole = [row for row in rows if all(map(fits, row))]
    fitting = whole[0] if whole else [option for option in rows[-1] if fits(option)]
    if not fitting:
        return None
    options = []
    for option in fitting:
        size = container.size_of({name: (grids[name][0], option.grid) for name in tensors})
        options.append(TypeOption(option.label, option.settings, option.grid, size))
    return Item(EMBEDDING, (), tuple(tensors), (), tuple(options))


def embedding_type(label: str) -> TypeOption:
    """Make the option of an embedding of one of llama.cpp's types."""
    return TypeOption(label, {"embedding_type": label}, GRIDS[label], 0)


def embedding_bits(bits: int, recipe: Recipe) -> TypeOption:
    """Make the option of an embedding of a number of bits in groups of 32."""
    grid = Grid(bits, 32, "symmetric", recipe.scale_dtype)
    return TypeOption(f"{bits} bits, group 32", {"embedding_bits": bits}, grid, 0)


def with_options(grids: Grids, items: Sequence[Item], chosen: Sequence[int]) -> Grids:
    """Give all tensors the grids of a choice of one option for each item."""
    result = dict(grids)
    for item, number in zip(items, chosen, strict=True):
        for name in item.tensors:
            shape, _ = grids[name]
            result[name] = (shape, item.options[number].grid)
    return result


def weight_count(source: ModelSource) -> int:
    """Count the weights in a model's file; those that runtimes compute anew are none of them."""
    decoder = source.record.decoder
    names = (name for name in source.tensor_names() if not decoder.is_redundant(name))
    return sum(math.prod(source.shape(name)) for name in names)
