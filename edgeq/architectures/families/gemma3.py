"""Gemma 3, text: norms on both sides and of heads; blocks that slide rotate by a base of their own.

Source: transformers, modeling_gemma3.py and configuration_gemma3.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import (
    AROUND,
    ATTENTION,
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

MODEL_TYPES = ("gemma3_text",)
COMPUTES = frozenset(
    {
        features.NORM_OFFSET,
        features.EMBEDDING_SCALE,
        features.NORMS_AROUND,
        features.SCORE_SCALE,
        features.HEAD_NORMS,
        features.ROTARY_BY_BLOCK,
    }
)
NAMES = RuntimeNames(
    transformers="Gemma3ForCausalLM",
    gguf=GgufNames(
        "gemma3", computes=COMPUTES | {features.WINDOWS}, activations=("gelu_pytorch_tanh",)
    ),
    mlx=MlxNames(
        "gemma3_text",
        computes=COMPUTES,
        activations=("gelu_pytorch_tanh",),
        sliding="period",
        local_base="rope_local_base_freq",
    ),
    genai="gemma3_text",
)
# what transformers takes where a config is silent
SILENT = {
    "head_dim": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131_072,
}
GLOBAL, LOCAL = 1_000_000.0, 10_000.0  # rotary bases


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe the text part of a Gemma 3: by default five of six blocks slide."""
    config = {**SILENT, **config}
    kinds = block_kinds(config, every=config.get("sliding_window_pattern") or 6)
    ropes = {
        FULL: rope_of_kind(config, FULL, top="rope_theta", theta=GLOBAL),
        SLIDING: rope_of_kind(config, SLIDING, top="rope_local_base_freq", theta=LOCAL),
    }
    own = Differences(
        biased=ATTENTION if config.get("attention_bias") else (),
        bias_keys=("attention_bias",),
        windows=windows_of(config, kinds),
        ropes=[ropes[kind] for kind in kinds],
        norms=AROUND,
        head_norms=HEAD_NORMS,
        activation=config["hidden_activation"],
        scale=config["query_pre_attn_scalar"] ** -0.5,
        soft_cap=config.get("attn_logit_softcapping"),
    )
    decoder = llama_like(config, NAMES, own)
    traits = ("attention in both directions",) if config.get("use_bidirectional_attention") else ()
    return replace(
        decoder,
        norm_offset=1.0,
        embedding_scale=decoder.hidden**0.5,
        logit_cap=config.get("final_logit_softcapping"),
        traits=traits,
    )
