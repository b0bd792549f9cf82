"""Measure how far a container's scales and offsets move the weights."""

from dataclasses import replace

import numpy as np

from edgeq.types import NumpyArray, QuantizedLinear


def largest_difference(layer: QuantizedLinear, scales: NumpyArray, offsets: NumpyArray) -> float:
    """Find how far the weights move, at most, when these scales and offsets replace the layer's.

    Weights are compared before they are rounded. The difference is linear in the code: only the
    smallest and the largest code of each group can attain it.

    Shapes: scales and offsets (out, groups).
    """
    slope = scales.astype(np.float64) - layer.scales
    start = offsets.astype(np.float64) - layer.offsets
    if not slope.any() and not start.any():
        return 0.0
    first_columns = [low for low, _ in layer.grid.group_bounds(layer.codes.shape[1])]
    smallest = np.minimum.reduceat(layer.codes, first_columns, axis=1)
    largest = np.maximum.reduceat(layer.codes, first_columns, axis=1)
    ends = [_levels(codes, layer) for codes in (smallest, largest)]
    return max(float(np.abs(slope * levels + start).max()) for levels in ends)


def _levels(codes: NumpyArray, layer: QuantizedLinear) -> NumpyArray:
    """Give what scales multiply; the levels of a table rise with their codes."""
    return np.array(layer.grid.table)[codes] if layer.grid.table else codes


def as_stored(layer: QuantizedLinear, scales: NumpyArray, offsets: NumpyArray) -> QuantizedLinear:
    """Replace the layer's scales and offsets by those that a file holds."""
    return replace(layer, scales=scales.astype(np.float32), offsets=offsets.astype(np.float32))
