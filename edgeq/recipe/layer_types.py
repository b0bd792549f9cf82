"""Types by tensor: what a recipe asks for, and what takes over where a width does not fit."""

from collections import Counter
from collections.abc import Iterator

from edgeq.decoder import Decoder
from edgeq.errors import BadInput
from edgeq.grids.types import GRIDS
from edgeq.recipe.mixes import (
    columns_of,
    embedding_types,
    facts_of,
    fitting_type,
    mixed_type,
    parts_of,
)
from edgeq.recipe.recipe import Recipe
from edgeq.recipe.setting_rules import AUTOMATIC, DENSE_BITS
from edgeq.recipe.type_names import BASES
from edgeq.types import Grid, LinearSpec


class LayerTypes:
    """Chooses the types of a recipe's linear layers, by what each does and how wide it is.

    A recipe that asks for a mix needs the decoder of the layers.

    Raises: UnsupportedModel for a mix where the model's blocks are not described.
    """

    def __init__(self, recipe: Recipe, decoder: Decoder | None = None) -> None:
        self._recipe = recipe
        self._narrow = None if recipe.narrow_type == AUTOMATIC else recipe.narrow_type
        self._mixed: dict[str, str] = {}
        mix = recipe.type
        if mix is not None and mix in BASES and decoder is not None:
            facts, parts = facts_of(decoder), parts_of(decoder)
            self._mixed = {name: mixed_type(mix, part, facts) for name, part in parts.items()}

    def asked(self, linear: LinearSpec) -> str | None:
        """Give the type that is asked for a layer, the width aside; None where bits are."""
        asked = self._recipe.type_of(linear.name)
        if asked is None or asked not in BASES:
            return asked
        return self._mixed.get(linear.name, BASES[asked])

    def given(self, linear: LinearSpec) -> str | None:
        """Give the type of a layer that asks for one; None where its width fits none."""
        asked = self.asked(linear)
        return None if asked is None else fitting_type(asked, linear.shape[1], self._narrow)

    def grid_of(self, linear: LinearSpec) -> Grid | None:
        """Give the grid of a layer; None where it stays dense.

        Raises: BadInput where overrides give a layer both a type and outlier columns.
        """
        if self.asked(linear) is None:
            return self._recipe.grid_of(linear.name)
        if self._recipe.has_columns(linear.name):
            raise BadInput(
                f"layer {linear.name!r} is to have type {self.asked(linear)} and outlier columns, "
                "which no type has; take one of them out of the recipe's overrides"
            )
        return grid_of_type(self.given(linear))


def grid_of_type(name: str | None) -> Grid | None:
    """Give the grid of a type by name; None for none."""
    return None if name is None else GRIDS[name]


def type_of_grid(grid: Grid) -> str | None:
    """Name the type that has a grid; None where none has."""
    return next((name for name, other in GRIDS.items() if other == grid), None)


def embedding_grids(recipe: Recipe, decoder: Decoder) -> dict[str, Grid | None]:
    """Give embedding and head their grids, by tensor; None where they stay dense."""
    tensors = (decoder.embedding, decoder.head)
    chosen = recipe.embedding_type
    if chosen is None:
        return dict.fromkeys(tensors, recipe.embedding_grid)
    if chosen == DENSE_BITS:
        return dict.fromkeys(tensors, None)
    return {
        tensor: grid_of_type(fitting_type(asked, decoder.hidden))
        for tensor, asked in embedding_choice(recipe, decoder).items()
    }


def embedding_choice(recipe: Recipe, decoder: Decoder) -> dict[str, str]:
    """Give the types that are asked for embedding and head, the width aside; none where bits are.

    A tied head has none of its own.
    """
    chosen = recipe.embedding_type
    if chosen is None or isinstance(chosen, int):
        return {}
    if chosen == AUTOMATIC:
        assert recipe.type is not None, "auto without a type is settled when a recipe is made"
        return embedding_types(BASES.get(recipe.type, recipe.type), decoder)
    tensors = (decoder.embedding,) if decoder.tied_head else (decoder.embedding, decoder.head)
    return dict.fromkeys(tensors, str(chosen))


def replaced_types(recipe: Recipe, decoder: Decoder) -> Iterator[str]:
    """Say for how many matrices of which width another type takes over, and which."""
    types = LayerTypes(recipe, decoder)
    layers: Counter[tuple[str, str | None, int]] = Counter()
    for linear in decoder.linears():
        asked, given = types.asked(linear), types.given(linear)
        if asked is not None and asked != given:
            layers[asked, given, linear.shape[1]] += 1
    for (asked, given, columns), count in layers.items():
        layer = "layer" if count == 1 else "layers"
        verb = "lies" if count == 1 else "lie"
        yield f"{count} {layer} of {columns} inputs {_instead(verb, asked, given)}"
    outer = embedding_choice(recipe, decoder)
    for tensor, asked in outer.items():
        given = fitting_type(asked, decoder.hidden)
        if asked != given:
            part = "head" if tensor == decoder.head and len(outer) > 1 else "embedding"
            yield f"the {part} of {decoder.hidden} columns {_instead('lies', asked, given)}"


def _instead(verb: str, asked: str, given: str | None) -> str:
    if given is None:
        kept = "stay" if verb == "lie" else "stays"
        return f"{kept} dense: neither {asked} nor what takes its place holds rows of that width"
    return f"{verb} on {given}: {asked} needs a multiple of {columns_of(asked)}"
