"""Arcee's AFM: a Llama with squared ReLU and no gate.

Source: transformers, modeling_arcee.py and configuration_arcee.py.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import ATTENTION, Differences, LinearNames, llama_like
from edgeq.architectures.rope import WITH_YARN
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, RuntimeNames

MODEL_TYPES = ("arcee",)
UP_DOWN = ("mlp.up_proj", "mlp.down_proj")
NAMES = RuntimeNames(
    transformers="ArceeForCausalLM",
    gguf=GgufNames(
        "arcee",
        computes=frozenset({features.PLAIN_MLP}),
        activations=("relu2",),
        adjacent_rotary=True,
        rope_kinds=WITH_YARN,
    ),
    genai="decoder",
)
SILENT = {"hidden_act": "relu2", "rms_norm_eps": 1e-5}


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe an AFM: biases only where the config asks for them."""
    config = {**SILENT, **config}
    biased = [*(ATTENTION if config.get("attention_bias") else ())]
    biased += UP_DOWN if config.get("mlp_bias") else ()
    own = Differences(
        biased=biased,
        bias_keys=("attention_bias", "mlp_bias"),
        linears=LinearNames(up=UP_DOWN[:1], gated=False),
    )
    return llama_like(config, NAMES, own)
