"""How far a container's scales and offsets move the weights."""

from dataclasses import replace

import numpy as np

from edgeq.types import NumpyArray, QuantizedLinear


def largest_difference(layer: QuantizedLinear, scales: NumpyArray, offsets: NumpyArray) -> float:
    """Find the largest absolute difference of weights with these scales and offsets, unrounded.

    The other weights are those of `layer.dequantized()`.

    The difference is linear in the code, so only the smallest and largest code of each group can
    attain it.

    Shapes: scales and offsets (out, groups).
    """
    slope = scales.astype(np.float64) - layer.scales
    start = offsets.astype(np.float64) - layer.offsets
    if not slope.any() and not start.any():
        return 0.0
    first_columns = [low for low, _ in layer.grid.group_bounds(layer.codes.shape[1])]
    ends = (
        extreme.reduceat(layer.codes, first_columns, axis=1) for extreme in (np.minimum, np.maximum)
    )
    return max(float(np.abs(slope * codes + start).max()) for codes in ends)


def as_stored(layer: QuantizedLinear, scales: NumpyArray, offsets: NumpyArray) -> QuantizedLinear:
    """The layer with the scales and offsets that a file holds."""
    return replace(layer, scales=scales.astype(np.float32), offsets=offsets.astype(np.float32))
