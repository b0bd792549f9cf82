"""llama.cpp's types that a layer can be solved on, by name: the grid of each.

Types with codebooks of vectors (IQ3_S, IQ2_XS and the like) are none of them: a column cannot be
rounded by itself there. How the bytes lie is left to the GGUF exporter.
"""

from collections.abc import Mapping
from dataclasses import replace

from edgeq.types import Grid, SuperBlocks, ZeroKind

SUPER_COLUMNS = 256  # of all types with two levels of scales
IQ4_TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
TERNARY = (-1, 0, 1)


def _two_levels(
    bits: int,
    group_size: int,
    scale_limits: tuple[int, int],
    minimum_limits: tuple[int, int] | None = None,
    *,
    type: str,
    table: tuple[int, ...] = (),
) -> Grid:
    blocks = SuperBlocks(SUPER_COLUMNS, scale_limits, minimum_limits)
    zeros: ZeroKind = "symmetric" if minimum_limits is None else "offset"
    return Grid(bits, group_size, zeros, "float32", type=type, table=table, super_blocks=blocks)


SPECIAL: Mapping[str, Grid] = {
    grid.type: grid
    for grid in (
        _two_levels(2, 16, (0, 15), (0, 15), type="Q2_K"),
        _two_levels(3, 16, (-32, 31), type="Q3_K"),
        _two_levels(4, 32, (0, 63), (0, 63), type="Q4_K"),
        _two_levels(5, 32, (0, 63), (0, 63), type="Q5_K"),
        _two_levels(6, 16, (-128, 127), type="Q6_K"),
        _two_levels(4, 32, (-32, 31), type="IQ4_XS", table=IQ4_TABLE),
        Grid(4, 32, type="IQ4_NL", table=IQ4_TABLE),
        Grid(2, 256, type="TQ1_0", table=TERNARY),
        Grid(2, 256, type="TQ2_0", table=TERNARY),
        Grid(2, 64, type="Q2_0"),
    )
}
"""Types that are more than bits, groups and zeros, by name.

Q2_0 is no more than that, but older releases of llama.cpp do not read it. A plain grid of 2 bits
lies in blocks of 4; who wants blocks of 2 asks for the type.
"""

PLAIN: Mapping[str, Grid] = {
    "Q4_0": Grid(4, 32),
    "Q4_1": Grid(4, 32, "offset"),
    "Q5_0": Grid(5, 32),
    "Q5_1": Grid(5, 32, "offset"),
    "Q8_0": Grid(8, 32),
}
"""Types that hold a plain grid, by name."""

GRIDS: Mapping[str, Grid] = {**PLAIN, **SPECIAL}
"""Every type that a layer can be solved on, by name."""


def with_type(plain: Grid, type: str) -> Grid | None:
    """Give the grid of a type of which a file states the rest too; None where the two differ.

    No grid has a type that a plain grid holds.
    """
    if not type:
        return plain
    if type not in SPECIAL:
        return None
    grid = replace(SPECIAL[type], outlier_columns=plain.outlier_columns)
    return grid if stated(grid) == stated(plain) else None


def stated(grid: Grid) -> tuple[object, ...]:
    """Give what files state of a grid beside its type."""
    return (grid.bits, grid.group_size, grid.zeros, grid.scale_dtype)
