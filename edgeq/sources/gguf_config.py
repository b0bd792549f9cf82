"""Write GGUF hyper-parameters of Llama models as a Hugging Face config.

Tokenizer files are made by `edgeq.sources.gguf_tokenizer`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeq.architectures.config_checks import positive_integer
from edgeq.architectures.llama_cpp import END_KEYS, KNOWN_ENDS, SENTENCEPIECE_IDS
from edgeq.architectures.rope import llama3_factors
from edgeq.decoder import Rope
from edgeq.errors import BadInput, UnsupportedModel
from edgeq.types import NumpyArray

# of Llama 3.1, 3.2 and 3.3, which differ in the factor only
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

Metadata = Mapping[str, Any]


def build_config(
    metadata: Metadata,
    *,
    vocab_size: int,
    tied: bool,
    rope_factors: NumpyArray | None,
    dtype: str = "float16",
) -> dict[str, Any]:
    """Write what config.json of the same model says.

    Raises: BadInput if a hyper-parameter is missing; UnsupportedModel for what a Llama config
    cannot say.
    """
    check_architecture(metadata)
    hidden_size = positive_integer(metadata, "llama.embedding_length")
    heads = positive_integer(metadata, "llama.attention.head_count")
    head_dim = hidden_size // heads
    if "llama.attention.key_length" in metadata:
        head_dim = positive_integer(metadata, "llama.attention.key_length")
    check_heads(metadata, head_dim)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden_size,
        "intermediate_size": positive_integer(metadata, "llama.feed_forward_length"),
        "num_hidden_layers": positive_integer(metadata, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads(metadata),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": positive_integer(metadata, "llama.context_length"),
        "rms_norm_eps": decimal(metadata, "llama.attention.layer_norm_rms_epsilon", default=1e-5),
        "rope_theta": decimal(metadata, "llama.rope.freq_base", default=10000.0),
        "tie_word_embeddings": tied,
        "vocab_size": vocab_size,
        "torch_dtype": dtype,
    }
    scaling = rope_scaling(metadata, config, rope_factors)
    if scaling:
        config["rope_scaling"] = scaling
    return config | special_ids(metadata)


def check_architecture(metadata: Metadata) -> None:
    """Refuse other architectures, mixtures of experts and split files.

    Raises: UnsupportedModel.
    """
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise UnsupportedModel(
            f"GGUF architecture {architecture!r} is not supported; give one of llama"
        )
    if metadata.get("llama.expert_count", 0):
        raise UnsupportedModel(
            "the GGUF holds a mixture of experts, which is not supported; give a dense Llama model"
        )
    if metadata.get("split.count", 1) > 1:
        raise UnsupportedModel(
            "the GGUF is one of several parts; join them with llama-gguf-split --merge"
        )


def check_heads(metadata: Metadata, head_dim: int) -> None:
    """Refuse heads whose keys, values and rotary embedding differ in size, as Llama's cannot.

    Raises: UnsupportedModel.
    """
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        size = metadata.get(key, head_dim)
        if size != head_dim:
            raise UnsupportedModel(
                f"the GGUF has {key} {size} but heads of {head_dim}; only equal sizes are supported"
            )
    if head_dim < 2 or head_dim % 2:
        raise UnsupportedModel(
            f"the GGUF has heads of {head_dim}; rotary embedding needs an even size"
        )


def key_value_heads(metadata: Metadata) -> int:
    key = "llama.attention.head_count_kv"
    return positive_integer(metadata, key if key in metadata else "llama.attention.head_count")


def decimal(metadata: Metadata, key: str, *, default: float) -> float:
    """Read a float32 hyper-parameter as the shortest decimal that means it.

    That is 1e-05, not 9.999999747378752e-06.

    Raises: BadInput.
    """
    value = metadata.get(key, default)
    if not isinstance(value, float) or not 0 < value < float("inf"):
        raise BadInput(f"the GGUF's {key} is {value!r}; it must be a positive number")
    return float(str(np.float32(value)))


def special_ids(metadata: Metadata) -> dict[str, Any]:
    """Read the ids of the tokens that begin, end and pad a text, where the GGUF states them.

    Ends are all at which llama.cpp stops.
    """
    keys = {"bos_token_id": "bos", "pad_token_id": "padding", "unk_token_id": "unknown"}
    found = {name: token_id(metadata, key) for name, key in keys.items()}
    stated: dict[str, Any] = {name: int(id) for name, id in found.items() if id is not None}
    ends = end_ids(metadata)
    if ends:
        stated["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return stated


def token_id(metadata: Metadata, key: str) -> Any:
    """Read the id of a special token by its name in GGUF, or what llama.cpp takes without one."""
    known = SENTENCEPIECE_IDS if metadata.get("tokenizer.ggml.model") == "llama" else {}
    return metadata.get(f"tokenizer.ggml.{key}_token_id", known.get(key))


def end_ids(metadata: Metadata) -> list[int]:
    """List the ids of the tokens that end a text or a turn, those with keys of their own first."""
    keyed = [token_id(metadata, key) for key in END_KEYS]
    tokens = metadata.get("tokenizer.ggml.tokens")
    known = [index for index, token in enumerate(tokens or ()) if token in KNOWN_ENDS]
    return list(dict.fromkeys([int(id) for id in keyed if id is not None] + known))


def rope_scaling(
    metadata: Metadata, config: Mapping[str, Any], factors: NumpyArray | None
) -> dict[str, Any] | None:
    """Write the config's rope_scaling: none, linear or Llama 3.

    Raises: UnsupportedModel for other kinds.
    """
    kind = metadata.get("llama.rope.scaling.type", "none")
    if factors is not None and kind == "none":
        return recognise_llama3(config, factors)
    if factors is None and kind in ("none", "linear"):
        factor = decimal(metadata, "llama.rope.scaling.factor", default=1.0)
        is_scaled = kind == "linear" and factor != 1.0
        return {"rope_type": "linear", "factor": factor} if is_scaled else None
    raise UnsupportedModel(
        f"the GGUF has rope scaling of type {kind!r}, which is not supported; give the safetensors"
    )


def recognise_llama3(config: Mapping[str, Any], factors: NumpyArray) -> dict[str, Any]:
    """Find the Llama 3 scaling that gives these factors, among the published ones.

    The file states no parameters.
    """
    if factors.shape == (config["head_dim"] // 2,):
        scaling = LLAMA3_SCALING | {"factor": float(str(np.float32(factors.max())))}
        rope = Rope("llama3", config["rope_theta"], scaling)
        # the converter computed the file's factors in float32
        if np.allclose(factors, llama3_factors(rope, config["head_dim"]), rtol=1e-4):
            return scaling
    raise UnsupportedModel(
        "the GGUF's rope_freqs.weight is not the usual Llama 3 scaling; give the safetensors"
    )
