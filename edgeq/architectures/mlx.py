"""Say what mlx-lm takes: the models that it computes as torch does.

Both the mlx backend and the MLX exporter go by this; `edgeq.architectures.mlx_config` writes the
config that it reads.
"""

import math
from collections.abc import Iterator

from edgeq.architectures.features import PARTIAL_ROTARY, features_of
from edgeq.architectures.mlx_config import computes_windows, mlx_names, mlx_rope, ropes_by_window
from edgeq.architectures.requirements import (
    why_not_activation,
    why_not_biases,
    why_not_features,
    why_not_heads,
    why_not_named,
    why_not_stated,
)
from edgeq.architectures.rope import distinct_ropes, why_not_rope
from edgeq.decoder import Decoder, ModelRecord, Rope

CLOSE = 1e-6  # relative: a config states 7 digits or more of a factor that mlx-lm computes


def why_not_mlx(record: ModelRecord) -> str | None:
    """Say what of a model mlx-lm cannot load or computes differently; None when nothing."""
    decoder = record.decoder
    if record.stated.get("model_file") is not None:
        return "config.json names a model_file, code that mlx-lm would run; remove the key"
    unnamed = why_not_named(decoder, "mlx", "mlx-lm computes as torch does:")
    if unnamed is not None:
        return unnamed
    names = mlx_names(decoder)
    return (
        why_not_stated(decoder, "mlx-lm", context=False)
        or why_not_features(decoder, "mlx-lm", names.computes)
        or why_not_activation(decoder, "mlx-lm", names.activations)
        or why_not_biases(decoder, "mlx-lm", names.biased)
        or why_not_heads(decoder, "mlx-lm", plain=names.plain_heads)
        or why_not_rope(
            decoder, "mlx-lm", names.rope_kinds, partial=PARTIAL_ROTARY in names.computes
        )
        or next(_why_not_structure(decoder), None)
        or next(_why_not_rotary(decoder), None)
    )


def _why_not_structure(decoder: Decoder) -> Iterator[str]:
    """Name what mlx-lm's module of a family always has, and a model has not."""
    names, kind = mlx_names(decoder), decoder.model_type
    linears = [linear for layer in decoder.layers for linear in layer.linears]
    for linear in linears if names.always_biased else ():
        if linear.name in names.biased and linear.bias is None:
            yield f"{linear.name} has no bias; mlx-lm's {kind} has one there, use another format"
    if names.head == "tied" and not decoder.tied_head:
        yield (
            f"a head of its own of a {kind} model: mlx-lm ties it to the embedding; "
            "use another format"
        )
    if names.head == "own" and decoder.tied_head:
        yield (
            f"a head tied to the embedding of a {kind} model: mlx-lm wants one of its own; "
            "use another format"
        )
    for feature in sorted(names.always - set(features_of(decoder))):
        yield f"a {kind} model without {feature}: mlx-lm always computes that; use another format"
    slides = any(layer.attention and layer.attention.window for layer in decoder.layers)
    bare = any(layer.attention and layer.attention.rope is None for layer in decoder.layers)
    wants_both = {"both types": True, "period": slides, "letters": bare}
    if wants_both.get(names.sliding) and not (
        computes_windows(decoder) and (slides or names.sliding == "period")
    ):
        yield (
            f"blocks that slide in an order that mlx-lm's {kind} cannot be told; use another format"
        )


def _why_not_rotary(decoder: Decoder) -> Iterator[str]:
    """Name what of rotary embedding mlx-lm computes otherwise, though it knows its kind."""
    names, kind = mlx_names(decoder), decoder.model_type
    for rope in distinct_ropes(decoder):
        if rope.kind == "dynamic" and decoder.context is None:
            yield "rope type 'dynamic' needs max_position_embeddings in config.json; add it"
        if rope.kind == "yarn":
            yield from _why_not_yarn(rope)
        if rope.kind == "longrope":
            yield from _why_not_longrope(decoder, rope)
        if names.module == "hunyuan_v1_dense" and rope.kind == "dynamic":
            if not rope.settings.get("alpha"):
                yield (
                    f"rope type 'dynamic' of a {kind} model without alpha is not supported; "
                    "mlx-lm knows none"
                )
    main, local = mlx_rope(decoder), ropes_by_window(decoder)[True]
    if local is not None and local != main:
        if local.kind != "default":
            yield (
                f"rope type '{local.kind}' of blocks that slide is not supported; "
                "mlx-lm scales only those of full attention"
            )
        elif not names.local_base and local.theta != main.theta:
            yield (
                f"blocks of a {kind} model that slide have a rotary base of {local.theta:g}, "
                f"others {main.theta:g}; mlx-lm knows one"
            )


def _why_not_yarn(rope: Rope) -> Iterator[str]:
    """Name settings of YaRN that mlx-lm does not read, where they say other than it computes."""
    settings = rope.settings
    factor = settings.get("factor")
    if factor is None:
        yield "rope type 'yarn' lacks factor; add it to the rope settings in config.json"
        return
    both = settings.get("mscale") and settings.get("mscale_all_dim")
    computed = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1
    stated = settings.get("attention_factor")
    if stated is not None and (both or abs(stated - computed) > CLOSE * computed):
        yield f"rope settings have attention_factor {stated}; mlx-lm computes {computed:.6g}"
    if not both and (settings.get("mscale") or settings.get("mscale_all_dim")):
        yield "rope settings have one of mscale and mscale_all_dim; mlx-lm wants both or none"
    if settings.get("truncate") is False:
        yield "rope settings have truncate false; mlx-lm truncates the range of corrections"


def _why_not_longrope(decoder: Decoder, rope: Rope) -> Iterator[str]:
    """Name settings of LongRoPE that are missing, or say other than mlx-lm computes from them."""
    settings = rope.settings
    missing = [
        key
        for key in ("short_factor", "long_factor", "original_max_position_embeddings")
        if not settings.get(key)
    ]
    missing += [] if decoder.context else ["max_position_embeddings"]
    if missing:
        yield f"rope type 'longrope' lacks {', '.join(missing)}; add it to config.json"
        return
    assert decoder.context is not None
    length = settings["original_max_position_embeddings"]
    factor = decoder.context / length
    stated = settings.get("factor")
    if stated is not None and abs(stated - factor) > CLOSE * factor:
        yield f"rope settings have factor {stated}; mlx-lm computes {factor:.6g}"
    computed = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(length))
    stated = settings.get("attention_factor")
    if stated is not None and abs(stated - computed) > CLOSE * computed:
        yield f"rope settings have attention_factor {stated}; mlx-lm computes {computed:.6g}"
