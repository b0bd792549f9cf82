"""Say what ONNX Runtime computes of a model; make rotary tables and settings for generation.

Nodes and tensors of the graph are left to the modules beside this one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeq.architectures.features import HEAD_NORMS
from edgeq.architectures.json_objects import json_object
from edgeq.architectures.requirements import (
    why_not_activation,
    why_not_features,
    why_not_named,
    why_not_stated,
)
from edgeq.architectures.rope import frequencies, why_not_rope
from edgeq.architectures.special_tokens import GENERATION_FILE
from edgeq.decoder import Decoder, ModelRecord, TokenIds
from edgeq.words import show_size

COMPUTES = (HEAD_NORMS,)
FLOAT32_BYTES = 4
LARGEST_TABLES = 2**29  # bytes, of a million positions; computing them takes four times as much
HEAD_MULTIPLE = 16  # GroupQueryAttention rotates no other heads
GENERATED_TOKENS = 4096  # onnxruntime-genai reserves a cache this long unless asked for more


def why_not_decoder(decoder: Decoder) -> str | None:
    """Say what keeps a model from ONNX Runtime's operators and what to change, or None."""
    return (
        why_not_named(decoder, "genai", "ONNX export knows")
        or why_not_stated(decoder, "the graph")
        or why_not_features(decoder, "the graph", COMPUTES)
        or why_not_activation(decoder, "the graph")
        or _why_not_heads(decoder)
        or why_not_rope(decoder, "the graph")
        or _why_not_context(decoder)
    )


def _why_not_context(decoder: Decoder) -> str | None:
    context = decoder.context or 0
    size = context * decoder.attention.head_size * FLOAT32_BYTES
    if size <= LARGEST_TABLES:
        return None
    return (
        f"the graph holds rotary tables of all {context} positions, {show_size(size)} of them; "
        f"up to {show_size(LARGEST_TABLES)} are written, "
        "lower max_position_embeddings in the model's config.json"
    )


def _why_not_heads(decoder: Decoder) -> str | None:
    head_size = decoder.attention.head_size
    if head_size % HEAD_MULTIPLE == 0:
        return None
    return (
        f"heads of {head_size} are not a multiple of {HEAD_MULTIPLE}, "
        "as GroupQueryAttention needs; use another format"
    )


def rotary_tables(decoder: Decoder) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Compute cosines and sines of every position up to the model's longest context.

    Angles are rounded to float32 as transformers rounds them; the tables of far positions would
    differ otherwise.

    Shapes: (context, head / 2) each.
    """
    attention = decoder.attention
    assert decoder.context is not None
    per_token = frequencies(decoder.rope, attention.head_size).astype(np.float32)
    angles = np.arange(decoder.context, dtype=np.float32)[:, np.newaxis] * per_token
    wide = angles.astype(np.float64)  # the same table on every machine
    return np.cos(wide).astype(np.float32), np.sin(wide).astype(np.float32)


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
