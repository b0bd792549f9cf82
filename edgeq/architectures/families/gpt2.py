"""GPT-2: learned positions, and weights whose tensors have inputs before outputs.

Source: transformers, modeling_gpt2.py and configuration_gpt2.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.config_checks import positive_integer
from edgeq.architectures.llama_like import Differences, LinearNames, llama_like
from edgeq.decoder import Decoder, Layer
from edgeq.runtime_names import GgufNames, RuntimeNames
from edgeq.types import LinearSpec

MODEL_TYPES = ("gpt2",)
KEYS = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "activation_function": "hidden_act",
}
LINEARS = LinearNames(
    inputs=("attn.c_attn",),
    output="attn.c_proj",
    up=("mlp.c_fc",),
    down="mlp.c_proj",
    gated=False,
)
BIASED = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
COMPUTES = frozenset(
    {
        features.LAYER_NORMS,
        features.NORM_BIASES,
        features.PLAIN_MLP,
        features.FUSED,
        features.NO_ROTARY,
        features.LEARNED_POSITIONS,
    }
)
NAMES = RuntimeNames(
    transformers="GPT2LMHeadModel",
    gguf=GgufNames("gpt2", BIASED, computes=COMPUTES, activations=("gelu_new",), plain_heads=True),
)
SILENT = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 1024,
    "hidden_act": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


def describe(config: Mapping[str, Any]) -> Decoder | None:
    """Describe a GPT-2; ones with other scales of scores or cross attention are not described."""
    if not config.get("scale_attn_weights", True) or config.get("add_cross_attention"):
        return None
    if config.get("scale_attn_by_inverse_layer_idx"):
        return None
    config = {**SILENT, **config}
    hidden = positive_integer(config, "hidden_size")
    if config.get("intermediate_size") is None:
        config["intermediate_size"] = 4 * hidden
    own = Differences(
        biased=BIASED,
        ropes=[None] * positive_integer(config, "num_hidden_layers"),
        norms={"before attention": "ln_1", "before mlp": "ln_2"},
        norm="layer",
        norm_bias=True,
        final_norm="transformer.ln_f.weight",
        linears=LINEARS,
    )
    decoder = llama_like(config, NAMES, own)
    positions = {
        "transformer.wpe.weight": (positive_integer(config, "max_position_embeddings"), hidden)
    }
    return replace(
        decoder,
        layers=tuple(transposed(layer) for layer in decoder.layers),
        embedding="transformer.wte.weight",
        blocks="transformer.h",
        others={**decoder.others, **positions},
        traits=(features.LEARNED_POSITIONS,),
    )


def transposed(layer: Layer) -> Layer:
    """Describe the same block where all weights have inputs before outputs."""
    sites = tuple(tuple(turned(linear) for linear in site) for site in layer.sites)
    return replace(layer, sites=sites)


def turned(linear: LinearSpec) -> LinearSpec:
    rows, columns = linear.shape
    return replace(linear, transposed=True, stored=(columns, rows))
