"""OLMo 2: norms behind attention and feed-forward, and of all queries and of all keys.

Source: transformers, modeling_olmo2.py and configuration_olmo2.py.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import (
    ATTENTION,
    BEHIND,
    HEAD_NORMS,
    Differences,
    llama_like,
)
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("olmo2",)
COMPUTES = frozenset({features.WHOLE_NORMS, features.NORMS_BEHIND})
NAMES = RuntimeNames(
    transformers="Olmo2ForCausalLM",
    gguf=GgufNames("olmo2", computes=COMPUTES, plain_heads=True),
    mlx=MlxNames("olmo2", ATTENTION, computes=COMPUTES, foreign_keys=("mlp_bias",)),
    genai="decoder",
)
SILENT = {"rms_norm_eps": 1e-5}


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe an OLMo 2: biases of attention only where the config asks for them."""
    own = Differences(
        biased=ATTENTION if config.get("attention_bias") else (),
        bias_keys=("attention_bias",),
        norms=BEHIND,
        head_norms=HEAD_NORMS,
        whole_norms=True,
    )
    return llama_like({**SILENT, **config}, NAMES, own)
