"""Find the language model inside of a checkpoint that also reads pictures or sound.

It is solved as a model of its own. What else the checkpoint holds is left out, and said.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from edgeq.errors import BadInput
from edgeq.registry import with_silent_sizes

Config = Mapping[str, Any]

TYPES = {
    "qwen2_vl": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
"""Types of language models inside of larger ones -> the type that computes the same of texts.

Positions of pictures have three coordinates, which are equal in a text: so their rotary embedding
is the plain one.
"""
FLAT = ("qwen2_vl", "qwen2_5_vl")
"""Types whose first configs state the language model beside the rest, not in text_config."""
OF_PICTURES = ("mrope_section", "mrope_interleaved")
TIED = "tie_word_embeddings"  # the head is one of the whole model, whose word counts
SHARED = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype")
OLDER_DTYPE = "torch_dtype"
PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.", ""),
    ("model.text_model.", "model."),
    ("text_model.", ""),
)
"""What the names of a language model begin with, and what they begin with without the rest."""


def text_config(config: Config) -> dict[str, Any] | None:
    """Give the config of the language model inside of a larger one; None where there is none.

    Raises: BadInput for one that is no config.
    """
    inner = config.get("text_config")
    kind = config.get("model_type")
    if inner is not None and not (
        isinstance(inner, Mapping) and isinstance(inner.get("model_type"), str)
    ):
        raise BadInput(
            f"config: text_config is {inner!r:.60}; it must be an object with a model_type, "
            "as the config of the language model inside; fetch config.json again"
        )
    if inner is not None:
        found = dict(inner)
    elif kind in FLAT and "vision_config" in config:
        found = {key: value for key, value in config.items() if not key.startswith("vision_")}
    else:
        return None
    if config.get(TIED) is not None:
        found[TIED] = config[TIED]
    for key in SHARED:
        if config.get(key) is not None and found.get(key) is None:
            found[key] = config[key]
    if config.get(OLDER_DTYPE) is not None and found.get("dtype") is None:
        found.setdefault(OLDER_DTYPE, config[OLDER_DTYPE])
    if config.get("quantization_config"):
        found["quantization_config"] = config["quantization_config"]
    found["model_type"] = TYPES.get(found["model_type"], found["model_type"])
    found.pop("architectures", None)
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(found.get(key), Mapping):
            found[key] = without_pictures(found[key])
    return with_silent_sizes(found)


def without_pictures(rope: Config) -> dict[str, Any] | None:
    """Leave out of settings of rotary embedding what tells the coordinates of pictures apart."""
    kept = {key: value for key, value in rope.items() if key not in OF_PICTURES}
    for key in ("type", "rope_type"):
        if kept.get(key) == "mrope":
            kept[key] = "default"
    return None if set(kept) <= {"type", "rope_type"} else kept


def text_names(names: Iterable[str]) -> dict[str, str]:
    """Map the names of the language model's tensors to those that it has as a model of its own.

    Names that have no place in a language model are left out.
    """
    stored = list(names)
    for prefix, instead in PREFIXES:
        inside = [name for name in stored if name.startswith(prefix)]
        if inside:
            renamed = {name: instead + name.removeprefix(prefix) for name in inside}
            return renamed | {name: name for name in stored if name == "lm_head.weight"}
    return {name: name for name in stored if name.startswith(("model.", "lm_head."))}
