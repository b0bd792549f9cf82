"""Write the metadata of a model's architecture, under the keys that llama.cpp reads.

One list of keys for all architectures: llama.cpp passes over those that it does not know for one.
What it does whatever the keys say is in `edgeq_exporters.gguf.llama_cpp`.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeq.architectures.rope import llama3_factors
from edgeq.decoder import Decoder, Rope
from edgeq_exporters.gguf.llama_cpp import (
    computes_windows,
    context_of,
    own_of,
    period_of,
    sliding_blocks,
    windows_of,
)

Value = int | float | str | bool | list[int]
GATING = {"softmax": 1, "sigmoid": 2}
"""llama.cpp's numbers of functions that turn scores of experts into weights."""


def architecture_keys(decoder: Decoder, *, vocab_size: int) -> Iterator[tuple[str, Value]]:
    """Make the metadata of the architecture.

    An int is stored as uint32, a float as float32, a list as an array of int32.
    """
    assert decoder.names.gguf is not None
    architecture = decoder.names.gguf.architecture
    parts = (sizes, attention_keys, rope_keys, scale_keys, expert_keys)
    for part in parts:
        for key, value in part(decoder):
            if value is not None:
                yield f"{architecture}.{key}", value
    yield f"{architecture}.vocab_size", vocab_size


def sizes(decoder: Decoder) -> Iterator[tuple[str, Value | None]]:
    """Make the keys of sizes; a mixture states the width of its dense blocks, if it has some."""
    mlps = [layer.mlp for layer in decoder.layers if layer.mlp is not None]
    dense = next((mlp.inner for mlp in mlps if mlp.experts is None), None)
    yield "block_count", len(decoder.layers)
    yield "context_length", context_of(decoder)
    yield "embedding_length", decoder.hidden
    yield "feed_forward_length", decoder.inner if dense is None else dense
    kind = "layer_norm_rms_epsilon" if decoder.norm == "rms" else "layer_norm_epsilon"
    yield f"attention.{kind}", decoder.epsilon
    yield "use_parallel_residual", None if decoder.norm == "rms" else decoder.parallel


def attention_keys(decoder: Decoder) -> Iterator[tuple[str, Value | None]]:
    """Make the keys of heads, of scores and of windows."""
    attention = decoder.attention
    yield "attention.head_count", attention.heads
    yield "attention.head_count_kv", attention.key_heads
    if attention.head_size * attention.heads != decoder.hidden:
        yield "attention.key_length", attention.head_size
        yield "attention.value_length", attention.head_size
    yield "attention.scale", attention.scale
    yield "attn_logit_softcapping", attention.soft_cap
    own, window = own_of(decoder), next(filter(None, windows_of(decoder)), None)
    if any(sliding_blocks(decoder)):
        yield "attention.sliding_window", window or decoder.context
    if computes_windows(decoder) and window and period_of(decoder) != own.period:
        yield "attention.sliding_window_pattern", period_of(decoder)


def rope_keys(decoder: Decoder) -> Iterator[tuple[str, Value | None]]:
    """Make the keys of rotary embedding; nothing where no block rotates."""
    attentions = [layer.attention for layer in decoder.layers if layer.attention is not None]
    rotating = [attention for attention in attentions if attention.rope is not None]
    if not rotating:
        return
    whole = next((each for each in rotating if each.window is None), rotating[0])
    sliding = next((each for each in rotating if each.window is not None), whole)
    assert whole.rope is not None
    assert sliding.rope is not None
    yield "rope.dimension_count", int(whole.head_size * whole.rope.part)
    yield "rope.freq_base", whole.rope.theta
    if any(sliding_blocks(decoder)):
        yield "rope.freq_base_swa", sliding.rope.theta
    yield from scaling_keys(whole.rope)


def scaling_keys(rope: Rope) -> Iterator[tuple[str, Value | None]]:
    """Make the keys of a rotary embedding that was stretched to longer texts."""
    if rope.kind not in ("linear", "yarn"):
        return
    settings = rope.settings
    factor = float(settings["factor"])
    yield "rope.scaling.type", rope.kind
    yield "rope.scaling.factor", factor
    if rope.kind == "linear":
        return
    yield "rope.scaling.original_context_length", settings["original_max_position_embeddings"]
    # llama.cpp multiplies what the key says by what it takes by itself
    own = magnification(factor)
    stated = yarn_magnification(rope)
    yield "rope.scaling.attn_factor", None if stated == own else stated / own


def magnification(factor: float, share: float = 1.0) -> float:
    """Compute what YaRN multiplies queries and keys by, for texts so many times as long."""
    return 1.0 if factor <= 1 else 1 + 0.1 * share * math.log(factor)


def yarn_magnification(rope: Rope) -> float:
    """Compute what a config has queries and keys multiplied by, as transformers does."""
    settings = rope.settings
    factor = float(settings["factor"])
    if settings.get("attention_factor") is not None:
        return float(settings["attention_factor"])
    of_all, of_each = settings.get("mscale_all_dim"), settings.get("mscale")
    if of_all and of_each:
        return magnification(factor, float(of_each)) / magnification(factor, float(of_all))
    return magnification(factor)


def scale_keys(decoder: Decoder) -> Iterator[tuple[str, Value | None]]:
    """Make the keys of what multiplies embedding, residuals and logits, and bends the latter."""
    own, scale = own_of(decoder), decoder.logit_scale
    yield "embedding_scale", None if decoder.embedding_scale == 1 else decoder.embedding_scale
    yield "residual_scale", None if decoder.residual_scale == 1 else decoder.residual_scale
    if own.divided_logits:
        yield "logit_scale", 1 / scale
    elif scale != 1:
        yield "logit_scale", scale
    yield "final_logit_softcapping", decoder.logit_cap


def expert_keys(decoder: Decoder) -> Iterator[tuple[str, Value | None]]:
    """Make the keys of a mixture of experts."""
    mlps = [layer.mlp for layer in decoder.layers]
    mixed = [mlp is not None and mlp.experts is not None for mlp in mlps]
    first = mixed.index(True) if any(mixed) else None
    mlp = None if first is None else mlps[first]
    experts = None if mlp is None else mlp.experts
    if experts is None:
        return
    yield "expert_count", experts.count
    yield "expert_used_count", experts.per_token
    yield "expert_feed_forward_length", experts.inner
    yield "leading_dense_block_count", first
    yield "expert_gating_func", GATING[experts.router]
    yield "expert_weights_norm", experts.normed
    yield "expert_weights_scale", None if experts.scale == 1 else experts.scale
    if experts.shared_inner:
        yield "expert_shared_feed_forward_length", experts.shared_inner
        yield "expert_shared_count", max(1, experts.shared_inner // experts.inner)


def rope_tensors(decoder: Decoder) -> dict[str, npt.NDArray[Any]]:
    """Compute what a file holds of rotary embedding as tensors: Llama 3.1's divisors.

    Shapes: (head / 2,).
    """
    if decoder.rope.kind != "llama3":
        return {}
    factors = llama3_factors(decoder.rope, decoder.attention.head_size).astype(np.float32)
    return {"rope_freqs.weight": factors}
