"""Phi 3, 3.5 and 4: queries, keys and values are one matrix, gate and up another.

Source: transformers, modeling_phi3.py and configuration_phi3.py.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.config_checks import positive_integer
from edgeq.architectures.llama_like import Differences, LinearNames, llama_like
from edgeq.architectures.rope import rope_of
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("phi3",)
COMPUTES = frozenset({features.FUSED, features.PARTIAL_ROTARY})
NAMES = RuntimeNames(
    transformers="Phi3ForCausalLM",
    gguf=GgufNames("phi3", computes=COMPUTES, plain_heads=True),
    mlx=MlxNames("phi3", computes=COMPUTES, plain_heads=True, rope_kinds=("default", "longrope")),
    genai="phi3",
)
SILENT = {"original_max_position_embeddings": 4096}
LINEARS = LinearNames(inputs=("self_attn.qkv_proj",), up=("mlp.gate_up_proj",))


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Phi 3: one window for all blocks, or none."""
    config = {**SILENT, **config}
    stated = config.get("sliding_window")
    own = Differences(
        windows=None if stated is None else positive_integer(config, "sliding_window"),
        ropes=rope_of(config),
        linears=LINEARS,
    )
    return llama_like(config, NAMES, own)
