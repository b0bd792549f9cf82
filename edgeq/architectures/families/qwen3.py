"""Qwen 3, dense: queries and keys are normed head by head, some blocks may slide.

Source: transformers, modeling_qwen3.py and configuration_qwen3.py.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import (
    ATTENTION,
    HEAD_NORMS,
    Differences,
    llama_like,
    sliding_windows,
)
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("qwen3",)
COMPUTES = frozenset({features.HEAD_NORMS})
HEAD = 128  # what transformers takes where the key is absent, whatever the hidden size
NAMES = RuntimeNames(
    transformers="Qwen3ForCausalLM",
    gguf=GgufNames("qwen3", computes=COMPUTES),
    mlx=MlxNames("qwen3", computes=COMPUTES),
    genai="qwen3",
)


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Qwen 3: biases only where the config asks for them."""
    own = Differences(
        biased=ATTENTION if config.get("attention_bias") else (),
        bias_keys=("attention_bias",),
        windows=sliding_windows(config),
        head_norms=HEAD_NORMS,
    )
    return llama_like({"head_dim": HEAD, **config}, NAMES, own)
