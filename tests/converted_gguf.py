"""Write tiny models to GGUF as llama.cpp's converter does: keys, names, row order, values.

Written after convert_hf_to_gguf.py and its classes, and not after edgeq's own exporter.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from benchmarks.architectures.rows import ROWS

SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
ROUTED = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
PARAMETERS: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}


@dataclass(frozen=True)
class Conversion:
    """What the converter's class of an architecture does beyond the class that all derive from.

    changes are those of the tiny model, keys the config keys that it writes under names of its own.
    permuted: rows of queries and keys; plus_one: weights of norms.
    """

    architecture: str
    row: str
    changes: dict = field(default_factory=dict)
    keys: dict = field(default_factory=dict)
    permuted: bool = False
    plus_one: bool = False
    partial: bool = False


SCALES = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
WINDOW = {"attention.sliding_window": "sliding_window"}
CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
LOGITS = {"logit_scale": "logit_scale"}
MOE = {"expert_feed_forward_length": "moe_intermediate_size"}
SHARED = {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"}
LONG = {"rope.scaling.original_context_length": "original_max_position_embeddings"}
CONVERSIONS = {
    "llama": Conversion("llama", "llama", permuted=True),
    "llama with biases": Conversion("llama", "llama attention_bias mlp_bias", permuted=True),
    "llama, wide heads": Conversion("llama", "llama head_dim 48", permuted=True),
    "llama, linear": Conversion("llama", "llama rope linear", permuted=True),
    "mixtral": Conversion("llama", "mixtral", {"num_local_experts": 3}, permuted=True),
    "qwen2": Conversion("qwen2", "qwen2 tied"),
    "qwen2, yarn": Conversion("qwen2", "qwen2", {"rope_parameters": YARN}),
    "qwen3": Conversion("qwen3", "qwen3"),
    "qwen2_moe": Conversion(
        "qwen2moe",
        "qwen2_moe",
        ROUTED | {"shared_expert_intermediate_size": 48},
        keys=MOE | SHARED,
    ),
    "qwen3_moe": Conversion("qwen3moe", "qwen3_moe", ROUTED | {"norm_topk_prob": True}, keys=MOE),
    "olmoe": Conversion("olmoe", "olmoe", {"num_experts": 3, "num_key_value_heads": 4}),
    "gemma": Conversion("gemma", "gemma", plus_one=True),
    "gemma2": Conversion("gemma2", "gemma2", keys=WINDOW | CAPS, plus_one=True),
    "gemma3": Conversion(
        "gemma3",
        "gemma3_text",
        {"num_hidden_layers": 7, "layer_types": None},
        WINDOW,
        plus_one=True,
    ),
    "phi2": Conversion("phi2", "phi (2)", {"num_key_value_heads": 4}, partial=True),
    "phi3": Conversion("phi3", "phi3 / phi-4-mini", {"sliding_window": 40}, WINDOW | LONG),
    "phi3, part of heads": Conversion(
        "phi3",
        "phi3 / phi-4-mini",
        {"rope_parameters": PARAMETERS | {"partial_rotary_factor": 0.75}},
        keys=LONG,
        partial=True,
    ),
    "phi3, long": Conversion(
        "phi3",
        "phi3 / phi-4-mini",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
                "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
                "original_max_position_embeddings": 32,
            },
            "original_max_position_embeddings": 32,
        },
        keys=LONG,
    ),
    "granite": Conversion("granite", "granite", keys=SCALES, permuted=True),
    "smollm3": Conversion(
        "smollm3", "smollm3", {"num_hidden_layers": 5, "no_rope_layers": None}, permuted=True
    ),
    "olmo": Conversion("olmo", "olmo", permuted=True),
    "olmo2": Conversion("olmo2", "olmo2"),
    "olmo3": Conversion(
        "olmo2", "olmo3", {"num_hidden_layers": 5, "layer_types": None}, keys=WINDOW
    ),
    "starcoder2": Conversion("starcoder2", "starcoder2"),
    "stablelm": Conversion("stablelm", "stablelm", partial=True),
    "cohere": Conversion("command-r", "cohere", keys=LOGITS),
    "cohere2": Conversion(
        "cohere2",
        "cohere2",
        {"num_hidden_layers": 5, "layer_types": None},
        keys=LOGITS | WINDOW,
    ),
    "seed_oss": Conversion("seed_oss", "seed_oss"),
    "arcee": Conversion("arcee", "arcee", permuted=True),
    "nemotron": Conversion("nemotron", "nemotron", plus_one=True, partial=True),
    "ernie4_5": Conversion("ernie4_5", "ernie4_5"),
    "exaone4": Conversion(
        "exaone4", "exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}
    ),
    "exaone4, windows": Conversion(
        "exaone4", "exaone4", {"num_hidden_layers": 5, "layer_types": None}, keys=WINDOW
    ),
    "glm": Conversion("chatglm", "glm", {"head_dim": 16}, partial=True),
    "glm4": Conversion("glm4", "glm4", partial=True),
    "gpt2": Conversion("gpt2", "gpt2", {"n_inner": 96, "num_key_value_heads": None}),
    "gpt_neox": Conversion("gptneox", "gpt_neox", {"num_key_value_heads": None}, partial=True),
    "bloom": Conversion("bloom", "bloom", {"intermediate_size": 256, "num_key_value_heads": None}),
    "falcon": Conversion("falcon", "falcon", {"ffn_hidden_size": 96, "num_kv_heads": 1}),
    "falcon, two norms": Conversion(
        "falcon",
        "falcon",
        {"ffn_hidden_size": 96, "num_kv_heads": 2, "new_decoder_architecture": True},
    ),
    "hunyuan": Conversion("hunyuan-dense", "hunyuan_v1_dense"),
}


def tiny_model(conversion, **changes):
    """A model of random weights, its norms and biases too; theirs are all alike when made."""
    kind, settings = ROWS[conversion.row]
    stated = settings | SMALL | conversion.changes | changes
    stated = {k: v for k, v in stated.items() if v is not None or k == "sliding_window"}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **stated)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def checkpoint_of(model):
    """A model's weights by the names that the hub has them under, without a tied head's copy."""
    state = revert_weight_conversion(model, model.state_dict())
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return {name: tensor.numpy().copy() for name, tensor in state.items()}


def permute(weights, heads):
    """LlamaModel.permute of the converter."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def ungrouped(fused, config):
    """Queries, keys and values one behind the other instead of in groups of heads."""
    groups = getattr(config, "num_kv_heads", config.num_attention_heads)
    width = config.hidden_size // config.num_attention_heads
    parts = fused.reshape(groups, -1, width, *fused.shape[1:])
    thirds = parts[:, :-2], parts[:, -2:-1], parts[:, -1:]
    return np.concatenate([part.reshape(-1, *fused.shape[1:]) for part in thirds])


def merged_experts(weights):
    """The experts of each projection as one tensor, in the order of their numbers."""
    merged = {}
    for name, array in weights.items():
        number = re.search(r"experts\.(\d+)\.", name)
        if number is None:
            merged[name] = array
        else:
            merged.setdefault(name.replace(number[0], "experts."), []).append(array)
    return {
        name: np.stack(array) if isinstance(array, list) else array
        for name, array in merged.items()
    }


def converted_tensors(conversion, config, weights):
    """The tensors of the file, in float32."""
    architecture = next(
        key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == conversion.architecture
    )
    table = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    tensors = {}
    for name, stored in merged_experts(weights).items():
        array = stored
        if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            array = array.T if conversion.architecture == "gpt2" else array
        if "query_key_value" in name:
            array = ungrouped(array, config)
        if conversion.permuted and ".q_proj." in name:
            array = permute(array, config.num_attention_heads)
        if conversion.permuted and ".k_proj." in name:
            array = permute(array, config.num_key_value_heads)
        if conversion.plus_one and name.endswith("norm.weight"):
            array = array + np.float32(1)
        if name.endswith("shared_expert_gate.weight"):
            array = array.squeeze()
        spellings = (name, name.removeprefix("transformer."))
        found = next(
            filter(None, (table.get_name(x, (".weight", ".bias")) for x in spellings)), None
        )
        assert found is not None, name
        tensors[found] = array
    return tensors


def number_of(value):
    return float(value) if isinstance(value, float) else int(value)


def scaling_of(config, rope):
    """The keys of rotary embedding that is scaled."""
    found = {}
    if rope["rope_type"] in ("linear", "yarn"):
        found["rope.scaling.type"] = rope["rope_type"]
        found["rope.scaling.factor"] = float(rope["factor"])
    if rope["rope_type"] == "yarn":
        length = rope["original_max_position_embeddings"]
        found["rope.scaling.original_context_length"] = length
    if rope["rope_type"] == "longrope":
        times = config.max_position_embeddings / config.original_max_position_embeddings
        logs = np.log([times, config.original_max_position_embeddings])
        found["rope.scaling.attn_factor"] = float(np.sqrt(1 + logs[0] / logs[1]))
    return found


def inner_of(config):
    for name in ("n_inner", "ffn_hidden_size", "intermediate_size"):
        if getattr(config, name, None):
            return getattr(config, name)
    raise AssertionError("no width")


def key_heads_of(config):
    for name in ("num_kv_heads", "num_key_value_heads", "num_attention_heads"):
        if getattr(config, name, None):
            return getattr(config, name)
    raise AssertionError("no heads")


def metadata_of(conversion, config):
    """The keys of the file, without the architecture that they begin with."""
    rope = getattr(config, "rope_parameters", None) or PARAMETERS
    rope = rope.get("full_attention", rope)
    found = {
        "block_count": config.num_hidden_layers,
        "context_length": SMALL["max_position_embeddings"],
        "embedding_length": config.hidden_size,
        "feed_forward_length": inner_of(config),
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": key_heads_of(config),
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": config.vocab_size,
    }
    head = getattr(config, "head_dim", None)
    if head is not None:
        found |= {"attention.key_length": head, "attention.value_length": head}
    epsilon = getattr(config, "rms_norm_eps", None)
    if epsilon is not None:
        found["attention.layer_norm_rms_epsilon"] = epsilon
    for name in ("layer_norm_eps", "norm_epsilon", "norm_eps", "layer_norm_epsilon"):
        if getattr(config, name, None) is not None:
            found["attention.layer_norm_epsilon"] = getattr(config, name)
    if conversion.architecture == "gptneox":
        found["use_parallel_residual"] = config.use_parallel_residual
    if conversion.architecture == "olmo":
        found["attention.layer_norm_epsilon"] = 1e-5
    for name in ("num_local_experts", "num_experts"):
        if getattr(config, name, None):
            found["expert_count"] = getattr(config, name)
            found["expert_used_count"] = config.num_experts_per_tok
    found |= scaling_of(config, rope)
    width = head or config.hidden_size // config.num_attention_heads
    if conversion.partial:
        found["rope.dimension_count"] = int(width * rope["partial_rotary_factor"])
    else:
        found["rope.dimension_count"] = width
    for key, name in conversion.keys.items():
        value = getattr(config, name)
        found[key] = 0 if value is None else number_of(value)
    return found


def convert(conversion, model, path, *, types=None, raw=None, **changes):
    """Write a model to a file; `changes` replaces keys, types those of tensors by their names.

    raw has blocks with their type for tensors that are not to be quantized here.
    """
    config = model.config
    tensors = converted_tensors(conversion, config, checkpoint_of(model))
    rope = getattr(config, "rope_parameters", None) or {}
    for length in ("long", "short"):
        if f"{length}_factor" in rope:
            factors = np.array(rope[f"{length}_factor"], np.float32)
            tensors[f"rope_factors_{length}.weight"] = factors
    writer = gguf.GGUFWriter(path, conversion.architecture)
    writer.add_tokenizer_model("none")
    if config.pad_token_id is not None:
        writer.add_pad_token_id(config.pad_token_id)
    for key, value in (metadata_of(conversion, config) | changes).items():
        name = f"{conversion.architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_uint32(name, value)
    for name, array in tensors.items():
        kind = (types or {}).get(name)
        stored = array if kind is None else gguf.quants.quantize(array, kind)
        stored, kind = (raw or {}).get(name, (stored, kind))
        writer.add_tensor(name, np.ascontiguousarray(stored), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
