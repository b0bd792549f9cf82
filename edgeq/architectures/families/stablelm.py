"""StableLM: layer norms, and a quarter of each head is rotated.

Source: transformers, modeling_stablelm.py and configuration_stablelm.py.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import QUERIES_KEYS_VALUES, Differences, llama_like
from edgeq.architectures.rope import rope_of
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("stablelm",)
COMPUTES = frozenset({features.LAYER_NORMS, features.NORM_BIASES, features.PARTIAL_ROTARY})
NAMES = RuntimeNames(
    transformers="StableLmForCausalLM",
    gguf=GgufNames("stablelm", QUERIES_KEYS_VALUES, computes=COMPUTES, plain_heads=True),
    mlx=MlxNames(
        "stablelm",
        QUERIES_KEYS_VALUES,
        computes=COMPUTES,
        plain_heads=True,
        rope_kinds=("default",),
        head="own",
    ),
    genai="decoder",
)
SILENT = {"layer_norm_eps": 1e-5}
PART = 0.25  # of a head is rotated where the config is silent


def describe(config: Mapping[str, Any]) -> Decoder | None:
    """Describe a StableLM; ones with normed heads or parallel blocks are not described."""
    if config.get("qk_layernorm") or config.get("use_parallel_residual"):
        return None
    config = {**SILENT, **config}
    own = Differences(
        biased=QUERIES_KEYS_VALUES if config.get("use_qkv_bias") else (),
        bias_keys=("use_qkv_bias",),
        ropes=rope_of(config, part=PART),
        norm="layer",
        norm_bias=True,
    )
    return llama_like(config, NAMES, own)
