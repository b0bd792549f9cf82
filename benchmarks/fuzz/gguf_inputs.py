"""Write GGUF files of other architectures than Llama, for the reader of sources.

One has windows, norms plus one and head norms, the other experts in stacks. Their tokenizer is that
of an export.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edgeq.architectures.llama_cpp_tensors import file_tensors
from edgeq.architectures.record import read_record

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "gemma3": {"model_type": "gemma3_text", "tie_word_embeddings": True, "sliding_window": 16},
    "qwen3moe": {
        "model_type": "qwen3_moe",
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
}
KEYS: Mapping[str, Mapping[str, int | float | str]] = {
    "gemma3": {"attention.sliding_window": 16, "rope.scaling.type": "linear"},
    "qwen3moe": {
        "expert_count": 2,
        "expert_used_count": 1,
        "expert_feed_forward_length": 32,
        "rope.scaling.type": "yarn",
        "rope.scaling.original_context_length": 32,
    },
}
COMMON: Mapping[str, int | float | str] = {
    "block_count": 2,
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 32,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "attention.key_length": 16,
    "attention.value_length": 16,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 10000.0,
    "rope.scaling.factor": 2.0,
}


def write_gguf(architecture: str, export: Path, file: Path) -> None:
    """Write a random model of an architecture, with the tokenizer of an exported file."""
    vocabulary = gguf.GGUFReader(export)
    tokens = len(vocabulary.fields["tokenizer.ggml.tokens"].contents())
    config = {**SIZES, **CONFIGS[architecture], "vocab_size": tokens}
    decoder = read_record(architecture, config).decoder
    known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(known[architecture], len(decoder.layers))
    writer = gguf.GGUFWriter(file, architecture)
    for name, field in vocabulary.fields.items():
        if name.startswith("tokenizer."):
            inside = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inside)
    for key, value in {**COMMON, **KEYS[architecture]}.items():
        kinds = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        kinds[type(value)](f"{architecture}.{key}", value)  # type: ignore[operator]
    shapes, rng = decoder.tensor_shapes(), np.random.default_rng(0)
    for tensor in file_tensors(decoder, lambda name: table.get_name(name, (".weight", ".bias"))):
        shape = shapes[tensor.sources[0]]
        stacked = (len(tensor.sources), *shape) if tensor.stacked else shape
        writer.add_tensor(tensor.name, rng.standard_normal(stacked).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
