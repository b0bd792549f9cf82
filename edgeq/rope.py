"""Rotary embedding settings of a Hugging Face config."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding settings, wherever the config keeps them."""

    kind: str
    theta: float
    settings: Mapping[str, Any]


def rope_of(config: Mapping[str, Any]) -> Rope:
    """Top-level rope_theta and rope_scaling, or rope_parameters as transformers 5 nests them."""
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = settings.get("rope_type", settings.get("type", "default"))
    theta = settings.get("rope_theta", config.get("rope_theta", 10000.0))
    return Rope(str(kind), float(theta), settings)


def frequencies(rope: Rope, head_size: int) -> npt.NDArray[np.float64]:
    """Radians per token of each rotated pair, for rope types default, linear and llama3. Shapes: (head / 2,)."""
    plain = rope.theta ** (-np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    if rope.kind == "llama3":
        return plain / llama3_factors(rope, head_size)
    return plain / float(rope.settings["factor"]) if rope.kind == "linear" else plain


def llama3_factors(rope: Rope, head_size: int) -> npt.NDArray[np.float64]:
    """Divisors of the plain frequencies of Llama 3.1 and later.

    Wavelengths beyond original context / low factor are stretched by `factor`, those below original context / high
    factor stay, and the frequencies between are interpolated linearly in the number of turns.

    Shapes: (head / 2,).
    Source: Llama 3.1 reference code, apply_scaling.
    """
    low, high = (float(rope.settings[key]) for key in ("low_freq_factor", "high_freq_factor"))
    wavelengths = 2 * math.pi * rope.theta ** (np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    turns = float(rope.settings["original_max_position_embeddings"]) / wavelengths
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1 / (kept + (1 - kept) / float(rope.settings["factor"])))
