"""EXAONE 4: norms behind attention and feed-forward, and of heads; some blocks slide.

Source: transformers, modeling_exaone4.py and configuration_exaone4.py.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures import features
from edgeq.architectures.llama_like import (
    BEHIND,
    HEAD_NORMS,
    SLIDING,
    Differences,
    block_kinds,
    llama_like,
    windows_of,
)
from edgeq.architectures.rope import rope_of
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames, MlxNames, RuntimeNames

MODEL_TYPES = ("exaone4",)
COMPUTES = frozenset({features.NORMS_BEHIND, features.HEAD_NORMS, features.NO_ROTARY})
NAMES = RuntimeNames(
    transformers="Exaone4ForCausalLM",
    gguf=GgufNames("exaone4", computes=COMPUTES | {features.WINDOWS}, plain_heads=True),
    mlx=MlxNames("exaone4", computes=COMPUTES, sliding="letters"),
    genai="decoder",
)
SILENT = {"sliding_window": 4096, "sliding_window_pattern": 4, "rms_norm_eps": 1e-5}


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe an EXAONE 4: beside blocks that slide, those of full attention do not rotate."""
    config = {**SILENT, **config}
    has_window = config["sliding_window"] is not None
    kinds = block_kinds(config, every=config["sliding_window_pattern"] if has_window else 0)
    rope = rope_of(config)
    own = Differences(
        windows=windows_of(config, kinds),
        ropes=[rope if kind == SLIDING or not has_window else None for kind in kinds],
        norms=BEHIND,
        head_norms=HEAD_NORMS,
    )
    return llama_like(config, NAMES, own)
