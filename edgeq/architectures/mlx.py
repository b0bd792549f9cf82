"""Say what mlx-lm takes: its config keys, and the models that it computes as torch does.

Both the mlx backend and the MLX exporter go by this.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures.features import PARTIAL_ROTARY
from edgeq.architectures.requirements import (
    why_not_activation,
    why_not_biases,
    why_not_features,
    why_not_heads,
    why_not_named,
    why_not_stated,
)
from edgeq.architectures.rope import why_not_rope
from edgeq.decoder import MlxNames, ModelRecord

NOT_COPIED = ("quantization", "quantization_config", "quantize_activations", "rope_traditional")


def why_not_mlx(record: ModelRecord) -> str | None:
    """Say what of a model mlx-lm cannot load or computes differently; None when nothing."""
    decoder, names = record.decoder, record.decoder.names.mlx or MlxNames("")
    if record.stated.get("model_file") is not None:
        return "config.json names a model_file, code that mlx-lm would run; remove the key"
    return (
        why_not_named(decoder, "mlx", "mlx-lm computes as torch does:")
        or why_not_stated(decoder, "mlx-lm", context=False)
        or why_not_features(decoder, "mlx-lm", names.computes)
        or why_not_activation(decoder, "mlx-lm", names.activations)
        or why_not_biases(decoder, "mlx-lm", names.biased)
        or why_not_heads(decoder, "mlx-lm", plain=names.plain_heads)
        or why_not_rope(decoder, "mlx-lm", partial=PARTIAL_ROTARY in names.computes)
    )


def mlx_config(record: ModelRecord) -> dict[str, Any]:
    """Write a config with what mlx-lm must not guess: rotary embedding, tied head, key heads.

    mlx-lm ignores rope_parameters and ties the head where the config is silent. Its layers attend
    to everything: the context is cut to a window. The model must have no `why_not_mlx`.
    """
    decoder = record.decoder
    attention, names = decoder.attention, decoder.names.mlx
    assert names is not None
    dropped = (*NOT_COPIED, *names.foreign_keys)
    written = {key: value for key, value in record.settled_config().items() if key not in dropped}
    written["rope_theta"] = decoder.rope.theta
    written["rope_scaling"] = None
    if decoder.rope.kind != "default":
        written["rope_scaling"] = _rope_scaling(decoder.rope.kind, decoder.rope.settings)
    if decoder.window is not None:
        written["max_position_embeddings"] = decoder.window
    if written.get("num_key_value_heads") is None:
        written["num_key_value_heads"] = attention.key_heads
    return written


def _rope_scaling(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keep one name of the kind: mlx-lm prefers the older "type", transformers "rope_type"."""
    dropped = ("type", "rope_type", "rope_theta")
    return {"rope_type": kind} | {key: settings[key] for key in settings if key not in dropped}
