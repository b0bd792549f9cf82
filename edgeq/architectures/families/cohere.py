"""Cohere's Command R: one layer norm a block, neighbouring columns are rotated, logits are scaled.

Source: transformers, modeling_cohere.py and configuration_cohere.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import ATTENTION, Differences, llama_like
from edgeq.architectures.rope import rope_of
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("cohere",)
COMPUTES = frozenset(
    {
        features.LAYER_NORMS,
        features.PARALLEL,
        features.ADJACENT_ROTARY,
        features.LOGIT_SCALE,
    }
)
NAMES = RuntimeNames(
    transformers="CohereForCausalLM",
    gguf=GgufNames("command-r", computes=COMPUTES, plain_heads=True, adjacent_rotary=True),
    mlx=MlxNames(
        "cohere",
        ATTENTION,
        computes=COMPUTES,
        foreign_keys=("layer_norm_bias",),
        plain_heads=True,
        rope_kinds=("default",),
        head="tied",
    ),
    genai="decoder",
)
SILENT = {"tie_word_embeddings": True, "layer_norm_eps": 1e-5, "logit_scale": 0.0625}
THETA = 500_000.0


def describe(config: Mapping[str, Any]) -> Decoder | None:
    """Describe a Command R; one whose queries and keys are normed is not described."""
    if config.get("use_qk_norm"):
        return None
    config = {**SILENT, **config}
    own = Differences(
        biased=ATTENTION if config.get("attention_bias") else (),
        bias_keys=("attention_bias",),
        ropes=replace(rope_of(config, theta=THETA), adjacent=True),
        norms={"before attention": "input_layernorm"},
        norm="layer",
    )
    decoder = llama_like(config, NAMES, own)
    return replace(decoder, parallel=True, logit_scale=float(config["logit_scale"]))
