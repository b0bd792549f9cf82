"""Mistral 7B and its successors of model type mistral: a Llama whose tokens attend to a window.

Source: transformers, modeling_mistral.py and configuration_mistral.py.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures.config_checks import positive_integer
from edgeq.architectures.llama_like import Differences, llama_like
from edgeq.architectures.rope import WITH_YARN
from edgeq.decoder import Decoder
from edgeq.errors import UnsupportedModel
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("mistral",)
WINDOW = 4096  # what transformers takes where the key is absent; null means no window
# mlx-lm computes a Mistral as a Llama, and obeys Llama's keys
MLX = MlxNames("llama", foreign_keys=("layer_types", "attention_bias", "mlp_bias"))
NAMES = RuntimeNames(
    transformers="MistralForCausalLM",
    gguf=GgufNames("llama", adjacent_rotary=True, rope_kinds=WITH_YARN),
    mlx=MLX,
    genai="mistral",
)


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Mistral: no biases, one window for all blocks.

    Raises: UnsupportedModel for a Ministral, which transformers takes any with layer_types for.
    """
    if "layer_types" in config:
        raise UnsupportedModel(
            "config: layer_types makes a Ministral of a model of type mistral, in transformers; "
            "give another model, or leave the key out where all blocks have one window"
        )
    window: int | None = WINDOW
    if "sliding_window" in config:
        stated = config["sliding_window"]
        window = None if stated is None else positive_integer(config, "sliding_window")
    return llama_like(config, NAMES, Differences(windows=window))
