"""Which numbers of a quantized checkpoint are free to be tuned, and how they are moved.

value = stored type's nearest of (start + unit * x), with x in float32 from zero: a step moves every
scale, norm and offset by the same share, and steps smaller than the stored type resolves add up. A
code is the nearest one to its position, which moves by shares of the way to the next code.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from edgeq.checkpoint.reader import Checkpoint
from edgeq.dtypes import CODE_NAMES
from edgeq.tuning.matrices import float_parts
from edgeq.tuning.model import Numbers
from edgeq.types import Array, BlockSpec, NumpyArray, QuantizedLinear, ScaleDtype

FREE = ("scales", "offsets", "norms", "biases")
"""Floats that tuning may move: minima of types of two levels count as offsets."""
CODES = "codes"
"""What it may move beside them, where memory has room for their positions."""
SPREAD = 0.25  # of the way to the next code, within which positions start
MARGIN = 0.49  # of a code beyond the first and the last one, where positions end
KIND_OF_PART = {
    CODES: CODES,
    "scales": "scales",
    "super_scales": "scales",
    "offsets": "offsets",
    "super_minima": "offsets",
}
LEAST_SHARE, MOST_SHARE = -0.9, 9.0  # of a factor's start: it keeps its sign
SMALL_NORM = 0.1  # of the mean of a norm's weights: those near zero move as if they had that size


@dataclass(frozen=True, slots=True)
class FreePart:
    """Numbers of one tensor that are free: where they start, and what a step of 1 is to them.

    dtype is the type that stores them, None for codes, whose largest is max_code. is_factor: they
    never reach zero, nor change their sign.

    Shapes: start that of the part; unit the same, or one that becomes the same.
    """

    tensor: str
    part: str
    start: NumpyArray
    unit: NumpyArray
    dtype: ScaleDtype | None
    is_factor: bool = False
    max_code: int = 0

    @property
    def key(self) -> str:
        """Name the part among all those of a model."""
        return f"{self.tensor}.{self.part}"


class FreeNumbers:
    """A free part on the device of its model."""

    def __init__(self, part: FreePart, numbers: Numbers) -> None:
        self.part, self._numbers = part, numbers
        self._start, self.unit = numbers.put(part.start), numbers.put(part.unit)

    def zeros(self) -> Array:
        """Give an x for each number, all of them 0."""
        return self._numbers.put(np.zeros(self.part.start.shape, np.float32))

    def start(self, seed: int) -> Array:
        """Give an x at which everything is as it was solved.

        Positions start on both sides of their codes: when many of them drift alike, some of their
        codes move before others, and the gradients behind them tell whether that is enough.
        """
        if self.part.dtype is not None:
            return self.zeros()
        rng = np.random.default_rng([seed, zlib.crc32(self.part.key.encode())])
        spread = rng.uniform(-SPREAD, SPREAD, self.part.start.shape)
        return self._numbers.put(spread.astype(np.float32))

    def value(self, x: Array) -> Array:
        """Give the stored numbers at x."""
        position = self._start + self.unit * x
        if self.part.dtype is None:
            return self._numbers.nearest_codes(position, self.part.max_code)
        moved = self._numbers.rounded(position, self.part.dtype)
        if not self.part.is_factor:
            return moved
        return moved + (moved == 0) * self._start  # what would be rounded to zero stays

    def limited(self, x: Array) -> Array:
        """Keep factors away from zero, and positions between the first code and the last."""
        if self.part.dtype is None:
            position = self._start + self.unit * x
            inside = self._numbers.clip(position, -MARGIN, self.part.max_code + MARGIN)
            return x + (inside - position) / self.unit
        if not self.part.is_factor:
            return x
        return self._numbers.clip(x, LEAST_SHARE, MOST_SHARE)


def stored_dtype(code: str) -> ScaleDtype:
    """Give the type that safetensors has a name for."""
    found = next(name for name, stored in CODE_NAMES.items() if stored == code)
    return cast(ScaleDtype, found)


def parts_of_layer(tensor: str, layer: QuantizedLinear) -> Iterator[FreePart]:
    """List the floats of a quantized tensor, and its codes.

    An offset moves in units of its group's scale, and minima of two levels in shares of their own.
    """
    stored: ScaleDtype = "float16" if layer.super_scales is not None else layer.grid.scale_dtype
    for part, start in float_parts(layer).items():
        unit = np.abs(layer.scales) if part == "offsets" else np.abs(start)
        yield FreePart(tensor, part, start, unit, stored, part in ("scales", "super_scales"))
    unit = np.ones((1, 1), np.float32)
    yield FreePart(tensor, CODES, layer.codes, unit, None, max_code=layer.grid.max_code)


def dense_part(checkpoint: Checkpoint, tensor: str, *, is_norm: bool) -> FreePart | None:
    """Give the numbers of a norm or bias; None for a bias of zeros, whose size nothing tells."""
    start = checkpoint.dense(tensor).astype(np.float32)
    added = checkpoint.record.decoder.norm_offset if is_norm else 0.0
    if is_norm:
        sizes = np.abs(start + added)
        unit = np.maximum(sizes, SMALL_NORM * sizes.mean())
    else:
        unit = np.full_like(start, np.sqrt(np.mean(start**2)))
    if not unit.any():
        return None
    dtype = stored_dtype(checkpoint.stored_as(tensor))
    return FreePart(tensor, "values", start, unit, dtype)


def free_of_block(
    checkpoint: Checkpoint,
    block: BlockSpec,
    layers: Mapping[str, QuantizedLinear],
    free: Sequence[str],
) -> Iterator[FreePart]:
    """List what is free in a block whose quantized tensors are given."""
    for tensor, layer in layers.items():
        for part in parts_of_layer(tensor, layer):
            if KIND_OF_PART[part.part] in free:
                yield part
    described = checkpoint.record.decoder.layers[block.index]
    norms = {norm.tensor: True for norm in described.norms}
    biases = [norm.bias for norm in described.norms] + [each.bias for each in described.linears]
    kinds = {**norms, **{name: False for name in biases if name is not None}}
    yield from _dense_parts(checkpoint, block.name, kinds, free)


def free_outside(checkpoint: Checkpoint, free: Sequence[str]) -> Iterator[FreePart]:
    """List what is free behind the blocks: the last norm."""
    norm = checkpoint.record.decoder.final_norm
    if norm:
        bias = norm.removesuffix("weight") + "bias"
        yield from _dense_parts(checkpoint, "", {norm: True, bias: False}, free)


def _dense_parts(
    checkpoint: Checkpoint, prefix: str, kinds: Mapping[str, bool], free: Sequence[str]
) -> Iterator[FreePart]:
    stored = set(checkpoint.tensor_names())
    for name, is_norm in kinds.items():
        tensor = f"{prefix}.{name}" if prefix else name
        wanted = "norms" if is_norm else "biases"
        if wanted not in free or tensor not in stored or checkpoint.grid(tensor) is not None:
            continue
        part = dense_part(checkpoint, tensor, is_norm=is_norm)
        if part is not None:
            yield part
