"""Llama 2 and 3, and what was built like it: SmolLM 2, TinyLlama, Yi ...

Source: transformers, modeling_llama.py.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures.llama_like import ATTENTION, MLP, Differences, llama_like
from edgeq.architectures.rope import WITH_YARN
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("llama",)
NAMES = RuntimeNames(
    transformers="LlamaForCausalLM",
    gguf=GgufNames("llama", (*ATTENTION, *MLP), adjacent_rotary=True, rope_kinds=WITH_YARN),
    mlx=MlxNames("llama", (*ATTENTION, *MLP), foreign_keys=("layer_types",)),
    genai="llama",
)


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Llama: biases only where the config asks for them."""
    biased: list[str] = []
    if config.get("attention_bias"):
        biased += ATTENTION
    if config.get("mlp_bias"):
        biased += MLP
    own = Differences(biased=biased, bias_keys=("attention_bias", "mlp_bias"))
    return llama_like(config, NAMES, own)
