"""Write what a GGUF file says of rotary embedding in the keys of a config."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeq.architectures.rope import llama3_factors
from edgeq.decoder import Rope
from edgeq.errors import UnsupportedModel
from edgeq.sources.gguf_metadata import Metadata, decimal, size
from edgeq.types import NumpyArray

FACTORS, LONG_FACTORS, SHORT_FACTORS = (
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
)
"""Tensors of a file that are no weights: divisors of rotary frequencies."""
# of Llama 3.1, 3.2 and 3.3, which differ in the factor only
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
DEFAULT_THETA = 10000.0
# llama.cpp's numbers are those of transformers where neither states them
YARN_KEYS = {
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
SCALING_KEYS = frozenset(
    {
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.attn_factor",
        *YARN_KEYS,
    }
)
"""Keys of a file that are read here, without the architecture that they begin with."""


def theta_of(metadata: Metadata, architecture: str) -> float:
    """Read the base of rotary embedding, with llama.cpp's own where the file is silent.

    Raises: BadInput.
    """
    key = f"{architecture}.rope.freq_base"
    return decimal(metadata, key) if key in metadata else DEFAULT_THETA


def rope_scaling(
    metadata: Metadata, config: Mapping[str, Any], factors: Mapping[str, NumpyArray]
) -> dict[str, Any] | None:
    """Write the config's rope_scaling; None where nothing is scaled.

    factors are the tensors of the file that divide frequencies, by name.

    Raises: UnsupportedModel for kinds of scaling that a config of the model type cannot state.
    """
    architecture = str(metadata["general.architecture"])
    kind = scaling_kind(metadata, architecture)
    stated = f"{architecture}.rope.scaling.attn_factor"
    attention_factor = decimal(metadata, stated) if stated in metadata else 1.0
    if set(factors) == {LONG_FACTORS, SHORT_FACTORS} and kind in ("none", "longrope"):
        return longrope(config, factors, attention_factor)
    if attention_factor != 1 and kind != "yarn":
        raise UnsupportedModel(
            f"the GGUF has {stated} {attention_factor}, "
            f"which a config with rope scaling {kind!r} cannot state; give the safetensors"
        )
    if set(factors) == {FACTORS} and kind == "none":
        return recognise_llama3(config, factors[FACTORS])
    if factors or kind not in ("none", "linear", "yarn"):
        found = f" and {', '.join(sorted(factors))}" if factors else ""
        raise UnsupportedModel(
            f"the GGUF has rope scaling of type {kind!r}{found}, which is not supported; "
            "give the safetensors"
        )
    if kind == "none":
        return None
    factor = factor_of(metadata, architecture)
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "linear":
        return scaling
    if attention_factor != 1 and factor > 1:
        # llama.cpp multiplies it by what transformers takes where the config is silent
        scaling["attention_factor"] = attention_factor * (1 + 0.1 * math.log(factor))
    return scaling | yarn(metadata, architecture)


def scaling_kind(metadata: Metadata, architecture: str) -> str:
    """Read the kind of scaling: linear where a file states a factor alone, as in llama.cpp.

    A factor of 1 scales nothing.
    """
    key = f"{architecture}.rope.scaling.type"
    factor = factor_of(metadata, architecture)
    kind = metadata.get(key, "none" if factor == 1 else "linear")
    return "none" if kind in ("linear", "yarn") and factor == 1 else str(kind)


def factor_of(metadata: Metadata, architecture: str) -> float:
    """Read by what positions are divided, under the present key or the one before it.

    Raises: BadInput.
    """
    for name in ("rope.scaling.factor", "rope.scale_linear"):
        key = f"{architecture}.{name}"
        if metadata.get(key):
            return decimal(metadata, key)
    return 1.0


def yarn(metadata: Metadata, architecture: str) -> dict[str, Any]:
    """Read the settings of YaRN beside its factor.

    Raises: BadInput.
    """
    length = f"{architecture}.rope.scaling.original_context_length"
    if length not in metadata:
        length = f"{architecture}.context_length"
    stated = {
        name: decimal(metadata, f"{architecture}.{key}")
        for key, name in YARN_KEYS.items()
        if f"{architecture}.{key}" in metadata
    }
    return {"original_max_position_embeddings": size(metadata, length), **stated}


def longrope(
    config: Mapping[str, Any], factors: Mapping[str, NumpyArray], attention_factor: float
) -> dict[str, Any]:
    """Write the factors of Phi's long contexts, with the one by which its scores grow.

    Raises: UnsupportedModel for a model type that does not state the length it was trained for.
    """
    original = config.get("original_max_position_embeddings")
    if original is None:
        raise UnsupportedModel(
            f"the GGUF holds {LONG_FACTORS}, which a {config['model_type']} model with this "
            "metadata has no place for; give the safetensors"
        )
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": shortest_decimals(factors[SHORT_FACTORS]),
        "long_factor": shortest_decimals(factors[LONG_FACTORS]),
    }
    times = config["max_position_embeddings"] / original
    usual = 1.0
    if times > 1 and original > 1:
        usual = math.sqrt(1 + math.log(times) / math.log(original))
    if not math.isclose(attention_factor, usual, rel_tol=1e-5):
        scaling["attention_factor"] = float(attention_factor)
    return scaling


def shortest_decimals(numbers: NumpyArray) -> list[float]:
    """Write float32 numbers as the shortest decimals that mean them."""
    return [float(str(np.float32(number))) for number in numbers.reshape(-1)]


def recognise_llama3(config: Mapping[str, Any], factors: NumpyArray) -> dict[str, Any]:
    """Find the Llama 3 scaling that gives these factors, among the published ones.

    The file states no parameters.

    Raises: UnsupportedModel for other factors.
    """
    if factors.shape == (config["head_dim"] // 2,):
        scaling = LLAMA3_SCALING | {"factor": float(str(np.float32(factors.max())))}
        rope = Rope("llama3", config["rope_theta"], scaling)
        # the converter computed the file's factors in float32
        if np.allclose(factors, llama3_factors(rope, config["head_dim"]), rtol=1e-4):
            return scaling
    raise UnsupportedModel(
        f"the GGUF's {FACTORS} is not the usual Llama 3 scaling; give the safetensors"
    )


def rotated_part(head_dim: int, columns: int) -> float:
    """Find the share of a head whose product with its width is cut to so many columns."""
    part = columns / head_dim
    return part if int(head_dim * part) == columns else math.nextafter(part, 1.0)
