"""Gemma 2: norms on both sides, soft caps, and every other block slides.

Source: transformers, modeling_gemma2.py and configuration_gemma2.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import (
    AROUND,
    ATTENTION,
    Differences,
    block_kinds,
    llama_like,
    windows_of,
)
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("gemma2",)
COMPUTES = frozenset(
    {
        features.NORM_OFFSET,
        features.EMBEDDING_SCALE,
        features.NORMS_AROUND,
        features.SCORE_SCALE,
        features.SCORE_CAP,
        features.LOGIT_CAP,
    }
)
NAMES = RuntimeNames(
    transformers="Gemma2ForCausalLM",
    gguf=GgufNames(
        "gemma2", computes=COMPUTES | {features.WINDOWS}, activations=("gelu_pytorch_tanh",)
    ),
    mlx=MlxNames(
        "gemma2",
        computes=COMPUTES,
        activations=("gelu_pytorch_tanh",),
        rope_kinds=("default",),
        head="tied",
        always=frozenset({features.SCORE_CAP, features.LOGIT_CAP}),
    ),
    genai="gemma2",
)
# what transformers takes where a config is silent
SILENT = {
    "head_dim": 256,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Gemma 2: scores are divided by the root of query_pre_attn_scalar."""
    config = {**SILENT, **config}
    own = Differences(
        biased=ATTENTION if config.get("attention_bias") else (),
        bias_keys=("attention_bias",),
        windows=windows_of(config, block_kinds(config, every=2)),
        norms=AROUND,
        activation=config["hidden_activation"],
        scale=config["query_pre_attn_scalar"] ** -0.5,
        soft_cap=config["attn_logit_softcapping"],
    )
    decoder = llama_like(config, NAMES, own)
    return replace(
        decoder,
        norm_offset=1.0,
        embedding_scale=decoder.hidden**0.5,
        logit_cap=config["final_logit_softcapping"],
    )
