"""Falcon 7B, 40B, 180B and 2 11B: attention and feed-forward in parallel, few heads of keys.

Source: transformers, modeling_falcon.py and configuration_falcon.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.config_checks import positive_integer
from edgeq.architectures.llama_like import Differences, LinearNames, llama_like
from edgeq.decoder import Decoder, NormPlace
from edgeq.runtime_names import GgufNames, RuntimeNames

MODEL_TYPES = ("falcon",)
KEYS = {
    "n_embed": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "activation": "hidden_act",
}
LINEARS = LinearNames(
    inputs=("self_attention.query_key_value",),
    output="self_attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    gated=False,
)
BIASED = (*LINEARS.inputs, LINEARS.output, *LINEARS.up, LINEARS.down)
COMPUTES = frozenset(
    {
        features.LAYER_NORMS,
        features.NORM_BIASES,
        features.PLAIN_MLP,
        features.FUSED,
        features.GROUPED,
        features.PARALLEL,
        features.TWO_NORMS,
    }
)
NAMES = RuntimeNames(
    transformers="FalconForCausalLM",
    gguf=GgufNames(
        "falcon",
        computes=COMPUTES,
        activations=("gelu", "gelu_new"),
        plain_heads=True,
    ),
)
ONE_NORM: Mapping[NormPlace, str] = {"before attention": "input_layernorm"}
TWO_NORMS: Mapping[NormPlace, str] = {"before attention": "ln_attn", "before mlp": "ln_mlp"}
SILENT = {
    "hidden_act": "gelu",
    "max_position_embeddings": 2048,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


def describe(config: Mapping[str, Any]) -> Decoder | None:
    """Describe a Falcon; ones with other positions, or of blocks in sequence, are not described."""
    if config.get("alibi") or not config.get("parallel_attn", True):
        return None
    config = {**SILENT, **config}
    newer = bool(config.get("new_decoder_architecture"))
    if not newer:
        config["num_key_value_heads"] = 1 if config.get("multi_query", True) else None
    if config.get("ffn_hidden_size") is None:
        config["ffn_hidden_size"] = 4 * positive_integer(config, "hidden_size")
    config["intermediate_size"] = config["ffn_hidden_size"]
    two = newer and config.get("num_ln_in_parallel_attn") in (None, 2)
    own = Differences(
        biased=BIASED if config.get("bias") else (),
        bias_keys=("bias",),
        norms=TWO_NORMS if two else ONE_NORM,
        norm="layer",
        norm_bias=True,
        final_norm="transformer.ln_f.weight",
        linears=LINEARS,
    )
    return replace(
        llama_like(config, NAMES, own),
        embedding="transformer.word_embeddings.weight",
        blocks="transformer.h",
        parallel=True,
        traits=(features.GROUPED, *((features.TWO_NORMS,) if two else ())),
    )
