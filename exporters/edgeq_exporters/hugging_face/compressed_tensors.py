"""Write compressed-tensors directories (format pack-quantized) for transformers and vLLM."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeq.decoder import Decoder, Shape
from edgeq.dtypes import NUMPY
from edgeq.errors import BadInput
from edgeq.grids.packing import WORD_BITS, pack_words
from edgeq.types import Grid, QuantizedLinear
from edgeq_exporters.common.decoder import Shapes, why_not_outliers, why_not_table
from edgeq_exporters.common.deviation import as_stored
from edgeq_exporters.hugging_face import formats
from edgeq_exporters.hugging_face.directory import (
    LinearExporter,
    LinearFormat,
    Packed,
    layers_by_grid,
    patterns_of,
    with_dense_matrices,
)

WORD_BYTES = WORD_BITS // 8


def why_not_grid(shape: Shape, grid: Grid) -> str | None:
    """Say what keeps a linear layer out of pack-quantized and what to change, or None.

    Shapes: (out, in).
    """
    in_features = shape[1]
    if not formats.COMPRESSED_TENSORS.holds_bits(grid.bits):
        return (
            f"releases of compressed-tensors pack {grid.bits} bits in different ways; "
            "choose 2, 4 or 8"
        )
    if grid.table or grid.outlier_columns:
        return why_not_table(grid, "compressed-tensors") or why_not_outliers(
            grid, "compressed-tensors"
        )
    if grid.zeros == "offset":
        return (
            "compressed-tensors holds whole zero points, no free offsets; "
            "use a symmetric grid or zeros = 'integer'"
        )
    if grid.group_size is not None and in_features % grid.group_size:
        fitting = [str(size) for size in (32, 64, 128) if in_features % size == 0]
        choices = " or ".join([*fitting, "'row'"])
        return (
            f"in_features {in_features} is not a multiple of group_size {grid.group_size}; "
            f"choose {choices}"
        )
    return None


def pack(module: str, layer: QuantizedLinear) -> Packed:
    """Make the tensors of a layer, and the layer as these tensors hold it.

    They are weight_packed, weight_scale and weight_shape, and weight_zero_point on grids that are
    not symmetric. Words are little-endian bit streams, along the inputs for codes and along the
    outputs for zero points.

    Shapes: codes (out, in) -> weight_packed (out, ceil(in * bits / 32)), weight_scale (out,
    groups), weight_zero_point (ceil(out * bits / 32), groups).
    Raises: BadInput if a scale is too large for the grid's scale_dtype.
    """
    grid = layer.grid
    with np.errstate(over="ignore"):
        scales = layer.scales.astype(NUMPY[grid.scale_dtype])
    if not np.isfinite(scales).all():
        largest = np.abs(layer.scales).max()
        raise BadInput(
            f"tensor '{module}.weight': a scale of {largest:.6g} exceeds {grid.scale_dtype}; "
            "use scale_dtype bfloat16 or float32"
        )
    tensors = {
        f"{module}.weight_packed": pack_words(layer.codes, grid.bits).view("<i4"),
        f"{module}.weight_scale": scales,
        f"{module}.weight_shape": np.array(layer.codes.shape, dtype=np.int64),
    }
    zeros = np.float32(grid.middle) if grid.zeros == "symmetric" else layer.zeros
    if grid.zeros == "integer":
        words = pack_words(layer.zeros.T.astype(np.uint8), grid.bits).view("<i4").T
        tensors[f"{module}.weight_zero_point"] = np.ascontiguousarray(words)
    return tensors, as_stored(layer, scales, -scales.astype(np.float32) * zeros)


def layer_bytes(shape: Shape, grid: Grid) -> int:
    """Count the bytes of a packed layer: codes and zero points in whole words, scales, its shape.

    Shapes: (out, in).
    """
    rows, columns = shape
    groups = grid.group_count(columns)
    codes = WORD_BYTES * rows * -(-columns * grid.bits // WORD_BITS)
    zeros = WORD_BYTES * groups * -(-rows * grid.bits // WORD_BITS)
    if grid.zeros != "integer":
        zeros = 0
    scales = rows * groups * NUMPY[grid.scale_dtype].itemsize
    two_sizes = 16  # weight_shape: two int64
    return codes + zeros + scales + two_sizes


def settings(decoder: Decoder, linear: Shapes) -> Mapping[str, Any]:
    """Make the quantization_config: for every Linear where there is one grid, else by pattern."""
    modules = dict(layers_by_grid(with_dense_matrices(decoder, linear)))
    dense = list(modules.pop(None, []))
    # the head is called lm_head in transformers, whatever its name in files is
    outer = ["lm_head.weight", decoder.head]
    outer += [name for name, shape in decoder.others.items() if len(shape) == 2]
    dense = list(dict.fromkeys([*(name.removesuffix(".weight") for name in outer), *dense]))
    groups = {}
    for number, (grid, names) in enumerate(modules.items()):
        assert grid is not None
        targets = ["Linear"]
        if len(modules) > 1:
            targets = [f"re:{pattern}" for pattern in patterns_of(names)]
        groups[f"group_{number}"] = {
            "targets": targets,
            "weights": _arguments(grid),
            "input_activations": None,
            "output_activations": None,
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": dense,
    }


def _arguments(grid: Grid) -> dict[str, Any]:
    return {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": grid.zeros == "symmetric",
        "strategy": "channel" if grid.group_size is None else "group",
        "group_size": grid.group_size,
        "dynamic": False,
        "actorder": None,
    }


PACK_QUANTIZED = LinearFormat(
    name="compressed-tensors",
    type_name="pack-quantized",
    why_not_grid=why_not_grid,
    layer_bytes=layer_bytes,
    pack=pack,
    settings=settings,
)


class CompressedTensorsExporter(LinearExporter):
    """Writes linear layers as pack-quantized."""

    format = formats.COMPRESSED_TENSORS
    kind = PACK_QUANTIZED
