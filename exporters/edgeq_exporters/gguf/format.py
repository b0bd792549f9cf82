"""Describe GGUF as edgeq writes it: one-level blocks of 32 columns for llama.cpp."""

from edgeq.protocols import Format, GroupSizes

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
    suffix=".gguf",
    read_by="llama.cpp and what is built on it",
    verified_by="bytes by the `gguf` library; logits in llama.cpp",
    runtime="llama.cpp",
    run_with=("llama-cli", "-m"),
    is_model=True,
)
