"""Describe ONNX graphs as ONNX Runtime and onnxruntime-genai read them."""

from edgeq.format_parts import Format, FormatOption, GroupSizes
from edgeq_exporters.onnx.apps import APPS

ACCURACY_LEVELS = range(5)

FORMAT = Format(
    name="onnx",
    exporter="edgeq_exporters.onnx.exporter:OnnxExporter",
    reader="edgeq_exporters.onnx.reader:OnnxReader",
    extra="onnx",
    bits=(2, 4, 8),
    widens=True,
    groups=GroupSizes(multiple_of=16),
    zero_kinds=("symmetric", "integer"),
    rounded_zero_kinds=("offset",),
    scale_dtypes=("float16", "bfloat16", "float32"),
    types=("Q2_K", "Q3_K", "Q4_K", "Q6_K", "Q2_0"),
    outlier_columns=True,
    options=(
        FormatOption(
            "accuracy_level",
            "how ONNX Runtime rounds activations, 4 to 8 bits (fast), 0 not at all.  [default: 4]",
            ACCURACY_LEVELS,
        ),
        FormatOption("qdq", "standard DequantizeLinear nodes instead of ONNX Runtime's own."),
    ),
    suffix=".onnx",
    data_suffix=".data",
    read_by="ONNX Runtime, onnxruntime-genai",
    verified_by="bytes by the `onnx` library and bit by bit; "
    "logits in ONNX Runtime, tokens in onnxruntime-genai",
    runtime="onnxruntime",
    run_with=APPS,
    library="onnx",
)
