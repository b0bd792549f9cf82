"""ERNIE 4.5, dense: neighbouring columns are rotated.

Source: transformers, modeling_ernie4_5.py and configuration_ernie4_5.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import ATTENTION, MLP, Differences, llama_like
from edgeq.architectures.rope import rope_of
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("ernie4_5",)
COMPUTES = frozenset({features.ADJACENT_ROTARY})
NAMES = RuntimeNames(
    transformers="Ernie4_5ForCausalLM",
    gguf=GgufNames("ernie4_5", computes=COMPUTES, adjacent_rotary=True),
    mlx=MlxNames("ernie4_5", (*ATTENTION, *MLP), computes=COMPUTES, rope_kinds=("default",)),
    genai="ernie4_5",
)
SILENT = {"head_dim": 128, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}
THETA = 500_000.0


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe an ERNIE 4.5: biases by use_bias."""
    config = {**SILENT, **config}
    own = Differences(
        biased=(*ATTENTION, *MLP) if config.get("use_bias") else (),
        bias_keys=("use_bias",),
        ropes=replace(rope_of(config, theta=THETA), adjacent=True),
    )
    return llama_like(config, NAMES, own)
