"""Describe GGUF as edgeq writes it: blocks of llama.cpp's own types."""

from edgeq.format_parts import Format, GroupSizes
from edgeq_exporters.gguf.apps import APPS

FORMAT = Format(
    name="gguf",
    exporter="edgeq_exporters.gguf.exporter:GgufExporter",
    reader="edgeq_exporters.gguf.reader:GgufReader",
    extra="gguf",
    bits=(4, 5, 8),
    widens=True,
    groups=GroupSizes(multiple_of=32),
    zero_kinds=("symmetric", "offset"),
    rounded_zero_kinds=("integer",),
    scale_dtypes=("float16",),
    types=(
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
        *("IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "Q2_0"),
    ),
    suffix=".gguf",
    read_by="llama.cpp and what is built on it",
    verified_by="bytes by the `gguf` library; logits in llama.cpp",
    runtime="llama.cpp",
    run_with=APPS,
    library="gguf",
    is_model=True,
)
