"""Qwen 3, dense: queries and keys are normed head by head, some blocks may slide.

Source: transformers, modeling_qwen3.py and configuration_qwen3.py.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures.llama_like import ATTENTION, Differences, llama_like, sliding_windows
from edgeq.decoder import Decoder, GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("qwen3",)
HEAD = 128  # what transformers takes where the key is absent, whatever the hidden size
NAMES = RuntimeNames(
    transformers="Qwen3ForCausalLM",
    gguf=GgufNames("qwen3"),
    mlx=MlxNames("qwen3"),
    genai="qwen3",
)


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Qwen 3: biases only where the config asks for them."""
    own = Differences(
        biased=ATTENTION if config.get("attention_bias") else (),
        bias_keys=("attention_bias",),
        windows=sliding_windows(config),
        head_norms=True,
    )
    return llama_like({"head_dim": HEAD, **config}, NAMES, own)
