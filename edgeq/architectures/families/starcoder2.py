"""StarCoder 2: layer norms, biases and a feed-forward part without a gate.

Source: transformers, modeling_starcoder2.py and configuration_starcoder2.py.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.config_checks import positive_integer
from edgeq.architectures.llama_like import ATTENTION, Differences, LinearNames, llama_like
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("starcoder2",)
LINEARS = LinearNames(up=("mlp.c_fc",), down="mlp.c_proj", gated=False)
BIASED = (*ATTENTION, "mlp.c_fc", "mlp.c_proj")
COMPUTES = frozenset({features.LAYER_NORMS, features.NORM_BIASES, features.PLAIN_MLP})
TANH = ("gelu_pytorch_tanh",)
NAMES = RuntimeNames(
    transformers="Starcoder2ForCausalLM",
    gguf=GgufNames("starcoder2", BIASED, computes=COMPUTES, activations=TANH, plain_heads=True),
    # mlx-lm computes the exact function, where most models were trained with its approximation
    mlx=MlxNames(
        "starcoder2",
        BIASED,
        computes=COMPUTES,
        activations=("gelu",),
        plain_heads=True,
        always_biased=True,
        rope_kinds=("default",),
    ),
    genai="decoder",
)
SILENT = {
    "hidden_act": "gelu_pytorch_tanh",
    "use_bias": True,
    "norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a StarCoder 2: biases by use_bias, one window for all blocks or none."""
    config = {**SILENT, **config}
    stated = config.get("sliding_window")
    own = Differences(
        biased=BIASED if config["use_bias"] else (),
        bias_keys=("use_bias",),
        windows=None if stated is None else positive_integer(config, "sliding_window"),
        norm="layer",
        norm_bias=True,
        linears=LINEARS,
    )
    return llama_like(config, NAMES, own)
