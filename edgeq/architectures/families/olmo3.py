"""OLMo 3: an OLMo 2 of which three of four blocks slide.

Source: transformers, modeling_olmo3.py and configuration_olmo3.py.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import (
    ATTENTION,
    BEHIND,
    FULL,
    HEAD_NORMS,
    SLIDING,
    Differences,
    block_kinds,
    llama_like,
    windows_of,
)
from edgeq.architectures.rope import rope_of_kind
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("olmo3",)
COMPUTES = frozenset({features.WHOLE_NORMS, features.NORMS_BEHIND})
NAMES = RuntimeNames(
    transformers="Olmo3ForCausalLM",
    gguf=GgufNames(
        "olmo2", computes=COMPUTES | {features.WINDOWS, features.ROTARY_BY_BLOCK}, plain_heads=True
    ),
    mlx=MlxNames(
        "olmo3",
        ATTENTION,
        computes=COMPUTES | {features.ROTARY_BY_BLOCK},
        sliding="both types",
    ),
    genai="decoder",
)
SILENT = {"sliding_window": 4096, "rms_norm_eps": 1e-5}
THETA = 500_000.0


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe an OLMo 3: a base at the top of the config is that of full attention."""
    config = {**SILENT, **config}
    kinds = block_kinds(config, every=4)
    ropes = {
        FULL: rope_of_kind(config, FULL, top="rope_theta", theta=THETA),
        SLIDING: rope_of_kind(config, SLIDING, top=None, theta=THETA),
    }
    own = Differences(
        biased=ATTENTION if config.get("attention_bias") else (),
        bias_keys=("attention_bias",),
        windows=windows_of(config, kinds),
        ropes=[ropes[kind] for kind in kinds],
        norms=BEHIND,
        head_norms=HEAD_NORMS,
        whole_norms=True,
    )
    return llama_like(config, NAMES, own)
