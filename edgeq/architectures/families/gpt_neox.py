"""GPT-NeoX and Pythia: attention and feed-forward in parallel, a part of each head rotates.

Source: transformers, modeling_gpt_neox.py and configuration_gpt_neox.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import Differences, LinearNames, llama_like
from edgeq.architectures.rope import rope_of
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, RuntimeNames

MODEL_TYPES = ("gpt_neox",)
KEYS = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}
LINEARS = LinearNames(
    inputs=("attention.query_key_value",),
    output="attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    gated=False,
)
OF_ATTENTION = ("attention.query_key_value", "attention.dense")
OF_MLP = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
COMPUTES = frozenset(
    {
        features.LAYER_NORMS,
        features.NORM_BIASES,
        features.PLAIN_MLP,
        features.FUSED,
        features.GROUPED,
        features.PARTIAL_ROTARY,
        features.PARALLEL,
        features.TWO_NORMS,
    }
)
NAMES = RuntimeNames(
    transformers="GPTNeoXForCausalLM",
    gguf=GgufNames(
        "gptneox",
        (*OF_ATTENTION, *OF_MLP),
        computes=COMPUTES,
        activations=("gelu", "gelu_new", "gelu_fast"),
        plain_heads=True,
    ),
)
SILENT = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "attention_bias": True}
PART = 0.25  # of a head is rotated where the config is silent


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a GPT-NeoX: biases of attention by attention_bias, those of feed-forward always."""
    config = {**SILENT, **config, "num_key_value_heads": None}
    parallel = bool(config.get("use_parallel_residual", True))
    own = Differences(
        biased=(*(OF_ATTENTION if config["attention_bias"] else ()), *OF_MLP),
        bias_keys=("attention_bias",),
        ropes=rope_of(config, part=PART),
        norm="layer",
        norm_bias=True,
        final_norm="gpt_neox.final_layer_norm.weight",
        linears=LINEARS,
    )
    return replace(
        llama_like(config, NAMES, own),
        embedding="gpt_neox.embed_in.weight",
        blocks="gpt_neox.layers",
        head="embed_out.weight",
        parallel=parallel,
        traits=(features.GROUPED, *((features.TWO_NORMS,) if parallel else ())),
    )
