"""Mixtral: a Mistral with experts.

Source: transformers, modeling_mixtral.py and configuration_mixtral.py.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.config_checks import positive_integer
from edgeq.architectures.llama_like import Differences, ExpertNames, expert_count, llama_like
from edgeq.architectures.rope import WITH_YARN, rope_of
from edgeq.decoder import Decoder, Experts
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("mixtral",)
COMPUTES = frozenset({features.EXPERTS})
NAMES = RuntimeNames(
    transformers="MixtralForCausalLM",
    gguf=GgufNames("llama", computes=COMPUTES, adjacent_rotary=True, rope_kinds=WITH_YARN),
    mlx=MlxNames(
        "mixtral",
        computes=COMPUTES,
        plain_heads=True,
        rope_kinds=("default",),
        experts={
            "w1": "block_sparse_moe.switch_mlp.gate_proj",
            "w2": "block_sparse_moe.switch_mlp.down_proj",
            "w3": "block_sparse_moe.switch_mlp.up_proj",
        },
    ),
)
EXPERTS = ExpertNames(
    router="block_sparse_moe.gate.weight",
    experts="block_sparse_moe.experts",
    gate="w1",
    up="w3",
    down="w2",
)
SILENT = {"num_experts_per_tok": 2}
THETA = 1_000_000.0


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Mixtral: every block has experts, and one window or none."""
    config = {**SILENT, **config}
    stated = config.get("sliding_window")
    experts = Experts(
        expert_count(config, silent=8),
        positive_integer(config, "num_experts_per_tok"),
        positive_integer(config, "intermediate_size"),
    )
    own = Differences(
        windows=None if stated is None else positive_integer(config, "sliding_window"),
        ropes=rope_of(config, theta=THETA),
        experts=experts,
        expert_names=EXPERTS,
    )
    return llama_like(config, NAMES, own)
