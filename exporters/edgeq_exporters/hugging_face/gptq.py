"""Write GPTQ directories (checkpoint_format gptq, or v1) for transformers, vLLM, GPTQModel."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeq.checkpoint.certificate import without_zero_at_zero
from edgeq.decoder import Decoder, Shape
from edgeq.errors import BadInput
from edgeq.grids.packing import pack_words
from edgeq.types import Grid, QuantizedLinear
from edgeq.version import __version__
from edgeq_exporters.common.decoder import Shapes, why_not_outliers, why_not_table
from edgeq_exporters.common.deviation import as_stored
from edgeq_exporters.hugging_face import formats
from edgeq_exporters.hugging_face.directory import (
    LinearExporter,
    LinearFormat,
    Packed,
    commonest_grid,
    layers_by_grid,
    patterns_of,
    with_dense_matrices,
)

WORD_BITS = 32


def why_not_grid(shape: Shape, grid: Grid) -> str | None:
    """Say what keeps a linear layer out of GPTQ's packing and what to change, or None.

    Shapes: (out, in).
    """
    in_features = shape[1]
    if not formats.GPTQ.holds_bits(grid.bits):
        return f"GPTQ packs 2, 3, 4 or 8 bits, not {grid.bits}; choose one of them"
    if grid.table or grid.outlier_columns:
        return why_not_table(grid, "GPTQ") or why_not_outliers(grid, "GPTQ")
    if grid.zeros == "offset":
        return (
            "GPTQ holds whole zero points, no free offsets; "
            "use a symmetric grid or zeros = 'integer'"
        )
    if grid.group_size is not None and grid.group_size % 32:
        return (
            f"group_size {grid.group_size} is not a multiple of 32, GPTQ's rule; "
            "choose 32, 64, 128 or 'row'"
        )
    if grid.group_size is not None and in_features % grid.group_size:
        fitting = [str(size) for size in (32, 64, 128) if in_features % size == 0]
        choices = " or ".join([*fitting, "'row'"])
        return (
            f"in_features {in_features} is not a multiple of group_size {grid.group_size}; "
            f"choose {choices}"
        )
    return _why_not_words(shape, grid)


def _why_not_words(shape: Shape, grid: Grid) -> str | None:
    out_features, in_features = shape
    for features, what in ((in_features, "in_features"), (out_features, "out_features")):
        if features * grid.bits % WORD_BITS:
            return (
                f"{what} {features} at {grid.bits} bits do not fill words of 32 bits, GPTQ's rule; "
                "choose other bits or keep this layer dense (bits 16)"
            )
    return None


def pack(module: str, layer: QuantizedLinear) -> Packed:
    """Make qweight, qzeros, scales and g_idx of a layer, and the layer as they hold it.

    Words are little-endian bit streams, along the inputs for codes and along the outputs for zero
    points. v1 stores zero points less one, so a group with a zero point of 0 is written from its
    other end. Scales may be negative.

    Shapes: codes (out, in) -> qweight (in * bits / 32, out), qzeros (groups, out * bits / 32),
    scales (groups, out), g_idx (in,).
    Raises: BadInput if a scale is too large for float16.
    """
    with np.errstate(over="ignore"):
        scales = layer.scales.astype(np.float16)
    if not np.isfinite(scales).all():
        largest = np.abs(layer.scales).max()
        raise BadInput(
            f"tensor '{module}.weight': a scale of {largest:.6g} exceeds float16, "
            "in which GPTQ holds scales; use scale_dtype float16"
        )
    zeros = np.float32(layer.grid.middle) if layer.grid.zeros == "symmetric" else layer.zeros
    stored = as_stored(layer, scales, -scales.astype(np.float32) * zeros)
    held = without_zero_at_zero(stored)
    tensors = {
        f"{module}.qweight": _words(held.codes, layer.grid.bits).T,
        f"{module}.qzeros": _words((held.zeros.T - 1).astype(np.uint8), layer.grid.bits),
        f"{module}.scales": held.scales.T.astype(np.float16),
        f"{module}.g_idx": layer.grid.group_index(layer.codes.shape[1]).astype(np.int32),
    }
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}, stored


def layer_bytes(shape: Shape, grid: Grid) -> int:
    """Count the bytes of a packed layer: codes, zero points, scales, the group of each input.

    Shapes: (out, in).
    """
    rows, columns = shape
    groups = grid.group_count(columns)
    codes_and_zeros = rows * (columns + groups) * grid.bits // 8
    scales = 2 * rows * groups  # float16
    group_of_input = 4 * columns  # int32
    return codes_and_zeros + scales + group_of_input


def _words(codes: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    return pack_words(codes, bits).view("<i4")


def settings(decoder: Decoder, linear: Shapes) -> Mapping[str, Any]:
    """Make the quantization_config: the commonest grid, then by pattern what differs from it."""
    default = commonest_grid(linear)
    dynamic: dict[str, Any] = {}
    for grid, modules in layers_by_grid(with_dense_matrices(decoder, linear)).items():
        if grid is None:
            dynamic |= {f"-:{pattern}": {} for pattern in patterns_of(modules)}
        elif _scheme(grid) != _scheme(default):
            dynamic |= {f"+:{pattern}": _scheme(grid) for pattern in patterns_of(modules)}
    written = {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        **_scheme(default),
        "desc_act": False,
        "lm_head": False,
        "true_sequential": True,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"edgeq:{__version__}"]},
    }
    return written | ({"dynamic": dynamic} if dynamic else {})


def _scheme(grid: Grid) -> dict[str, Any]:
    group_size = -1 if grid.group_size is None else grid.group_size
    return {"bits": grid.bits, "group_size": group_size, "sym": grid.zeros == "symmetric"}


GPTQ = LinearFormat(
    name="gptq",
    type_name="GPTQ",
    why_not_grid=why_not_grid,
    layer_bytes=layer_bytes,
    pack=pack,
    settings=settings,
    transposed=True,
)


class GptqExporter(LinearExporter):
    """Writes linear layers as GPTQ packs them."""

    format = formats.GPTQ
    kind = GPTQ
