"""Seed-OSS: a Llama with biases of queries, keys and values.

Source: transformers, modeling_seed_oss.py and configuration_seed_oss.py.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures.llama_like import (
    ATTENTION,
    MLP,
    QUERIES_KEYS_VALUES,
    Differences,
    llama_like,
)
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("seed_oss",)
NAMES = RuntimeNames(
    transformers="SeedOssForCausalLM",
    gguf=GgufNames("seed_oss", QUERIES_KEYS_VALUES),
    # mlx-lm multiplies by the words of a quantized embedding where the head is tied
    mlx=MlxNames("seed_oss", (*ATTENTION, *MLP), head="own"),
    genai="decoder",
)
SILENT = {"head_dim": 128, "attention_bias": True, "rms_norm_eps": 1e-6}


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Seed-OSS: output and feed-forward part have biases by keys of their own."""
    config = {**SILENT, **config}
    biased = [*(QUERIES_KEYS_VALUES if config["attention_bias"] else ())]
    biased += ["self_attn.o_proj"] if config.get("attention_out_bias") else []
    biased += MLP if config.get("mlp_bias") else ()
    keys = ("attention_bias", "attention_out_bias", "mlp_bias")
    return llama_like(config, NAMES, Differences(biased=biased, bias_keys=keys))
