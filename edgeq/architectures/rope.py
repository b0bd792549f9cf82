"""Read what a config says of rotary embedding, and compute the frequencies that follow.

What each runtime makes of them is up to that runtime; `why_not_rope` compares.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeq.decoder import Decoder, Rope
from edgeq.errors import BadInput

# by rope type: what it cannot be computed without
NEEDED = {
    "linear": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
PRETRAINED = ("llama3", "yarn", "longrope")
"""Rope types that go by the length which a model was trained for first."""
DEFAULT_THETA = 10000.0
CONTEXT_KEYS = ("model_type", "max_position_embeddings", "original_max_position_embeddings")
SMALLEST = float(np.finfo(np.float32).tiny)
LARGEST = float(np.finfo(np.float32).max)
ROTATE_PARTS = ("glm", "glm4", "glm4_moe", "nemotron", "phi", "phi3", "stablelm")
"""Model types whose code rotates a part of a head by any type of rotary embedding."""
KINDS = ("default", "linear", "llama3")
"""Rope types that `frequencies` computes."""
WITH_YARN = (*KINDS, "yarn")


def rope_of(config: Mapping[str, Any], *, theta: float = DEFAULT_THETA, part: float = 1.0) -> Rope:
    """Read top-level rope_theta and rope_scaling, or rope_parameters as transformers 5 nests them.

    As in transformers, rope_scaling wins over rope_parameters, what is nested over what is not.
    theta and part are those of the family where the config is silent.

    Raises: BadInput for settings of a wrong type or range.
    """
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    return _rope_by(config, key, theta, part)


def rope_of_kind(config: Mapping[str, Any], kind: str, *, top: str | None, theta: float) -> Rope:
    """Read the rotary embedding of blocks of one kind ("full_attention", "sliding_attention").

    rope_parameters has settings by kind. Flat ones in rope_scaling are those of full attention;
    `top` is the key at the top of a config that has the base of this kind, theta the base where
    nothing states it. As transformers reads Gemma 3 and OLMo 3.

    Raises: BadInput for settings of a wrong type or range.
    """
    nested = config.get("rope_parameters") or {}
    settings = nested.get(kind) if isinstance(nested, Mapping) else None
    of_kind = dict(settings) if isinstance(settings, Mapping) else {}
    if kind == "full_attention" and isinstance(config.get("rope_scaling"), Mapping):
        of_kind |= config["rope_scaling"]
    stated = None if top is None else config.get(top)
    rest = {key: config[key] for key in CONTEXT_KEYS if key in config}
    return _rope_by(
        {**rest, "rope_parameters": of_kind, "rope_theta": theta if stated is None else stated},
        "rope_parameters",
        theta,
        1.0,
    )


def has_nested_rope(config: Mapping[str, Any]) -> bool:
    """Say whether rope_parameters has settings by kind of block."""
    settings = config.get("rope_parameters")
    return isinstance(settings, Mapping) and any(
        isinstance(value, Mapping) for value in settings.values()
    )


def _rope_by(config: Mapping[str, Any], key: str, default: float, default_part: float) -> Rope:
    """Read the settings under a key, completed by what stands at the top of the config."""
    settings = config.get(key) or {}
    if not isinstance(settings, Mapping):
        raise BadInput(
            f"config: {key} is {settings!r:.60}; "
            f"it must be an object such as {{'rope_type': 'default'}}"
        )
    if any(isinstance(value, Mapping) for value in settings.values()):
        raise BadInput(
            f"config: {key} has settings by kind of layer, which {config.get('model_type')} "
            "models do not have; use the config.json that belongs to these weights"
        )
    kind = settings.get("rope_type", settings.get("type", "default"))
    if not isinstance(kind, str):
        raise BadInput(f"config: rope_type is {kind!r}; it must be a name such as 'default'")
    if kind in PRETRAINED:
        settings = _with_pretrained_length(settings, config)
    for name in NEEDED["llama3"]:  # the factor of linear scaling is among them
        if name in settings:
            _check_positive(f"{key}.{name}", settings[name])
    for name, value in settings.items():
        if isinstance(value, int | float) and not abs(value) <= LARGEST:
            raise BadInput(
                f"config: {key}.{name} is {value!r:.60}; it must be a number that float32 holds"
            )
    theta = settings.get("rope_theta", config.get("rope_theta", default))
    _check_positive("rope_theta", theta)
    named = "partial_rotary_factor"
    part = settings.get(named) or config.get(named) or default_part
    _check_positive("partial_rotary_factor", part)
    return Rope(kind, float(theta), settings, float(part))


def _with_pretrained_length(
    settings: Mapping[str, Any], config: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Complete settings by the length that the model was trained for first, as transformers does.

    At the top of the config it wins; where nothing states it, it is the longest text.
    """
    key = "original_max_position_embeddings"
    if config.get(key) is not None:
        return {**settings, key: config[key]}
    length = config.get("max_position_embeddings")
    return settings if key in settings or length is None else {**settings, key: length}


def contradicting_rope(config: Mapping[str, Any]) -> Iterator[str]:
    """Say which settings of rotary embedding contradict others of the same config, and which count.

    Settings by kind of layer are not compared: nothing else states them.

    Raises: BadInput for settings of a wrong type or range.
    """
    if has_nested_rope(config):
        return
    used = rope_of(config)
    if config.get("rope_scaling") and config.get("rope_parameters"):
        if rope_of({**config, "rope_scaling": None}) != used:
            yield (
                "config.json has rope_scaling and other settings in rope_parameters; "
                f"rope_scaling ({used.kind}) is used, as in transformers"
            )
    top = config.get("rope_theta")
    if top is not None:
        _check_positive("rope_theta", top)
    if top is not None and float(top) != used.theta:
        yield (
            f"config.json has rope_theta {top} and {used.theta} in its rope settings; "
            f"{used.theta} is used, as in transformers"
        )


def rope_keys(rope: Rope) -> dict[str, Any]:
    """Write rotary embedding in the keys of a config, old and new ones alike."""
    settings = {key: value for key, value in rope.settings.items() if key != "type"}
    parameters = {**settings, "rope_type": rope.kind, "rope_theta": rope.theta}
    scaling = None if rope.kind == "default" else dict(parameters)
    return {"rope_theta": rope.theta, "rope_scaling": scaling, "rope_parameters": parameters}


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


def distinct_ropes(decoder: Decoder) -> list[Rope]:
    """List the rotary embeddings of all blocks, each once."""
    found = [layer.attention.rope for layer in decoder.layers if layer.attention is not None]
    return list({id(rope): rope for rope in found if rope is not None}.values())


def why_not_rope(
    decoder: Decoder, runtime: str, kinds: Sequence[str] = KINDS, *, partial: bool = False
) -> str | None:
    """Say what of a model's rotary embedding a runtime that knows these kinds computes otherwise.

    None where it computes the same. partial: it also rotates a part of a head.
    """
    for rope in distinct_ropes(decoder):
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
        if rope.part != 1.0 and not partial:
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


def check_rotated(config: Mapping[str, Any], width: int) -> None:
    """Refuse heads of so many columns that would be rotated in part by a kind that turns them all.

    Without scaling transformers goes by no such factor, and "proportional" has its own rule: the
    rest of its columns are rotated by nothing. Some families rotate a part by all.

    Raises: BadInput.
    """
    if config.get("model_type") in ROTATE_PARTS:
        return
    key, rope = "partial_rotary_factor", rope_of(config)
    part = rope.settings.get(key, 1.0 if config.get(key) is None else config[key])
    whole = part is not None and int(width * part) == width
    if rope.kind == "proportional":
        whole = part is not None and 0 <= part <= 1
    if rope.kind != "default" and not whole:
        raise BadInput(
            f"config: {key} is {part!r:.60} with rope type {rope.kind!r}, "
            f"by which all {width} columns of a head must be rotated; leave the key out"
        )


def _check_positive(name: str, value: Any) -> None:
    if not is_single(value):
        raise BadInput(
            f"config: {name} is {value!r:.60}; it must be a positive number that float32 holds"
        )


def is_single(value: Any) -> bool:
    """Say whether a value is a positive number, and a normal one in float32, as models compute."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and SMALLEST <= value <= LARGEST
