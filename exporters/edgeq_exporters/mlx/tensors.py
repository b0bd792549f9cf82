"""Make tensors as MLX stores them, and say which grids its affine mode computes."""

import math
from collections.abc import Mapping

import numpy as np

from edgeq.dtypes import NUMPY
from edgeq.errors import BadInput
from edgeq.grids.packing import pack_words
from edgeq.types import Grid, NumpyArray, QuantizedLinear, ScaleDtype
from edgeq_exporters.common.decoder import why_not_outliers, why_not_table
from edgeq_exporters.common.deviation import as_stored
from edgeq_exporters.mlx.format import FORMAT


def why_not_grid(shape: tuple[int, ...], grid: Grid) -> str | None:
    """Say what keeps a quantized tensor out of MLX and what to change, or None.

    Shapes: (out, in).
    """
    if not FORMAT.holds_bits(grid.bits):
        return f"MLX cannot compute with {grid.bits} bits; choose 2, 3, 4, 5, 6 or 8"
    if grid.table or grid.outlier_columns:
        return why_not_table(grid, "MLX") or why_not_outliers(grid, "MLX")
    if grid.group_size is None:
        return "MLX cannot compute with one group per row; choose group_size 32, 64 or 128"
    if not FORMAT.groups.holds(grid.group_size):
        return f"MLX cannot compute with group_size {grid.group_size}; choose 32, 64 or 128"
    in_features = shape[-1]
    if in_features % grid.group_size:
        fitting = [str(size) for size in FORMAT.groups.only if in_features % size == 0]
        advice = f"choose {' or '.join(fitting)}" if fitting else "leave this tensor dense"
        return (
            f"in_features {in_features} is not a multiple of group_size {grid.group_size}; {advice}"
        )
    return None


def dense_kind(name: str, dense: ScaleDtype) -> ScaleDtype:
    """Choose the type of a dense tensor: that of all, but for what chooses experts.

    Rounded, it would choose others; mlx-lm computes with it in float32.
    """
    return "float32" if name.endswith(".e_score_correction_bias") else dense


def stored_bytes(shape: tuple[int, ...], grid: Grid | None, dense: ScaleDtype) -> int:
    """Count the bytes of a tensor in the file, with its scales and biases where it is quantized."""
    weights = math.prod(shape)
    if grid is None:
        return weights * NUMPY[dense].itemsize
    groups = shape[0] * grid.group_count(shape[1])
    return weights * grid.bits // 8 + 2 * groups * NUMPY[grid.scale_dtype].itemsize


def quantized_tensors(
    name: str, layer: QuantizedLinear
) -> tuple[Mapping[str, NumpyArray], QuantizedLinear]:
    """Make P.weight, P.scales, P.biases of a weight P.weight, and the layer as they hold it.

    MLX computes w = scale * code + bias on every grid, so symmetric ones have biases too.

    Shapes: codes (out, in) -> words (out, in * bits / 32), scales and biases (out, groups).
    Raises: BadInput if a scale or offset is too large for the grid's scale_dtype.
    """
    module = name.removesuffix(".weight")
    kind = layer.grid.scale_dtype
    with np.errstate(over="ignore"):
        scales = layer.scales.astype(NUMPY[kind])
        offsets = layer.offsets.astype(NUMPY[kind])
    if not (np.isfinite(scales).all() and np.isfinite(offsets).all()):
        largest = max(np.abs(layer.scales).max(), np.abs(layer.offsets).max())
        raise BadInput(
            f"tensor '{name}': a scale or offset of {largest:.6g} exceeds {kind}, "
            "in which MLX holds both; use scale_dtype bfloat16 or float32"
        )
    words = pack_words(layer.codes, layer.grid.bits)
    stored = {name: words, f"{module}.scales": scales, f"{module}.biases": offsets}
    return stored, as_stored(layer, scales, offsets)
