"""Nemotron and Minitron: layer norms whose weights are stored less one, squared ReLU, no gate.

Source: transformers, modeling_nemotron.py and configuration_nemotron.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import ATTENTION, Differences, LinearNames, llama_like
from edgeq.architectures.rope import rope_of
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("nemotron",)
UP_DOWN = ("mlp.up_proj", "mlp.down_proj")
LINEARS = LinearNames(up=UP_DOWN[:1], gated=False)
COMPUTES = frozenset(
    {
        features.LAYER_NORMS,
        features.NORM_BIASES,
        features.NORM_OFFSET,
        features.PLAIN_MLP,
        features.PARTIAL_ROTARY,
    }
)
NAMES = RuntimeNames(
    transformers="NemotronForCausalLM",
    gguf=GgufNames(
        "nemotron",
        (*ATTENTION, *UP_DOWN),
        computes=COMPUTES,
        activations=("relu2",),
        plain_heads=True,
    ),
    mlx=MlxNames(
        "nemotron",
        (*ATTENTION, *UP_DOWN),
        computes=COMPUTES,
        activations=("relu2",),
        rope_kinds=("default",),
    ),
    genai="nemotron",
)
SILENT = {"hidden_act": "relu2", "norm_eps": 1e-5}
PART = 0.5  # of a head is rotated where the config is silent


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Nemotron: biases only where the config asks for them."""
    config = {**SILENT, **config}
    biased = [*(ATTENTION if config.get("attention_bias") else ())]
    biased += UP_DOWN if config.get("mlp_bias") else ()
    own = Differences(
        biased=biased,
        bias_keys=("attention_bias", "mlp_bias"),
        ropes=rope_of(config, part=PART),
        norm="layer",
        norm_bias=True,
        linears=LINEARS,
    )
    return replace(llama_like(config, NAMES, own), norm_offset=1.0)
