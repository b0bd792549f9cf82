"""Hunyuan, dense: queries and keys are normed head by head, once they are rotated.

Source: transformers, modeling_hunyuan_v1_dense.py and configuration_hunyuan_v1_dense.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import ATTENTION, Differences, llama_like
from edgeq.decoder import Decoder, NormPlace
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("hunyuan_v1_dense",)
NORMED_LAST = "norms of rotated queries and keys"
COMPUTES = frozenset({features.HEAD_NORMS, NORMED_LAST})
NAMES = RuntimeNames(
    transformers="HunYuanDenseV1ForCausalLM",
    gguf=GgufNames("hunyuan-dense", computes=COMPUTES),
    mlx=MlxNames(
        "hunyuan_v1_dense",
        ATTENTION,
        computes=COMPUTES,
        foreign_keys=("use_qk_norm",),
        rope_kinds=("default", "dynamic"),
    ),
    genai="hunyuandensev1",
)
NORMS: Mapping[NormPlace, str] = {
    "queries": "self_attn.query_layernorm",
    "keys": "self_attn.key_layernorm",
}


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Hunyuan: biases only where the config asks for them."""
    own = Differences(
        biased=ATTENTION if config.get("attention_bias") else (),
        bias_keys=("attention_bias",),
        head_norms=NORMS,
    )
    return replace(llama_like(config, NAMES, own), traits=(NORMED_LAST,))
