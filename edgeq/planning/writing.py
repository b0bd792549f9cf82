"""How a model writes its own calibration text within a limit of memory, and what that takes.

The whole model stays in memory, or only some of its blocks do. The weights of the others are then
read for every token, of all texts that are written together.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from edgeq.calibration.self_text import CACHE_BYTES, bytes_per_token, texts_together
from edgeq.decoder import Decoder
from edgeq.recipe.recipe import Recipe
from edgeq.words import show_size, show_time

FLOAT = 4  # bytes of weights and activations in forward passes
READ_RATE = 10**9  # bytes of float32 a second: what one core converts and a usual disk gives
READING = 2  # copies of the tensor that is read: as it is stored, and in float32


@dataclass(frozen=True, slots=True)
class Writing:
    """A way to write: the blocks that stay in memory, all where resident is None.

    together texts are written at once. The weights of other blocks, read_bytes of them in float32,
    are read readings times.
    """

    resident: int | None
    blocks: int
    together: int
    readings: int = 0
    read_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Estimate the seconds that reading weights takes."""
        return self.readings * self.read_bytes / READ_RATE

    def describe(self) -> str:
        """Say in words how the text is written."""
        texts = f"{self.together} text{'s' * (self.together != 1)} at once"
        if self.resident is None:
            return f"the whole model, {texts}"
        return (
            f"block by block, {texts}; {self.resident} of {self.blocks} blocks stay in memory, the "
            f"weights of the others ({show_size(self.read_bytes)} in float32) are read "
            f"{self.readings} times, once for each token of the texts written at once; at "
            f"{show_size(READ_RATE)} a second that alone takes {show_time(self.seconds)}"
        )


def ways_of_writing(
    decoder: Decoder, recipe: Recipe, written: int
) -> Iterator[tuple[Writing, dict[str, int]]]:
    """List the ways to write so many sequences, the fastest first, and what each has in memory.

    Units: bytes.
    """
    length = recipe.sequence_length
    together = min(written, texts_together(decoder, length))
    blocks = [sum(map(math.prod, layer.tensor_shapes().values())) for layer in decoder.layers]
    whole = sum(map(math.prod, decoder.tensor_shapes().values()))
    # predictions: logits in float32, and three arrays of their size while tokens are drawn
    common = {
        "keys and values": min(CACHE_BYTES, written * length * bytes_per_token(decoder)),
        "predictions": 4 * FLOAT * together * decoder.vocabulary,
    }
    yield Writing(None, len(blocks), together), {"whole model": FLOAT * whole} | common
    outside = whole - sum(blocks)
    tensors = (math.prod(shape) for shape in decoder.tensor_shapes().values())
    reading = READING * max(tensors, default=0)
    groups = math.ceil(written / together)
    for resident in range(len(blocks) - 1, -1, -1):
        others = blocks[resident:]
        parts = {
            "model outside of its blocks": FLOAT * outside,
            "blocks that stay": FLOAT * sum(blocks[:resident]),
            "weights of a block": FLOAT * (max(others) + reading),
        }
        readings = groups * (length - 1)
        bytes_read = FLOAT * sum(others)
        yield Writing(resident, len(blocks), together, readings, bytes_read), parts | common
