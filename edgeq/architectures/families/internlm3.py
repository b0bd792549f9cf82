"""InternLM 3: a Llama with other names for the keys of its biases.

Source: transformers, modeling_internlm3.py and configuration_internlm3.py.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures.llama_like import ATTENTION, MLP, Differences, llama_like
from edgeq.architectures.rope import WITH_YARN
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("internlm3",)
NAMES = RuntimeNames(
    transformers="InternLM3ForCausalLM",
    gguf=GgufNames("llama", (*ATTENTION, *MLP), adjacent_rotary=True, rope_kinds=WITH_YARN),
    mlx=MlxNames(
        "internlm3",
        foreign_keys=("qkv_bias", "bias"),
        plain_heads=True,
        rope_kinds=("default", "linear", "dynamic"),
    ),
    genai="decoder",
)
SILENT = {"head_dim": 128, "rms_norm_eps": 1e-5}


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe an InternLM 3: qkv_bias and bias are older names of the keys of biases."""
    config = {**SILENT, **config}
    biased = [*(ATTENTION if config.get("attention_bias", config.get("qkv_bias")) else ())]
    biased += MLP if config.get("mlp_bias", config.get("bias")) else ()
    own = Differences(biased=biased, bias_keys=("qkv_bias", "bias"))
    return llama_like(config, NAMES, own)
