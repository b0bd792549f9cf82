"""Stack the experts of a mixture as mlx-lm holds them: one tensor for all of a block."""

from collections.abc import Mapping, Sequence

import numpy as np

from edgeq.types import Grid, NumpyArray
from edgeq.words import describe_grid
from edgeq_exporters.common.decoder import Shapes

Stacks = Mapping[str, tuple[str, ...]]
"""Tensors of a file by name, each with the tensors of its experts, in order."""


def why_not_stacks(stacks: Stacks, grids: Shapes) -> str | None:
    """Say which experts lie on several grids, or None: a stack has one number of bits."""
    for name, sources in stacks.items():
        first = grids[sources[0]][1]
        for source in sources:
            grid = grids[source][1]
            if _in_file(grid) == _in_file(first):
                continue
            found = " and ".join(
                "dense" if each is None else describe_grid(each) for each in (first, grid)
            )
            return (
                f"tensor '{source}': mlx-lm holds all experts of a block in '{name}', "
                f"but they are on several grids ({found}); choose one for all of them"
            )
    return None


def _in_file(grid: Grid | None) -> tuple[int, int | None, str] | None:
    """Give what a stack has one of: bits, group size, type of scales; None for dense ones."""
    return None if grid is None else (grid.bits, grid.group_size, grid.scale_dtype)


def stacked(stacks: Stacks, grids: Shapes) -> Shapes:
    """List the tensors of a file in order, with grids, from those of the model.

    Shapes: a stack has (experts * out, in), as its experts' rows lie under another.
    """
    place = {source: name for name, sources in stacks.items() for source in sources}
    stored = {}
    for source, ((rows, *columns), grid) in grids.items():
        name = place.get(source, source)
        if name not in stored:
            stored[name] = ((rows * len(stacks.get(name, (source,))), *columns), grid)
    return stored


def stack_tensors(name: str, parts: Sequence[Mapping[str, NumpyArray]]) -> dict[str, NumpyArray]:
    """Stack what is stored of each expert: P.weight, and P.scales and P.biases if there are any.

    Shapes: (out, ...) -> (experts, out, ...).
    """
    module = name.removesuffix(".weight")
    ends = [key.rpartition(".")[2] for key in parts[0]]
    columns = zip(*(part.values() for part in parts), strict=True)
    return {f"{module}.{end}": np.stack(arrays) for end, arrays in zip(ends, columns, strict=True)}
