"""Helium: a Llama whose neighbouring columns are rotated.

Source: transformers, modeling_helium.py and configuration_helium.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import MLP, QUERIES_KEYS_VALUES, Differences, llama_like
from edgeq.architectures.rope import rope_of
from edgeq.decoder import Decoder
from edgeq.runtime_names import MlxNames, RuntimeNames

MODEL_TYPES = ("helium",)
NAMES = RuntimeNames(
    transformers="HeliumForCausalLM",
    mlx=MlxNames(
        "helium",
        (*QUERIES_KEYS_VALUES, *MLP),
        computes=frozenset({features.ADJACENT_ROTARY}),
        plain_heads=True,
        rope_kinds=("default",),
        head="own",
    ),
    genai="decoder",
)
SILENT = {"head_dim": 128, "rms_norm_eps": 1e-8}
THETA = 100_000.0


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Helium: biases only where the config asks for them, none of the output."""
    config = {**SILENT, **config}
    biased = [*(QUERIES_KEYS_VALUES if config.get("attention_bias") else ())]
    biased += MLP if config.get("mlp_bias") else ()
    own = Differences(
        biased=biased,
        bias_keys=("attention_bias", "mlp_bias"),
        ropes=replace(rope_of(config, theta=THETA), adjacent=True),
    )
    return llama_like(config, NAMES, own)
