"""Note matrices whose codes lie in a file in more bits than they were solved with.

They take the room of the wider codes and have the quality of the narrower ones.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from edgeq.decoder import Decoder, Shape
from edgeq.types import Grid
from edgeq_exporters.common.decoder import Shapes

HeldBits = Callable[[str, Shape, Grid], int | None]
"""Gives the bits that the codes of a tensor on a grid have in a file; None where it has none."""

PLAIN_TYPES = {4: "Q4_0", 5: "Q5_0", 8: "Q8_0"}
"""What a user names instead of bits where a type is asked for."""
SUPER_BLOCK = 256  # columns: rows of other widths get another type than the one named


def widening_notes(
    container: str, decoder: Decoder, grids: Shapes, held: HeldBits, types: Mapping[int, str]
) -> Iterator[str]:
    """Say which matrices are widened, and what to ask for instead.

    container names who stores them. types are the types of a width that it stores as they are.
    """
    linear = {layer.tensor for layer in decoder.linears()}
    counts: Counter[tuple[bool, int, int]] = Counter()
    fitting: Counter[tuple[bool, int, int]] = Counter()
    for name, (shape, grid) in grids.items():
        if grid is None or decoder.is_redundant(name):
            continue
        bits = held(name, shape, grid)
        if bits is not None and bits > grid.bits:
            kind = (name in linear, grid.bits, bits)
            counts[kind] += 1
            fitting[kind] += shape[-1] % SUPER_BLOCK == 0
    typed = any(grid is not None and grid.type for _, grid in grids.values())
    for kind, count in counts.items():
        is_layer, solved, stored = kind
        part = "layer" if is_layer else "matrix"
        what = f"these {count} {'matrices' if part == 'matrix' else 'layers'}"
        what = what if count > 1 else f"one {part}"
        what += "" if is_layer else " of embedding and head"
        option = "" if is_layer else "embedding-"
        named = types.get(solved) if 2 * fitting[kind] > count else None
        advice = [f"--{option}type {named}"] if named else []
        if not typed:
            advice.append(f"--{option}bits {stored}")
        elif container == "GGUF":  # --bits is refused beside a type
            advice.append(f"--{option}type {PLAIN_TYPES[stored]}")
        use = f"; use {' or '.join(advice)}" if advice else ""
        yield (
            f"{container} stores {what} of {solved} bits as {stored} bits: "
            f"same size as {stored} bits, lower quality{use}"
        )
