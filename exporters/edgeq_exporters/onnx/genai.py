"""Make genai_config.json, which onnxruntime-genai reads beside a graph."""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures.json_objects import json_object
from edgeq.architectures.special_tokens import GENERATION_FILE
from edgeq.decoder import Decoder, ModelRecord, TokenIds

GENERATED_TOKENS = 4096  # onnxruntime-genai reserves a cache this long unless asked for more


def genai_config(
    record: ModelRecord, companions: Mapping[str, bytes], *, file: str
) -> dict[str, Any]:
    """Make the settings that onnxruntime-genai reads beside the graph.

    They are sizes, names of inputs and outputs, special tokens, and how tokens are chosen.
    """
    decoder = record.decoder
    attention = decoder.attention
    graph = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": file,
        "head_size": attention.head_size,
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
        "num_attention_heads": attention.heads,
        "num_hidden_layers": len(decoder.layers),
        "num_key_value_heads": attention.key_heads,
    }
    model = {
        "type": decoder.names.genai,
        "vocab_size": decoder.vocabulary,
        "context_length": decoder.context,
        **special_tokens(record.tokens),
        "decoder": graph,
    }
    return {"model": model, "search": search_settings(decoder, companions)}


def search_settings(decoder: Decoder, companions: Mapping[str, bytes]) -> dict[str, Any]:
    """Make the settings by which tokens are chosen, unless a caller gives others.

    generation_config.json wins; without it the likeliest token is taken.
    """
    chosen = json_object(companions, GENERATION_FILE)
    defaults = {
        "do_sample": False,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
    }
    settings: dict[str, Any] = {
        "max_length": min(decoder.context or GENERATED_TOKENS, GENERATED_TOKENS),
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": True,
    }
    for key, default in defaults.items():
        settings[key] = default if chosen.get(key) is None else chosen[key]
    return settings


def special_tokens(tokens: TokenIds) -> dict[str, Any]:
    """Give the ids of the tokens that begin, end and pad a text.

    A model without a padding token pads with the end.
    """
    pad = tokens.pad or tokens.end
    found = {"bos_token_id": tokens.begin[:1], "eos_token_id": tokens.end, "pad_token_id": pad[:1]}
    return {key: ids[0] if len(ids) == 1 else list(ids) for key, ids in found.items() if ids}
