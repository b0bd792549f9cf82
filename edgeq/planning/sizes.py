"""How large a checkpoint and its exports become, found from shapes and grids alone."""

import math
from typing import Any

from edgeq.checkpoint.tensor_file import stored_parts
from edgeq.decoder import Decoder
from edgeq.dtypes import ITEM_BYTES
from edgeq.measuring.formats import READ_BY
from edgeq.protocols import Exporter, ModelSource
from edgeq.recipe.layer_grids import Grids
from edgeq.types import Grid

GGUF_COLUMNS = 32  # that share a scale there, whatever the grid's groups
CODE_BITS = {
    "gguf": (4, 5, 8),
    "onnx": (2, 4, 8),
    "mlx": (2, 3, 4, 5, 6, 8),
    "gptq": (2, 3, 4, 8),
    "compressed-tensors": (4, 8),
}
KEEPS_FLOAT32 = ("gguf", "onnx")  # other formats round dense matrices to 16 bits
EMBEDDING = "model.embed_tokens.weight"


def tensor_bytes(name: str, shape: tuple[int, ...], grid: Grid | None, source: ModelSource) -> int:
    """What a tensor takes in the checkpoint; a dense one as it is read, which is float32 unless
    stored in 16 bits.
    """
    if grid is None:
        return math.prod(shape) * ITEM_BYTES.get(source.stored_as(name), 4)
    parts = stored_parts(name, (shape[0], shape[1]), grid).values()
    return sum(math.prod(of_part) * ITEM_BYTES[dtype] for dtype, of_part in parts)


def format_row(exporter: Exporter, grids: Grids, source: ModelSource) -> dict[str, Any]:
    """About how large an export becomes (headers and tokenizer left out), and what loads it."""
    total = rotary_bytes(source.record.decoder) if exporter.name == "onnx" else 0.0
    for name, (shape, grid) in grids.items():
        if grid is None or (exporter.linear_only and ".layers." not in name):
            dense = tensor_bytes(name, shape, None, source)
            total += dense if exporter.name in KEEPS_FLOAT32 else min(dense, 2 * math.prod(shape))
        else:
            total += quantized_bytes(exporter.name, name, (shape[0], shape[1]), grid)
    reason = exporter.reject_reason(source.record, source.companions(), grids)
    return {
        "format": exporter.name,
        "bytes": int(total),
        "read_by": READ_BY.get(exporter.name, ""),
        "refused": reason,
    }


def quantized_bytes(format_name: str, name: str, shape: tuple[int, int], grid: Grid) -> float:
    """Codes as wide as the format stores them, what it stores for each group, and outlier
    columns.
    """
    rows, columns = shape
    width = min(bits for bits in (*CODE_BITS.get(format_name, ()), 16) if bits >= grid.bits)
    groups = -(-columns // GGUF_COLUMNS) if format_name == "gguf" else grid.group_count(columns)
    per_group = {
        "gguf": 16 if grid.zeros == "symmetric" else 32,
        "mlx": 32,
        "gptq": 16 + width,
        "onnx": 32 + onnx_zero_bits(name, grid, width),
    }.get(format_name, 16 if grid.zeros == "symmetric" else 16 + width)
    return rows * (columns * width + groups * per_group) / 8 + 2 * rows * grid.outlier_count(
        columns
    )


def onnx_zero_bits(name: str, grid: Grid, width: int) -> int:
    """Per group; those in the middle are stated for an embedding only."""
    if grid.zeros == "offset":
        return 32
    return width if grid.zeros == "integer" or name == EMBEDDING else 0


def rotary_bytes(decoder: Decoder) -> float:
    """Count the bytes of cosines and sines of every position, in float32."""
    return float((decoder.context or 0) * decoder.layers[0].attention.head_size * 4)
