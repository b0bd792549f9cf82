"""GLM 4.5 and 4.6: experts chosen by sigmoids and a learned correction, behind dense blocks.

Source: transformers, modeling_glm4_moe.py and configuration_glm4_moe.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.config_checks import positive_integer
from edgeq.architectures.llama_like import (
    HEAD_NORMS,
    MLX_STACKS,
    QUERIES_KEYS_VALUES,
    Differences,
    ExpertNames,
    block_count,
    expert_count,
    llama_like,
)
from edgeq.architectures.rope import rope_of
from edgeq.decoder import Decoder, Experts
from edgeq.runtime_names import MlxNames, RuntimeNames

MODEL_TYPES = ("glm4_moe",)
CORRECTED = "experts chosen with a learned correction"
GROUPED = "experts chosen by group"
ONE_EXPERT = "one expert a token, of weight one"
COMPUTES = frozenset(
    {
        features.EXPERTS,
        features.SHARED_EXPERTS,
        features.SOME_EXPERTS,
        features.SIGMOID_ROUTER,
        features.FREE_EXPERT_WEIGHTS,
        features.HEAD_NORMS,
        features.PARTIAL_ROTARY,
        CORRECTED,
    }
)
NAMES = RuntimeNames(
    transformers="Glm4MoeForCausalLM",
    mlx=MlxNames(
        "glm4_moe",
        QUERIES_KEYS_VALUES,
        computes=COMPUTES,
        foreign_keys=("scoring_func", "topk_method"),
        rope_kinds=("default",),
        head="own",
        experts=MLX_STACKS,
    ),
)
SILENT = {
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1408,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "use_qk_norm": False,
    "rms_norm_eps": 1e-5,
}
PART = 0.5  # of a head is rotated where the config is silent


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a GLM 4.5: the first blocks are dense, every token passes shared experts besides."""
    config = {**SILENT, **config}
    count = expert_count({**config, "num_experts": config.get("n_routed_experts")}, silent=128)
    inner = positive_integer(config, "moe_intermediate_size")
    experts = Experts(
        count,
        positive_integer(config, "num_experts_per_tok"),
        inner,
        inner * positive_integer(config, "n_shared_experts"),
        router="sigmoid",
        normed=bool(config["norm_topk_prob"]),
        scale=float(config["routed_scaling_factor"]),
    )
    own = Differences(
        biased=QUERIES_KEYS_VALUES if config.get("attention_bias") else (),
        bias_keys=("attention_bias",),
        ropes=rope_of(config, part=PART),
        head_norms=HEAD_NORMS if config["use_qk_norm"] else {},
        mixtures=[index >= config["first_k_dense_replace"] for index in range(block_count(config))],
        experts=experts,
        expert_names=ExpertNames(
            shared="mlp.shared_experts",
            shared_first=False,
            others={"mlp.gate.e_score_correction_bias": (count,)},
        ),
    )
    traits = [CORRECTED]
    traits += [GROUPED] if positive_integer(config, "n_group") > 1 else []
    traits += [ONE_EXPERT] if experts.per_token == 1 and experts.normed else []
    return replace(llama_like(config, NAMES, own), traits=tuple(traits))
