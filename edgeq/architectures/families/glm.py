"""GLM 4 of model type glm: gate and up are one matrix, half of each head is rotated.

Source: transformers, modeling_glm.py and configuration_glm.py.
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
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, RuntimeNames

MODEL_TYPES = ("glm",)
COMPUTES = frozenset({features.FUSED, features.PARTIAL_ROTARY, features.ADJACENT_ROTARY})
NAMES = RuntimeNames(
    transformers="GlmForCausalLM",
    gguf=GgufNames(
        "chatglm", QUERIES_KEYS_VALUES, computes=COMPUTES, adjacent_rotary=True, plain_heads=True
    ),
    genai="decoder",
)
SILENT = {"head_dim": 128, "attention_bias": True, "rms_norm_eps": 0.00000015625}
PART = 0.5  # of a head is rotated where the config is silent


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a GLM: biases of queries, keys and values by attention_bias."""
    config = {**SILENT, **config}
    own = Differences(
        biased=QUERIES_KEYS_VALUES if config["attention_bias"] else (),
        bias_keys=("attention_bias",),
        ropes=replace(rope_of(config, part=PART), adjacent=True),
        linears=LinearNames(up=("mlp.gate_up_proj",)),
    )
    return llama_like(config, NAMES, own)
