"""Check whether the numbers of a solved layer fit into the type that stores them."""

import numpy as np

from edgeq.dtypes import LARGEST, LARGEST_WEIGHT, SMALLEST
from edgeq.errors import BadInput
from edgeq.types import NumpyArray, QuantizedLinear, ScaleDtype

NEARLY = 0.99  # bounds are rounded to the type after they are applied


def check_size(name: str, largest: float) -> None:
    """Refuse a tensor whose largest weight is so large that its losses overflow in float32.

    Raises: BadInput naming the tensor.
    """
    if largest > LARGEST_WEIGHT:
        raise BadInput(
            f"tensor {name!r} holds a weight of {largest:.3g}, "
            f"and grids hold none beyond {LARGEST_WEIGHT:.3g}; "
            "fetch the checkpoint again, or keep the tensor dense"
        )


def are_held(scales: NumpyArray, offsets: NumpyArray) -> NumpyArray:
    """Say of each row whether its scales and offsets are numbers in the type that stores them.

    Shapes: scales and offsets (out, groups); the result (out,).
    """
    return np.asarray(np.isfinite(scales).all(axis=1) & np.isfinite(offsets).all(axis=1))


def clamped_groups(name: str, weight: NumpyArray, layer: QuantizedLinear) -> int:
    """Count scales that were clamped to the limits of their storage dtype.

    Those of groups whose weights are all zero do not count. Where scales have two levels, it is the
    float of a super-block that is clamped, and all of its groups with weights count.

    Shapes: weight (out, in).
    Raises: BadInput naming the layer when a scale, an offset or an outlier is not finite.
    """
    kind: ScaleDtype = layer.grid.scale_dtype if layer.super_scales is None else "float16"
    if not are_held(layer.scales, layer.offsets).all():
        wider = "" if layer.grid.type else "choose scale_dtype bfloat16 or float32, or "
        raise BadInput(
            f"tensor {name!r}: a scale or offset of its grid exceeds {kind}; {wider}keep it dense"
        )
    if layer.outliers is not None and not np.isfinite(layer.outliers.values).all():
        raise BadInput(
            f"tensor {name!r}: a value of its outlier columns exceeds {kind}; "
            "choose scale_dtype bfloat16 or float32, or --outlier-columns 0"
        )
    sizes = np.abs(_stored_floats(layer))
    at_limit = (sizes <= SMALLEST[kind]) | (sizes >= NEARLY * LARGEST[kind])
    if not at_limit.any():
        return 0
    starts = [low for low, _ in layer.grid.group_bounds(weight.shape[1])]
    sizes_of_weights = np.abs(weight)
    if layer.outliers is not None:
        sizes_of_weights[:, layer.outliers.columns] = 0  # scales need not cover them
    present = np.maximum.reduceat(sizes_of_weights, starts, axis=1) > 0
    return int((at_limit & present).sum())


def _stored_floats(layer: QuantizedLinear) -> NumpyArray:
    """Give the float that the scale of each group is stored by. Shapes: (out, groups)."""
    if layer.super_scales is None:
        return layer.scales
    groups = layer.scales.shape[1] // layer.super_scales.shape[1]
    return np.repeat(layer.super_scales, groups, axis=1)
