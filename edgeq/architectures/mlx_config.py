"""What mlx-lm's model definitions take: its config keys, and the models that it computes as torch
does.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures.model_config import head_dimension
from edgeq.architectures.rope import rope_of, why_not_rope

MODEL_MODULES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
}  # model_type -> module of mlx_lm.models
NEEDED = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "rms_norm_eps",
    "vocab_size",
)
NOT_COPIED = ("quantization", "quantization_config", "quantize_activations", "rope_traditional")
# mlx-lm obeys these keys for a llama, and computes a mistral as one; transformers does not for
# these model types.
FOREIGN = {
    "llama": ("layer_types",),
    "mistral": ("layer_types", "attention_bias", "mlp_bias"),
    "qwen2": (),
}

Config = Mapping[str, Any]


def why_not_mlx(config: Config) -> str | None:
    """What about a config mlx-lm cannot load or would compute differently; None when nothing."""
    model_type = config.get("model_type")
    if config.get("model_file") is not None:
        return "config.json names a model_file, code that mlx-lm would run; remove the key"
    if model_type not in MODEL_MODULES:
        return (
            f"model_type '{model_type}' is not supported; mlx-lm "
            f"computes as torch does: {', '.join(MODEL_MODULES)}"
        )
    missing = [key for key in NEEDED if config.get(key) is None]
    if missing:
        return f"config.json lacks {', '.join(missing)}, which mlx-lm needs; add it"
    if config.get("hidden_act", "silu") != "silu":
        return (
            f"hidden_act '{config['hidden_act']}' is not "
            f"supported; mlx-lm computes {model_type} with silu"
        )
    reason = _why_not_qwen2(config) if model_type == "qwen2" else None
    return reason or why_not_rope(config, "mlx-lm")


def _why_not_qwen2(config: Config) -> str | None:
    if config.get("use_sliding_window"):
        return (
            "use_sliding_window is not supported; mlx-lm's "
            "qwen2 attends to everything, set it to false"
        )
    width, heads, hidden_size = (
        head_dimension(config),
        config["num_attention_heads"],
        config["hidden_size"],
    )
    if width * heads != hidden_size:
        return (
            f"head_dim {width} of a qwen2 model is not hidden_size "
            f"{hidden_size} / {heads} heads; mlx-lm's qwen2 knows"
            " no other, use another backend or format"
        )
    return None


def mlx_config(config: Config) -> dict[str, Any]:
    """A config with what mlx-lm must not guess: rotary embedding, tied head, key heads.

    mlx-lm ignores rope_parameters and ties the head where the config is silent.
    """
    rope = rope_of(config)
    dropped = (*NOT_COPIED, *FOREIGN[config["model_type"]])
    written = {key: value for key, value in config.items() if key not in dropped}
    written["rope_theta"] = rope.theta
    written["rope_scaling"] = (
        None if rope.kind == "default" else _rope_scaling(rope.kind, rope.settings)
    )
    written["tie_word_embeddings"] = bool(config.get("tie_word_embeddings", False))
    if config.get("num_key_value_heads") is None:
        written["num_key_value_heads"] = config["num_attention_heads"]
    return written


def _rope_scaling(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """mlx-lm prefers the older key "type", transformers "rope_type"; one of them leaves no
    doubt.
    """
    kept = {
        key: value
        for key, value in settings.items()
        if key not in ("type", "rope_type", "rope_theta")
    }
    return {"rope_type": kind} | kept
