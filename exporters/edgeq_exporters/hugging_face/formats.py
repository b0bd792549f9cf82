"""Describe the two directories of packed linear layers: GPTQ and compressed-tensors."""

from edgeq.format_parts import Format, GroupSizes
from edgeq_exporters.hugging_face.apps import COMPRESSED_TENSORS_APPS, GPTQ_APPS

GPTQ = Format(
    name="gptq",
    exporter="edgeq_exporters.hugging_face.gptq:GptqExporter",
    reader="edgeq_exporters.hugging_face.read_gptq:GptqReader",
    bits=(2, 3, 4, 8),
    groups=GroupSizes(multiple_of=32),
    zero_kinds=("symmetric", "integer"),
    scale_dtypes=("float16",),
    types=("Q2_0",),
    embedding="dense",
    read_by="transformers with GPTQModel, vLLM, onnxruntime-genai's model builder",
    verified_by="words by onnxruntime-genai's loader and bit by bit; "
    "logits in GPTQModel where it is installed",
    runtime="gptqmodel",
    run_with=GPTQ_APPS,
    library="transformers",
)
COMPRESSED_TENSORS = Format(
    name="compressed-tensors",
    exporter="edgeq_exporters.hugging_face.compressed_tensors:CompressedTensorsExporter",
    reader="edgeq_exporters.hugging_face.read_compressed_tensors:CompressedTensorsReader",
    # Releases of the library pack other bits in two ways, older ones leaving bits of words unused.
    bits=(2, 4, 8),
    groups=GroupSizes(multiple_of=1),
    zero_kinds=("symmetric", "integer"),
    scale_dtypes=("float16", "bfloat16", "float32"),
    types=("Q2_0",),
    embedding="dense",
    read_by="vLLM, transformers",
    verified_by="words by the `compressed-tensors` library and bit by bit; logits in transformers",
    runtime="compressed-tensors",
    run_with=COMPRESSED_TENSORS_APPS,
    library="transformers",
)
