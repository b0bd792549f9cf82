"""Bloom: scores are lowered by distance instead of rotated, and the embedding is normed.

Source: transformers, modeling_bloom.py and configuration_bloom.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.config_checks import positive_integer
from edgeq.architectures.llama_like import Differences, LinearNames, llama_like
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, RuntimeNames

MODEL_TYPES = ("bloom",)
KEYS = {
    "n_embed": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "seq_length": "max_position_embeddings",
}
LINEARS = LinearNames(
    inputs=("self_attention.query_key_value",),
    output="self_attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    gated=False,
)
BIASED = (*LINEARS.inputs, LINEARS.output, *LINEARS.up, LINEARS.down)
EMBEDDING_NORM = "a norm of the embedding"
COMPUTES = frozenset(
    {
        features.LAYER_NORMS,
        features.NORM_BIASES,
        features.PLAIN_MLP,
        features.FUSED,
        features.GROUPED,
        features.NO_ROTARY,
        features.ALIBI,
        EMBEDDING_NORM,
    }
)
NAMES = RuntimeNames(
    transformers="BloomForCausalLM",
    gguf=GgufNames(
        "bloom",
        BIASED,
        computes=COMPUTES,
        activations=("gelu_new",),
        plain_heads=True,
    ),
)
SILENT = {
    "max_position_embeddings": 2048,  # all of them were trained on
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


def describe(config: Mapping[str, Any]) -> Decoder | None:
    """Describe a Bloom; one that adds what a norm gives to the hidden states is not described."""
    if config.get("apply_residual_connection_post_layernorm"):
        return None
    config = {**SILENT, **config}
    hidden = positive_integer(config, "hidden_size")
    config |= {"intermediate_size": 4 * hidden, "num_key_value_heads": None}
    own = Differences(
        biased=BIASED,
        ropes=[None] * positive_integer(config, "num_hidden_layers"),
        norm="layer",
        norm_bias=True,
        final_norm="transformer.ln_f.weight",
        linears=LINEARS,
        activation="gelu_new",
    )
    decoder = llama_like(config, NAMES, own)
    norm = "transformer.word_embeddings_layernorm"
    return replace(
        decoder,
        embedding="transformer.word_embeddings.weight",
        blocks="transformer.h",
        others={**decoder.others, f"{norm}.weight": (hidden,), f"{norm}.bias": (hidden,)},
        traits=(features.GROUPED, features.ALIBI, EMBEDDING_NORM),
    )
