"""Phi 1, 1.5 and 2: one layer norm a block, attention and feed-forward in parallel.

Source: transformers, modeling_phi.py and configuration_phi.py.
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
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("phi",)
LINEARS = LinearNames(output="self_attn.dense", up=("mlp.fc1",), down="mlp.fc2", gated=False)
BIASED = (*QUERIES_KEYS_VALUES, "self_attn.dense", "mlp.fc1", "mlp.fc2")
COMPUTES = frozenset(
    {
        features.LAYER_NORMS,
        features.NORM_BIASES,
        features.PARALLEL,
        features.PLAIN_MLP,
        features.PARTIAL_ROTARY,
        features.HEAD_BIAS,
    }
)
NAMES = RuntimeNames(
    transformers="PhiForCausalLM",
    gguf=GgufNames("phi2", BIASED, computes=COMPUTES, activations=("gelu_new",), plain_heads=True),
    mlx=MlxNames(
        "phi",
        BIASED,
        computes=COMPUTES,
        activations=("gelu_new", "gelu_pytorch_tanh"),
        plain_heads=True,
        always_biased=True,
        rope_kinds=("default",),
        head="own",
    ),
    genai="phi",
)
SILENT = {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}
PART = 0.5  # of a head is rotated where the config is silent


def describe(config: Mapping[str, Any]) -> Decoder | None:
    """Describe a Phi; one whose queries and keys are normed is not described."""
    if config.get("qk_layernorm"):
        return None
    config = {**SILENT, **config}
    own = Differences(
        biased=BIASED,
        ropes=rope_of(config, part=PART),
        norms={"before attention": "input_layernorm"},
        norm="layer",
        norm_bias=True,
        final_norm="model.final_layernorm.weight",
        linears=LINEARS,
    )
    decoder = llama_like(config, NAMES, own)
    bias = {"lm_head.bias": (decoder.vocabulary,)}
    return replace(decoder, parallel=True, others={**decoder.others, **bias})
