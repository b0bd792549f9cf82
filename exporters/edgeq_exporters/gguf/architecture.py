"""Llama-like architectures in GGUF: tensor names, row order, metadata, from the config of a Hugging
Face checkpoint.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeq.architectures.rope import llama3_factors, rope_of, why_not_rope

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
}  # model_type -> general.architecture

TOP_LEVEL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
IN_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BLOCK_TENSOR = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
DERIVED = ".rotary_emb.inv_freq"  # older checkpoints store this table; runtimes compute it

NEEDED = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "rms_norm_eps",
)


def why_not_architecture(config: Mapping[str, Any]) -> str | None:
    """What about a config GGUF's llama and qwen2 architectures cannot express; None when they
    can.
    """
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        return (
            f"model_type '{model_type}' is not supported; "
            f"GGUF export knows {', '.join(ARCHITECTURES)}"
        )
    missing = [key for key in NEEDED if config.get(key) is None]
    if missing:
        return f"config.json lacks {', '.join(missing)}, which GGUF needs; add it"
    if config.get("hidden_act", "silu") != "silu":
        return (
            f"hidden_act '{config['hidden_act']}' is not "
            f"supported; llama.cpp computes {model_type} with silu"
        )
    if head_size(config) % 2:
        return (
            f"heads are {head_size(config)} wide; rotary "
            "embedding needs an even head_dim, give another model"
        )
    kinds = ("default", "llama3") if ARCHITECTURES[model_type] == "llama" else ("default",)
    return why_not_rope(config, "llama.cpp", kinds)


def head_size(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def key_value_heads(config: Mapping[str, Any]) -> int:
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def gguf_name(source_name: str) -> str | None:
    """llama.cpp's name of a checkpoint's tensor; None for tensors that the architectures do not
    have.
    """
    if source_name in TOP_LEVEL:
        return TOP_LEVEL[source_name]
    parts = BLOCK_TENSOR.fullmatch(source_name)
    if parts is None or parts[2] not in IN_BLOCK:
        return None
    return f"blk.{parts[1]}.{IN_BLOCK[parts[2]]}.{parts[3]}"


def is_derived(source_name: str) -> bool:
    """Whether a tensor only holds what runtimes compute from the config."""
    return source_name.endswith(DERIVED)


def file_order(name: str) -> tuple[int, str]:
    """Sort key of GGUF names: model-wide tensors, then blocks by number."""
    block = re.match(r"blk\.(\d+)\.", name)
    return (int(block[1]) if block else -1, name)


def row_order(source_name: str, config: Mapping[str, Any]) -> npt.NDArray[np.intp] | None:
    """The order in which GGUF stores the rows of a tensor; None for the order of the checkpoint.

    llama.cpp's llama architecture rotates adjacent rows of q and k, Hugging Face rows half a head
    apart, so each head goes from [2, head / 2] to [head / 2, 2]. The qwen2 architecture rotates as
    Hugging Face does.
    """
    if ARCHITECTURES[config["model_type"]] != "llama":
        return None
    for projection, heads in (
        ("q_proj", int(config["num_attention_heads"])),
        ("k_proj", key_value_heads(config)),
    ):
        if f".self_attn.{projection}." in source_name:
            rows = np.arange(heads * head_size(config), dtype=np.intp)
            return rows.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
    return None


def architecture_keys(
    config: Mapping[str, Any], *, vocab_size: int
) -> Iterator[tuple[str, int | float]]:
    """Hyper-parameters under the names that llama.cpp reads. Units: int is stored as uint32, float
    as float32.
    """
    arch = ARCHITECTURES[config["model_type"]]
    yield f"{arch}.block_count", int(config["num_hidden_layers"])
    yield f"{arch}.context_length", int(config["max_position_embeddings"])
    yield f"{arch}.embedding_length", int(config["hidden_size"])
    yield f"{arch}.feed_forward_length", int(config["intermediate_size"])
    yield f"{arch}.attention.head_count", int(config["num_attention_heads"])
    yield f"{arch}.attention.head_count_kv", key_value_heads(config)
    if head_size(config) * config["num_attention_heads"] != config["hidden_size"]:
        yield f"{arch}.attention.key_length", head_size(config)
        yield f"{arch}.attention.value_length", head_size(config)
    yield f"{arch}.attention.layer_norm_rms_epsilon", float(config["rms_norm_eps"])
    yield f"{arch}.rope.dimension_count", head_size(config)
    yield f"{arch}.rope.freq_base", rope_of(config).theta
    yield f"{arch}.vocab_size", vocab_size


def rope_factors(config: Mapping[str, Any]) -> npt.NDArray[np.float32] | None:
    """Divisors of the rotary frequencies of Llama 3.1 and later; None where the frequencies are
    plain.

    Shapes: (head / 2,).
    """
    rope = rope_of(config)
    return (
        llama3_factors(rope, head_size(config)).astype(np.float32)
        if rope.kind == "llama3"
        else None
    )
