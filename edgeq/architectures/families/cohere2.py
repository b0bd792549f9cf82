"""Cohere's Command R7B: a Command R of which three of four blocks slide, and only these rotate.

Source: transformers, modeling_cohere2.py and configuration_cohere2.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import (
    ATTENTION,
    SLIDING,
    Differences,
    block_kinds,
    llama_like,
    windows_of,
)
from edgeq.architectures.rope import rope_of
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("cohere2",)
COMPUTES = frozenset(
    {
        features.LAYER_NORMS,
        features.PARALLEL,
        features.ADJACENT_ROTARY,
        features.NO_ROTARY,
        features.LOGIT_SCALE,
    }
)
NAMES = RuntimeNames(
    transformers="Cohere2ForCausalLM",
    gguf=GgufNames(
        "cohere2", computes=COMPUTES | {features.WINDOWS}, plain_heads=True, adjacent_rotary=True
    ),
    mlx=MlxNames(
        "cohere2",
        ATTENTION,
        computes=COMPUTES,
        foreign_keys=("layer_norm_bias",),
        plain_heads=True,
        rope_kinds=("default",),
        sliding="period",
        head="tied",
    ),
    genai="decoder",
)
SILENT = {
    "tie_word_embeddings": True,
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "sliding_window": 4096,
}


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Command R7B: blocks of full attention know no positions."""
    config = {**SILENT, **config}
    kinds = block_kinds(config, every=config.get("sliding_window_pattern") or 4)
    rope = replace(rope_of(config), adjacent=True)
    own = Differences(
        biased=ATTENTION if config.get("attention_bias") else (),
        bias_keys=("attention_bias",),
        windows=windows_of(config, kinds),
        ropes=[rope if kind == SLIDING else None for kind in kinds],
        norms={"before attention": "input_layernorm"},
        norm="layer",
    )
    decoder = llama_like(config, NAMES, own)
    return replace(decoder, parallel=True, logit_scale=float(config["logit_scale"]))
