"""Qwen 1.5, 2 and 3 with experts: model types qwen2_moe and qwen3_moe.

Source: transformers, modeling_qwen2_moe.py and modeling_qwen3_moe.py, and their configurations.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.config_checks import positive_integer
from edgeq.architectures.llama_like import (
    ATTENTION,
    HEAD_NORMS,
    MLX_STACKS,
    QUERIES_KEYS_VALUES,
    Differences,
    ExpertNames,
    block_count,
    expert_count,
    llama_like,
    sliding_windows,
)
from edgeq.decoder import Decoder, Experts
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("qwen2_moe", "qwen3_moe")
ROUTED = frozenset({features.EXPERTS, features.FREE_EXPERT_WEIGHTS})
SHARED = ROUTED | {features.SHARED_EXPERTS}
QWEN2 = RuntimeNames(
    transformers="Qwen2MoeForCausalLM",
    gguf=GgufNames("qwen2moe", QUERIES_KEYS_VALUES, computes=SHARED, plain_heads=True),
    mlx=MlxNames(
        "qwen2_moe",
        QUERIES_KEYS_VALUES,
        computes=SHARED,
        plain_heads=True,
        always_biased=True,
        rope_kinds=("default",),
        head="own",
        experts=MLX_STACKS,
        always=frozenset({features.FREE_EXPERT_WEIGHTS}),
    ),
)
NORMED = frozenset({features.EXPERTS, features.HEAD_NORMS})
QWEN3 = RuntimeNames(
    transformers="Qwen3MoeForCausalLM",
    gguf=GgufNames("qwen3moe", computes=NORMED),
    mlx=MlxNames(
        "qwen3_moe",
        computes=NORMED | {features.FREE_EXPERT_WEIGHTS, features.SOME_EXPERTS},
        rope_kinds=("default",),
        experts=MLX_STACKS,
    ),
)
NAMES = QWEN3
SILENT_QWEN2 = {
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "qkv_bias": True,
    "norm_topk_prob": False,
}
SILENT_QWEN3 = {
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": False,
}


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Qwen with experts; every decoder_sparse_step-th block has some."""
    if config["model_type"] == "qwen2_moe":
        return describe_qwen2({**SILENT_QWEN2, **config})
    return describe_qwen3({**SILENT_QWEN3, **config})


def describe_qwen2(config: Mapping[str, Any]) -> Decoder:
    """Describe a Qwen 1.5 or 2 with experts: every token passes a shared one, behind a gate."""
    hidden = positive_integer(config, "hidden_size")
    inner = positive_integer(config, "shared_expert_intermediate_size")
    names = ExpertNames(
        shared="mlp.shared_expert", others={"mlp.shared_expert_gate.weight": (1, hidden)}
    )
    own = Differences(
        biased=QUERIES_KEYS_VALUES if config["qkv_bias"] else (),
        bias_keys=("qkv_bias",),
        windows=sliding_windows(config),
        mixtures=mixtures(config),
        experts=experts_of(config, silent=60, shared_inner=inner),
        expert_names=names,
    )
    return llama_like(config, QWEN2, own)


def describe_qwen3(config: Mapping[str, Any]) -> Decoder:
    """Describe a Qwen 3 with experts: queries and keys are normed, no expert is shared."""
    own = Differences(
        biased=ATTENTION if config.get("attention_bias") else (),
        bias_keys=("attention_bias",),
        windows=sliding_windows(config),
        head_norms=HEAD_NORMS,
        mixtures=mixtures(config),
        experts=experts_of(config, silent=128),
    )
    return llama_like(config, QWEN3, own)


def experts_of(config: Mapping[str, Any], *, silent: int, shared_inner: int = 0) -> Experts:
    """Read the mixture of a Qwen."""
    return Experts(
        expert_count(config, silent=silent),
        positive_integer(config, "num_experts_per_tok"),
        positive_integer(config, "moe_intermediate_size"),
        shared_inner,
        normed=bool(config["norm_topk_prob"]),
    )


def mixtures(config: Mapping[str, Any]) -> list[bool]:
    """Say of every block whether it has experts, as transformers decides it."""
    step = config.get("decoder_sparse_step") or 1
    dense = config.get("mlp_only_layers") or ()
    return [index not in dense and (index + 1) % step == 0 for index in range(block_count(config))]
