"""SmolLM 3: a Llama of which every fourth block does not rotate.

Source: transformers, modeling_smollm3.py and configuration_smollm3.py.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.config_checks import positive_integer
from edgeq.architectures.llama_like import (
    ATTENTION,
    FULL,
    MLP,
    SLIDING,
    Differences,
    block_count,
    llama_like,
    windows_of,
)
from edgeq.architectures.rope import rope_of
from edgeq.decoder import Decoder
from edgeq.errors import BadInput
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("smollm3",)
COMPUTES = frozenset({features.NO_ROTARY})
NAMES = RuntimeNames(
    transformers="SmolLM3ForCausalLM",
    gguf=GgufNames("smollm3", computes=COMPUTES, adjacent_rotary=True),
    mlx=MlxNames("smollm3", (*ATTENTION, *MLP), computes=COMPUTES, sliding="types"),
    genai="smollm3",
)
SILENT = {"num_key_value_heads": 4, "tie_word_embeddings": True, "rms_norm_eps": 1e-6}
THETA = 2_000_000.0


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a SmolLM 3: biases only where the config asks for them."""
    config = {**SILENT, **config}
    biased = [*(ATTENTION if config.get("attention_bias") else ())]
    biased += MLP if config.get("mlp_bias") else ()
    rotating, rope = rotating_blocks(config), rope_of(config, theta=THETA)
    own = Differences(
        biased=biased,
        bias_keys=("attention_bias", "mlp_bias"),
        windows=windows_of(config, kinds_of(config, rotating)),
        ropes=[rope if rotates else None for rotates in rotating],
    )
    return llama_like(config, NAMES, own)


def rotating_blocks(config: Mapping[str, Any]) -> list[bool]:
    """Read which blocks rotate, from the list that says so in spite of its name.

    Raises: BadInput for a list of another length.
    """
    count, stated = block_count(config), config.get("no_rope_layers")
    if stated is None:
        every = 4
        if config.get("no_rope_layer_interval") is not None:
            every = positive_integer(config, "no_rope_layer_interval")
        return [(index + 1) % every != 0 for index in range(count)]
    if not isinstance(stated, list) or len(stated) != count:
        raise BadInput(
            f"config: no_rope_layers is {stated!r:.60}; it must be a list of {count} numbers, "
            "0 for each block that does not rotate"
        )
    return [bool(rotates) for rotates in stated]


def kinds_of(config: Mapping[str, Any], rotating: list[bool]) -> list[str]:
    """Read which blocks slide: with a window, those that do not rotate, unless layer_types says."""
    slides = config.get("use_sliding_window") and config.get("sliding_window") is not None
    stated = config.get("layer_types")
    if not slides:
        return [FULL] * len(rotating)
    if stated is not None and len(stated) == len(rotating):
        return list(stated)
    return [FULL if rotates else SLIDING for rotates in rotating]
