"""Ministral 3: a Mistral with YaRN, whose queries are scaled by their position.

Source: transformers, modeling_ministral3.py and configuration_ministral3.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeq.architectures.config_checks import positive_integer
from edgeq.architectures.llama_like import Differences, llama_like
from edgeq.architectures.rope import is_single, rope_of
from edgeq.decoder import Decoder
from edgeq.errors import BadInput
from edgeq.runtime_names import MlxNames, RuntimeNames

MODEL_TYPES = ("ministral3",)
SCALED_QUERIES = "queries scaled by position"
NAMES = RuntimeNames(
    transformers="Ministral3ForCausalLM",
    mlx=MlxNames(
        "ministral3",
        computes=frozenset({SCALED_QUERIES}),
        foreign_keys=("layer_types", "sliding_window"),
        nested_rope=True,
    ),
)
SILENT = {"head_dim": 128, "rms_norm_eps": 1e-5}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
"""What transformers takes where a config has no rope_parameters."""


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe a Ministral 3: one window for all blocks, or none.

    Raises: BadInput for rope settings without what scales queries.
    """
    config = {**SILENT, **config}
    if not config.get("rope_parameters") and not config.get("rope_scaling"):
        config["rope_parameters"] = YARN
    rope = rope_of(config)
    for key in ("llama_4_scaling_beta", "original_max_position_embeddings"):
        if not is_single(rope.settings.get(key)):
            raise BadInput(
                f"config: {key} of the rope settings is {rope.settings.get(key)!r:.60}; "
                "it must be a positive number"
            )
    window = config.get("sliding_window")
    own = Differences(
        ropes=rope, windows=None if window is None else positive_integer(config, "sliding_window")
    )
    return replace(llama_like(config, NAMES, own), traits=(SCALED_QUERIES,))
