"""Granite: a Llama whose embedding, residuals, scores and logits are multiplied by constants.

Source: transformers, modeling_granite.py and configuration_granite.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import ATTENTION, MLP, Differences, llama_like
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("granite",)
COMPUTES = frozenset(
    {
        features.EMBEDDING_SCALE,
        features.RESIDUAL_SCALE,
        features.SCORE_SCALE,
        features.LOGIT_SCALE,
    }
)
NAMES = RuntimeNames(
    transformers="GraniteForCausalLM",
    gguf=GgufNames("granite", (*ATTENTION, *MLP), computes=COMPUTES, adjacent_rotary=True),
    mlx=MlxNames("granite", (*ATTENTION, *MLP), computes=COMPUTES, plain_heads=True),
    genai="granite",
)
SILENT = {
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "logits_scaling": 1.0,
    "rms_norm_eps": 1e-6,
}


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Granite: logits are divided by logits_scaling."""
    config = {**SILENT, **config}
    biased = [*(ATTENTION if config.get("attention_bias") else ())]
    biased += MLP if config.get("mlp_bias") else ()
    own = Differences(
        biased=biased,
        bias_keys=("attention_bias", "mlp_bias"),
        scale=float(config["attention_multiplier"]),
    )
    return replace(
        llama_like(config, NAMES, own),
        embedding_scale=float(config["embedding_multiplier"]),
        residual_scale=float(config["residual_multiplier"]),
        logit_scale=1 / float(config["logits_scaling"]),
    )
