"""Gemma 1: norm weights are stored less one, and the embedding is scaled.

Source: transformers, modeling_gemma.py and configuration_gemma.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import ATTENTION, Differences, llama_like
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("gemma",)
TANH = ("gelu_pytorch_tanh",)
COMPUTES = frozenset({features.NORM_OFFSET, features.EMBEDDING_SCALE})
NAMES = RuntimeNames(
    transformers="GemmaForCausalLM",
    gguf=GgufNames("gemma", computes=COMPUTES, activations=TANH),
    # mlx-lm computes the exact function, where the model was trained with its approximation
    mlx=MlxNames(
        "gemma", computes=COMPUTES, activations=("gelu",), rope_kinds=("default",), head="tied"
    ),
    genai="gemma",
)
# what transformers takes where a config is silent
SILENT = {"head_dim": 256, "tie_word_embeddings": True}


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Gemma. "gelu" means its approximation by tanh, as the first configs state it."""
    own = Differences(
        biased=ATTENTION if config.get("attention_bias") else (),
        bias_keys=("attention_bias",),
        activation=TANH[0],
    )
    decoder = llama_like({**SILENT, **config}, NAMES, own)
    return replace(decoder, norm_offset=1.0, embedding_scale=decoder.hidden**0.5)
