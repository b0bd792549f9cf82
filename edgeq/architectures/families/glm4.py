"""GLM 4 of model type glm4: a GLM with norms on both sides.

Source: transformers, modeling_glm4.py and configuration_glm4.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import (
    QUERIES_KEYS_VALUES,
    Differences,
    LinearNames,
    llama_like,
)
from edgeq.architectures.rope import rope_of
from edgeq.decoder import Decoder, NormPlace
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("glm4",)
COMPUTES = frozenset(
    {
        features.FUSED,
        features.PARTIAL_ROTARY,
        features.ADJACENT_ROTARY,
        features.NORMS_AROUND,
    }
)
NAMES = RuntimeNames(
    transformers="Glm4ForCausalLM",
    gguf=GgufNames("glm4", QUERIES_KEYS_VALUES, computes=COMPUTES, adjacent_rotary=True),
    mlx=MlxNames(
        "glm4", QUERIES_KEYS_VALUES, computes=COMPUTES, rope_kinds=("default",), head="own"
    ),
    genai="decoder",
)
SILENT = {"head_dim": 128, "attention_bias": True, "rms_norm_eps": 0.00000015625}
PART = 0.5  # of a head is rotated where the config is silent
NORMS: Mapping[NormPlace, str] = {
    "before attention": "input_layernorm",
    "after attention": "post_self_attn_layernorm",
    "before mlp": "post_attention_layernorm",
    "after mlp": "post_mlp_layernorm",
}


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a GLM 4: biases of queries, keys and values by attention_bias."""
    config = {**SILENT, **config}
    own = Differences(
        biased=QUERIES_KEYS_VALUES if config["attention_bias"] else (),
        bias_keys=("attention_bias",),
        ropes=replace(rope_of(config, part=PART), adjacent=True),
        norms=NORMS,
        linears=LinearNames(up=("mlp.gate_up_proj",)),
    )
    return llama_like(config, NAMES, own)
