"""Write the config.json that mlx-lm reads, and say how it holds what a model has.

Whether it computes a model as torch does is said in `edgeq.architectures.mlx`.
"""

import math
from collections.abc import Mapping
from typing import Any

from edgeq.architectures.families import silent_keys
from edgeq.architectures.features import PARTIAL_ROTARY
from edgeq.architectures.llama_like import FULL, SLIDING
from edgeq.decoder import Decoder, ModelRecord, Rope
from edgeq.runtime_names import MlxNames

NOT_COPIED = ("quantization", "quantization_config", "quantize_activations", "rope_traditional")

ROUNDED_SCALE = ("gemma3_text",)
"""Modules that round the scale of embeddings to bfloat16, also where they compute in float32."""


def mlx_names(decoder: Decoder) -> MlxNames:
    """Give the names of a model's family in mlx-lm; the family must have some."""
    names = decoder.names.mlx
    assert names is not None
    return names


def mlx_config(record: ModelRecord) -> dict[str, Any]:
    """Write a config with what mlx-lm must not guess, and nothing that it misunderstands.

    It has defaults of its own where a config is silent, ignores rope_parameters, and is told in
    words of its own which blocks slide. Where it knows no windows, the context is cut to one; of
    LongRoPE's factors it gets the short ones. The model must have no `why_not_mlx`.
    """
    decoder, names = record.decoder, mlx_names(record.decoder)
    stated = dict.fromkeys(decoder.bias_keys, False) | silent_keys(decoder.model_type)
    stated |= record.settled_config()
    dropped = (*NOT_COPIED, *names.foreign_keys)
    written = {key: value for key, value in stated.items() if key not in dropped}
    written |= {
        "num_key_value_heads": decoder.attention.key_heads,
        "head_dim": decoder.attention.head_size,
        **_rotary(decoder, names),
        **_sliding(decoder, names),
        **_experts(decoder),
    }
    if names.model_type:
        written["model_type"] = names.model_type
    written.setdefault("intermediate_size", decoder.inner)
    window = decoder.window
    if window is not None and not computes_windows(decoder):
        written["max_position_embeddings"] = window
    return written


def alike_tokens(decoder: Decoder) -> int | None:
    """Count the tokens up to which mlx-lm computes a model as torch does; None without limit."""
    limits = [None if computes_windows(decoder) else decoder.window, short_tokens(decoder)]
    return min((limit for limit in limits if limit is not None), default=None)


def short_tokens(decoder: Decoder) -> int | None:
    """Count the tokens of texts that LongRoPE's short factors are for; None for all there are.

    mlx-lm knows one list of factors, for texts of any length.
    """
    rope = mlx_rope(decoder)
    if rope.kind != "longrope":
        return None
    length = int(rope.settings["original_max_position_embeddings"])
    return None if decoder.context is not None and decoder.context <= length else length


def rounds_scale(decoder: Decoder) -> bool:
    """Say whether mlx-lm scales embeddings by another number than torch does in float32."""
    bits = 7  # of a bfloat16 behind the first one
    step = 2.0 ** (math.frexp(decoder.embedding_scale)[1] - 1 - bits)
    is_rounded = decoder.embedding_scale % step != 0
    return is_rounded and mlx_names(decoder).module in ROUNDED_SCALE


def computes_windows(decoder: Decoder) -> bool:
    """Say whether mlx-lm can be told which blocks slide, and computes them so."""
    windows = _windows(decoder)
    widths = {window for window in windows if window is not None}
    sliding = mlx_names(decoder).sliding
    if not widths:
        return True
    if len(widths) > 1 or not sliding:
        return False
    return _period(windows) is not None if sliding == "period" else None in windows


def ropes_by_window(decoder: Decoder) -> dict[bool, Rope | None]:
    """Give the rotary embedding of the first block that slides, and of the first that does not.

    None stands for blocks that do not rotate, or are not there.
    """
    found: dict[bool, Rope | None] = {True: None, False: None}
    for layer in decoder.layers:
        if layer.attention is not None and layer.attention.rope is not None:
            slides = layer.attention.window is not None
            found[slides] = found[slides] or layer.attention.rope
    return found


def mlx_rope(decoder: Decoder) -> Rope:
    """Give the rotary embedding that mlx-lm's keys for it are about: that of full attention."""
    return ropes_by_window(decoder)[False] or decoder.rope


def mlx_stacks(decoder: Decoder) -> dict[str, tuple[str, ...]]:
    """List the tensors in which mlx-lm stacks experts, each with the tensors of these, in order.

    Shapes: (experts, out, in), of tensors (out, in).
    """
    paths, stacks = mlx_names(decoder).experts, dict[str, tuple[str, ...]]()
    for index, layer in enumerate(decoder.layers):
        block = decoder.block_name(index)
        for linear in layer.linears:
            if linear.expert is not None:
                stack = f"{block}.{paths[linear.name.rpartition('.')[2]]}.weight"
                stacks[stack] = (*stacks.get(stack, ()), f"{block}.{linear.tensor}")
    return stacks


def _windows(decoder: Decoder) -> list[int | None]:
    return [None if layer.attention is None else layer.attention.window for layer in decoder.layers]


def _period(windows: list[int | None]) -> int | None:
    """Find the period at whose ends blocks do not slide, where all others do."""
    for period in range(1, len(windows) + 1):
        ends = [(index + 1) % period == 0 for index in range(len(windows))]
        if ends == [window is None for window in windows]:
            return period
    return None


def _rotary(decoder: Decoder, names: MlxNames) -> dict[str, Any]:
    """Write rotary embedding where mlx-lm looks for it, at the top of the config."""
    rope, local = mlx_rope(decoder), ropes_by_window(decoder)[True]
    written: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": None}
    if rope.kind != "default":
        written["rope_scaling"] = _rope_scaling(rope.kind, rope.settings)
    if PARTIAL_ROTARY in names.computes:
        written["partial_rotary_factor"] = rope.part
    if names.nested_rope:
        scaling = _rope_scaling(rope.kind, rope.settings)
        written["rope_parameters"] = scaling | {"rope_theta": rope.theta}
    if names.local_base and local is not None:
        written[names.local_base] = local.theta
    return written


def _rope_scaling(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write the kind under both of its names: mlx-lm prefers the older, transformers the other."""
    dropped = ("type", "rope_type", "rope_theta")
    kept = {
        key: value for key, value in settings.items() if key not in dropped and value is not None
    }
    if kind == "longrope":
        kept["long_factor"] = kept["short_factor"]  # of which mlx-lm reads the long ones alone
    return {"type": kind, "rope_type": kind} | kept


def _sliding(decoder: Decoder, names: MlxNames) -> dict[str, Any]:
    """Write which blocks slide in the words of mlx-lm's module."""
    windows = _windows(decoder)
    width = next((window for window in windows if window is not None), None)
    told = width is not None and computes_windows(decoder)
    if names.sliding in ("types", "both types"):
        kinds = [FULL if window is None or not told else SLIDING for window in windows]
        return {"layer_types": kinds, "sliding_window": width if told else None}
    if names.sliding == "period":
        period = _period(windows)
        return {"sliding_window_pattern": period} | ({"sliding_window": width} if told else {})
    if names.sliding == "letters":
        letters = "".join("G" if window is None else "L" for window in windows)
        return {
            "sliding_window_pattern": letters if told else None,
            "sliding_window": width if told else None,
        }
    return {}


def _experts(decoder: Decoder) -> dict[str, Any]:
    """Write what mlx-lm must know of a mixture of experts, in the keys of all its modules."""
    mixtures = {
        index: layer.mlp.experts
        for index, layer in enumerate(decoder.layers)
        if layer.mlp is not None and layer.mlp.experts is not None
    }
    if not mixtures:
        return {}
    experts = next(iter(mixtures.values()))
    dense = [index for index in range(len(decoder.layers)) if index not in mixtures]
    return {
        "num_experts": experts.count,
        "num_local_experts": experts.count,
        "n_routed_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.inner,
        "shared_expert_intermediate_size": experts.shared_inner,
        "norm_topk_prob": experts.normed,
        "mlp_only_layers": dense,
        "decoder_sparse_step": 1,
    }
