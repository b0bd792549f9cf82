"""Which layers of a run an importance matrix weighs, and which count all their inputs alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeq.protocols import ModelSource
from edgeq.recipe.layer_grids import Grids
from edgeq.sources.importance import Importance

SHOWN = 3  # names in a note


@dataclass(frozen=True, slots=True)
class WeighedLayers:
    """What an importance matrix was for a run.

    weighed counts the quantized tensors of linear layers that it weighs; alike lists those that it
    has no entry for, whose inputs all count alike. unseen has, by entry, how many experts no token
    reached, whose inputs count alike too. unknown lists entries that the model has no tensor for.
    """

    file: str
    weighed: int
    alike: tuple[str, ...] = ()
    unseen: Mapping[str, int] | None = None
    unknown: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """Say in a line each what weighs the search for scales, and what does not."""
        found = [
            f"no text is calibrated on: rounding to the nearest code, on scales that importance "
            f"matrix {self.file!r} weighs the search for"
        ]
        if self.alike:
            found.append(
                f"{len(self.alike)} tensors have no entry in {self.file!r}, so that all their "
                f"inputs count alike: {listed(self.alike)}"
            )
        if self.unseen:
            found.append(
                f"{sum(self.unseen.values())} experts were reached by no token of {self.file!r}, "
                f"so that all their inputs count alike, in {listed(tuple(self.unseen))}"
            )
        if self.unknown:
            found.append(
                f"{len(self.unknown)} entries of {self.file!r} are of no tensor of this model: "
                f"{listed(self.unknown)}"
            )
        return found


def listed(names: tuple[str, ...]) -> str:
    """Name the first few."""
    more = " ..." if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def weighed_layers(source: ModelSource, grids: Grids, importance: Importance) -> WeighedLayers:
    """Say which quantized tensors of linear layers an importance matrix weighs."""
    tensors = dict.fromkeys(
        linear.tensor
        for block in source.blocks()
        for linear in block.linears
        if grids[linear.tensor][1] is not None
    )
    alike = tuple(name for name in tensors if name not in importance.weights)
    return WeighedLayers(
        importance.name,
        len(tensors) - len(alike),
        alike,
        dict(importance.unseen),
        importance.unknown,
    )


def weighed_from(stored: Any) -> WeighedLayers | None:
    """Read the same from plain data. Raises: TypeError, ValueError."""
    if stored is None:
        return None
    found = WeighedLayers(**stored)
    lists = (found.alike, found.unknown)
    counts = {**(found.unseen or {}), "weighed": found.weighed}
    names = [found.file, *counts, *(name for each in lists for name in each)]
    if not all(isinstance(each, list | tuple) for each in lists) or not all(
        isinstance(name, str) for name in names
    ):
        raise TypeError("an importance matrix is not named by texts")
    if not all(type(count) is int and count >= 0 for count in counts.values()):
        raise ValueError("tensors and experts are counted in whole numbers")
    return WeighedLayers(
        found.file, found.weighed, tuple(found.alike), found.unseen, tuple(found.unknown)
    )
