"""Qwen 1.5, 2 and 2.5, dense: queries, keys and values have biases, some blocks may slide.

Source: transformers, modeling_qwen2.py and configuration_qwen2.py.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures.llama_like import (
    QUERIES_KEYS_VALUES,
    Differences,
    llama_like,
    sliding_windows,
)
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("qwen2",)
NAMES = RuntimeNames(
    transformers="Qwen2ForCausalLM",
    gguf=GgufNames("qwen2", QUERIES_KEYS_VALUES, plain_heads=True),
    mlx=MlxNames("qwen2", QUERIES_KEYS_VALUES, plain_heads=True, always_biased=True),
    genai="qwen2",
)


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Qwen 2: biases of queries, keys and values, windows as the config states them."""
    own = Differences(biased=QUERIES_KEYS_VALUES, windows=sliding_windows(config))
    return llama_like(config, NAMES, own)
