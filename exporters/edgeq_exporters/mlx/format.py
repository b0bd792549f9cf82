"""Describe MLX directories: the affine quantization that mlx-lm loads."""

from edgeq.format_parts import Format, GroupSizes
from edgeq_exporters.mlx.apps import APPS

FORMAT = Format(
    name="mlx",
    exporter="edgeq_exporters.mlx.exporter:MlxExporter",
    reader="edgeq_exporters.mlx.reader:MlxReader",
    # MLX packs other bits and groups as well, but multiplies them wrongly without an error.
    bits=(2, 3, 4, 5, 6, 8),
    groups=GroupSizes(multiple_of=32, only=(32, 64, 128), whole_rows=False),
    zero_kinds=("symmetric", "offset"),
    rounded_zero_kinds=("integer",),
    scale_dtypes=("float16", "bfloat16", "float32"),
    types=("Q4_K", "Q5_K", "Q2_0"),
    read_by="mlx-lm",
    verified_by="words by MLX and bit by bit; logits in mlx-lm",
    runtime="mlx-lm",
    run_with=APPS,
    library="mlx",
)
