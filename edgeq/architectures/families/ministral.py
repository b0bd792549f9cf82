"""Ministral: a Mistral of which some blocks slide, or all.

Source: transformers, modeling_ministral.py and configuration_ministral.py.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures.llama_like import (
    FULL,
    SLIDING,
    Differences,
    block_count,
    block_kinds,
    llama_like,
    windows_of,
)
from edgeq.architectures.rope import WITH_YARN
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("ministral",)
NAMES = RuntimeNames(
    transformers="MinistralForCausalLM",
    gguf=GgufNames("llama", adjacent_rotary=True, rope_kinds=WITH_YARN),
    mlx=MlxNames(
        "llama",
        foreign_keys=("attention_bias", "mlp_bias"),
        sliding="types",
        model_type="llama",
    ),
    genai="decoder",
)
SILENT = {"sliding_window": 4096}


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Ministral: all blocks slide where the config names none."""
    config = {**SILENT, **config}
    kinds = block_kinds(config, every=0)
    if config.get("layer_types") is None:
        kind = FULL if config["sliding_window"] is None else SLIDING
        kinds = [kind] * block_count(config)
    return llama_like(config, NAMES, Differences(windows=windows_of(config, kinds)))
