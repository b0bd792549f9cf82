"""Read what a config says of rotary embedding, and compute the frequencies that follow.

What each runtime makes of them is up to that runtime; `why_not_rope` compares.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeq.decoder import Decoder, Rope
from edgeq.errors import BadInput

# by rope type: what it cannot be computed without
NEEDED = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
KINDS = ("default", "linear", "llama3")
"""Rope types that `frequencies` computes."""


def rope_of(config: Mapping[str, Any]) -> Rope:
    """Read top-level rope_theta and rope_scaling, or rope_parameters as transformers 5 nests them.

    Raises: BadInput for settings of a wrong type or range.
    """
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    settings = config.get(key) or {}
    if not isinstance(settings, Mapping):
        raise BadInput(
            f"config: {key} is {settings!r}; "
            f"it must be an object such as {{'rope_type': 'default'}}"
        )
    kind = settings.get("rope_type", settings.get("type", "default"))
    if not isinstance(kind, str):
        raise BadInput(f"config: rope_type is {kind!r}; it must be a name such as 'default'")
    for name in NEEDED["llama3"]:  # the factor of linear scaling is among them
        if name in settings:
            _check_positive(f"{key}.{name}", settings[name])
    theta = settings.get("rope_theta", config.get("rope_theta", 10000.0))
    _check_positive("rope_theta", theta)
    part = settings.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    _check_positive("partial_rotary_factor", part)
    return Rope(kind, float(theta), settings, float(part))


def frequencies(rope: Rope, head_size: int) -> npt.NDArray[np.float64]:
    """Compute the radians per token of each rotated pair, for the kinds in KINDS.

    Shapes: (head / 2,).
    """
    plain = rope.theta ** (-np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    if rope.kind == "llama3":
        return plain / llama3_factors(rope, head_size)
    return plain / float(rope.settings["factor"]) if rope.kind == "linear" else plain


def llama3_factors(rope: Rope, head_size: int) -> npt.NDArray[np.float64]:
    """Compute the divisors of the plain frequencies of Llama 3.1 and later.

    Wavelengths beyond original context / low factor are stretched by `factor`, those below original
    context / high factor stay, and the frequencies between are interpolated linearly in the number
    of turns.

    Shapes: (head / 2,).
    Source: Llama 3.1 reference code, apply_scaling.
    """
    low, high = (float(rope.settings[key]) for key in ("low_freq_factor", "high_freq_factor"))
    exponents = np.arange(0, head_size, 2, dtype=np.float64) / head_size
    wavelengths = 2 * math.pi * rope.theta**exponents
    turns = float(rope.settings["original_max_position_embeddings"]) / wavelengths
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1 / (kept + (1 - kept) / float(rope.settings["factor"])))


def why_not_rope(decoder: Decoder, runtime: str, kinds: Sequence[str] = KINDS) -> str | None:
    """Say what of a model's rotary embedding a runtime that knows these kinds computes otherwise.

    None where it computes the same.
    """
    ropes = {id(layer.attention.rope): layer.attention.rope for layer in decoder.layers}
    for rope in ropes.values():
        if rope.kind not in kinds:
            return (
                f"rope type '{rope.kind}' of a {decoder.model_type} model is not supported; "
                f"{runtime} knows {', '.join(kinds)}"
            )
        missing = [name for name in NEEDED.get(rope.kind, ()) if rope.settings.get(name) is None]
        if missing:
            return (
                f"rope type '{rope.kind}' lacks {', '.join(missing)}; "
                "add it to the rope settings in config.json"
            )
        if rope.part != 1.0:
            return (
                f"partial_rotary_factor {rope.part} is not supported; "
                f"{runtime} rotates whole heads, only 1.0 can be written"
            )
    return None


def check_rope(config: Mapping[str, Any]) -> None:
    """Refuse settings that are missing, of a wrong type, or contradict each other.

    Raises: BadInput.
    """
    rope = rope_of(config)
    missing = [name for name in NEEDED.get(rope.kind, ()) if name not in rope.settings]
    if missing:
        raise BadInput(
            f"config: rope type {rope.kind!r} lacks {', '.join(missing)}; "
            "state them in the rope settings"
        )
    low, high = (rope.settings.get(f"{end}_freq_factor") for end in ("low", "high"))
    if rope.kind == "llama3" and low is not None and high is not None and low >= high:
        raise BadInput(
            f"config: low_freq_factor is {low} and high_freq_factor {high}; "
            "the high one must be larger"
        )


def _check_positive(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= sys.float_info.max:
        raise BadInput(f"config: {name} is {value!r:.60}; it must be a positive number")
