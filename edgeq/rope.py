"""Rotary embedding settings of a Hugging Face config."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
