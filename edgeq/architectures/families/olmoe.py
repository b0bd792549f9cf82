"""OLMoE: experts, and norms of all queries and of all keys.

Source: transformers, modeling_olmoe.py and configuration_olmoe.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.config_checks import positive_integer
from edgeq.architectures.llama_like import (
    ATTENTION,
    HEAD_NORMS,
    MLX_STACKS,
    Differences,
    expert_count,
    llama_like,
)
from edgeq.decoder import Decoder, Experts
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("olmoe",)
COMPUTES = frozenset({features.EXPERTS, features.FREE_EXPERT_WEIGHTS, features.WHOLE_NORMS})
NAMES = RuntimeNames(
    transformers="OlmoeForCausalLM",
    gguf=GgufNames("olmoe", computes=COMPUTES),
    mlx=MlxNames(
        "olmoe",
        ATTENTION,
        computes=COMPUTES,
        foreign_keys=("mlp_bias",),
        experts=MLX_STACKS,
    ),
)
SILENT = {"num_experts_per_tok": 8, "rms_norm_eps": 1e-5}


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe an OLMoE; some clip queries, keys and values."""
    config = {**SILENT, **config}
    experts = Experts(
        expert_count(config, silent=64),
        positive_integer(config, "num_experts_per_tok"),
        positive_integer(config, "intermediate_size"),
        normed=bool(config.get("norm_topk_prob")),
    )
    own = Differences(
        biased=ATTENTION if config.get("attention_bias") else (),
        bias_keys=("attention_bias",),
        head_norms=HEAD_NORMS,
        whole_norms=True,
        experts=experts,
    )
    clipped = ("clipped queries, keys and values",) if config.get("clip_qkv") else ()
    return replace(llama_like(config, NAMES, own), traits=clipped)
