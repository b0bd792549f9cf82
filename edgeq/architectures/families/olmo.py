"""OLMo 1: layer norms without weights.

Source: transformers, modeling_olmo.py and configuration_olmo.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import ATTENTION, Differences, llama_like
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, RuntimeNames

MODEL_TYPES = ("olmo",)
BARE_NORMS = "norms without weights"
COMPUTES = frozenset({features.LAYER_NORMS, BARE_NORMS})
NAMES = RuntimeNames(
    transformers="OlmoForCausalLM",
    gguf=GgufNames("olmo", adjacent_rotary=True, computes=COMPUTES, plain_heads=True),
    genai="olmo",
)
EPSILON = 1e-5  # of transformers' norms; no config states it


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe an OLMo 1; some clip queries, keys and values."""
    own = Differences(
        biased=ATTENTION if config.get("attention_bias") else (),
        bias_keys=("attention_bias",),
        norms={},
        norm="layer",
        final_norm="",
    )
    decoder = llama_like(config, NAMES, own)
    clipped = ("clipped queries, keys and values",) if config.get("clip_qkv") else ()
    return replace(decoder, epsilon=EPSILON, traits=(BARE_NORMS, *clipped))
