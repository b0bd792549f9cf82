"""Llama-like models in ONNX Runtime: configs that its operators compute, rotary tables, settings
for generation.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeq.architectures.model_config import SUPPORTED_MODEL_TYPES, head_dimension, positive_integer
from edgeq.architectures.rope import frequencies, rope_of, why_not_rope
from edgeq_exporters.common.decoder import Config

NEEDED = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "rms_norm_eps",
    "vocab_size",
)
MISTRAL_WINDOW = 4096  # what transformers takes where the key is absent; null means no window
HEAD_MULTIPLE = 16  # GroupQueryAttention rotates no other heads
GENERATED_TOKENS = 4096  # onnxruntime-genai reserves a cache this long unless asked for more


@dataclass(frozen=True, slots=True)
class Decoder:
    """Sizes of a model. window: how many tokens, itself included, a token attends to; None for
    all.
    """

    layers: int
    hidden: int
    vocabulary: int
    heads: int
    key_heads: int
    head_size: int
    context: int
    epsilon: float
    window: int | None


def decoder_of(config: Config) -> Decoder:
    """The sizes that a config without a `why_not_config` states."""
    window = (
        config.get("sliding_window", MISTRAL_WINDOW) if config["model_type"] == "mistral" else None
    )
    return Decoder(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        vocabulary=config["vocab_size"],
        heads=config["num_attention_heads"],
        key_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        head_size=head_dimension(config),
        context=positive_integer(config, "max_position_embeddings"),
        epsilon=float(config["rms_norm_eps"]),
        window=window,
    )


def why_not_config(config: Config) -> str | None:
    """What about a config ONNX Runtime's operators cannot compute; None when nothing.

    Raises: BadInput for sizes that are not positive whole numbers.
    """
    model_type = config.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        return (
            f"model_type '{model_type}' is not supported; ONNX "
            f"export knows {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    missing = [key for key in NEEDED if config.get(key) is None]
    if missing:
        return f"config.json lacks {', '.join(missing)}, which the graph needs; add it"
    if config.get("hidden_act", "silu") != "silu":
        return (
            f"hidden_act '{config['hidden_act']}' is not "
            f"supported; the graph computes {model_type} with silu"
        )
    if model_type == "qwen2" and config.get("use_sliding_window"):
        return (
            "use_sliding_window is not supported; the graph's "
            "qwen2 attends to everything, set it to false"
        )
    head_size = decoder_of(config).head_size
    if head_size % HEAD_MULTIPLE:
        return (
            f"heads of {head_size} are not a multiple of "
            f"{HEAD_MULTIPLE}, as GroupQueryAttention needs;"
            " use another format"
        )
    return why_not_rope(config, "the graph")


def rotary_tables(config: Config) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Cosines and sines of every position up to the model's longest context.

    Angles are rounded to float32 as transformers rounds them: far positions differ by more than
    that otherwise.

    Shapes: (context, head / 2) each.
    """
    decoder = decoder_of(config)
    per_token = frequencies(rope_of(config), decoder.head_size).astype(np.float32)
    angles = np.arange(decoder.context, dtype=np.float32)[:, np.newaxis] * per_token
    wide = angles.astype(np.float64)  # the same table on every machine
    return np.cos(wide).astype(np.float32), np.sin(wide).astype(np.float32)


def genai_config(config: Config, companions: Mapping[str, bytes], *, file: str) -> dict[str, Any]:
    """What onnxruntime-genai reads beside the graph: sizes, names of inputs and outputs, special
    tokens, search.
    """
    decoder = decoder_of(config)
    graph = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": file,
        "head_size": decoder.head_size,
        "hidden_size": decoder.hidden,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": decoder.heads,
        "num_hidden_layers": decoder.layers,
        "num_key_value_heads": decoder.key_heads,
    }
    model = {
        "type": config["model_type"],
        "vocab_size": decoder.vocabulary,
        "context_length": decoder.context,
        **special_tokens(config, companions),
        "decoder": graph,
    }
    return {"model": model, "search": search_settings(decoder, companions)}


def search_settings(decoder: Decoder, companions: Mapping[str, bytes]) -> dict[str, Any]:
    """How tokens are chosen unless the caller says otherwise: as generation_config.json does, else
    greedily.
    """
    chosen = _generation_config(companions)
    defaults = {
        "do_sample": False,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
    }
    return {
        "max_length": min(decoder.context, GENERATED_TOKENS),
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": True,
        **{
            key: default if chosen.get(key) is None else chosen[key]
            for key, default in defaults.items()
        },
    }


def special_tokens(config: Config, companions: Mapping[str, bytes]) -> dict[str, Any]:
    """Ids of the tokens that begin, end and pad a text; generation_config.json wins, padding falls
    back to the end.
    """
    settings = {
        **config,
        **{k: v for k, v in _generation_config(companions).items() if v is not None},
    }
    found = {key: settings.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if found["pad_token_id"] is None:
        end = found["eos_token_id"]
        found["pad_token_id"] = end[0] if isinstance(end, list) else end
    return {key: value for key, value in found.items() if value is not None}


def _generation_config(companions: Mapping[str, bytes]) -> Mapping[str, Any]:
    content = companions.get("generation_config.json")
    loaded = json.loads(content) if content else {}
    return loaded if isinstance(loaded, dict) else {}
