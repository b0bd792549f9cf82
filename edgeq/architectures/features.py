"""Name what a model computes beyond a Llama: what a runtime knows of it, or refuses by name.

A feature is what a user reads in a refusal. Which ones a runtime computes is said by the families'
names for it (`edgeq.runtime_names`).
"""

from collections.abc import Iterator

from edgeq.architectures.rope import distinct_ropes
from edgeq.decoder import Attention, Decoder, Layer, Mlp

PARTIAL_ROTARY = "rotary embedding of a part of each head"
ADJACENT_ROTARY = "rotary embedding of neighbouring columns"
NO_ROTARY = "blocks without rotary embedding"
ROTARY_BY_BLOCK = "rotary embedding that differs by block"
WINDOWS = "windows"
SCORE_SCALE = "scaled attention scores"
SCORE_CAP = "soft-capped attention scores"
SINKS = "attention sinks"
HEAD_NORMS = "norms of queries and keys by head"
WHOLE_NORMS = "norms of all queries and of all keys"
NORMS_AROUND = "norms before and behind attention and feed-forward"
NORMS_BEHIND = "norms behind attention and feed-forward, none before"
LAYER_NORMS = "layer norms"
NORM_BIASES = "biases of norms"
NORM_OFFSET = "norm weights plus one"
PARALLEL = "attention and feed-forward in parallel"
TWO_NORMS = "attention and feed-forward in parallel behind norms of their own"
GROUPED = "fused queries, keys and values in groups of heads"
LEARNED_POSITIONS = "learned positions"
ALIBI = "attention scores lowered by distance"
PLAIN_MLP = "a feed-forward part without a gate"
FUSED = "fused linear layers"
EXPERTS = "a mixture of experts"
SHARED_EXPERTS = "experts that every token passes"
SIGMOID_ROUTER = "experts weighed by sigmoids"
FREE_EXPERT_WEIGHTS = "expert weights that do not sum to one"
SOME_EXPERTS = "experts in some blocks only"
EMBEDDING_SCALE = "scaled embeddings"
RESIDUAL_SCALE = "scaled residuals"
LOGIT_SCALE = "scaled logits"
LOGIT_CAP = "soft-capped logits"
HEAD_BIAS = "a bias of the head"


def features_of(decoder: Decoder) -> list[str]:
    """List what a model computes beyond a Llama, each once."""
    of_model = {
        LAYER_NORMS: decoder.norm == "layer",
        NORM_OFFSET: decoder.norm_offset != 0,
        PARALLEL: decoder.parallel,
        EMBEDDING_SCALE: decoder.embedding_scale != 1,
        RESIDUAL_SCALE: decoder.residual_scale != 1,
        LOGIT_SCALE: decoder.logit_scale != 1,
        LOGIT_CAP: decoder.logit_cap is not None,
        HEAD_BIAS: f"{decoder.head.removesuffix('weight')}bias" in decoder.others,
        ROTARY_BY_BLOCK: len(distinct_ropes(decoder)) > 1,
        SOME_EXPERTS: len({_has_experts(layer) for layer in decoder.layers}) > 1,
    }
    found = {feature for feature, is_there in of_model.items() if is_there}
    for layer in decoder.layers:
        found.update(_of_layer(layer))
    return [*sorted(found), *decoder.traits]


def _has_experts(layer: Layer) -> bool:
    return layer.mlp is not None and layer.mlp.experts is not None


def _of_layer(layer: Layer) -> Iterator[str]:
    if layer.attention is not None:
        yield from _of_attention(layer.attention)
    if layer.mlp is not None:
        yield from _of_mlp(layer.mlp)
    places = {norm.place for norm in layer.norms}
    if "after attention" in places or "after mlp" in places:
        yield NORMS_AROUND if "before attention" in places else NORMS_BEHIND
    if any(norm.bias is not None for norm in layer.norms):
        yield NORM_BIASES
    if layer.attention is not None and layer.mlp is not None and _is_fused(layer):
        yield FUSED


def _is_fused(layer: Layer) -> bool:
    """Say whether one matrix computes queries, keys and values, or gate and up."""
    mlp = layer.mlp
    gate_alone = mlp is not None and mlp.gated and mlp.experts is None and len(layer.sites[2]) == 1
    return len(layer.sites[0]) == 1 or gate_alone


def _of_attention(attention: Attention) -> Iterator[str]:
    rope = attention.rope
    has = {
        NO_ROTARY: rope is None,
        PARTIAL_ROTARY: rope is not None and rope.part != 1,
        ADJACENT_ROTARY: rope is not None and rope.adjacent,
        WINDOWS: attention.window is not None,
        SCORE_SCALE: attention.scale is not None,
        SCORE_CAP: attention.soft_cap is not None,
        SINKS: attention.sinks,
        HEAD_NORMS: attention.head_norms,
        WHOLE_NORMS: attention.whole_norms,
    }
    yield from (feature for feature, is_there in has.items() if is_there)


def _of_mlp(mlp: Mlp) -> Iterator[str]:
    if not mlp.gated:
        yield PLAIN_MLP
    if mlp.experts is not None:
        has = {
            EXPERTS: True,
            SHARED_EXPERTS: mlp.experts.shared_inner > 0,
            SIGMOID_ROUTER: mlp.experts.router == "sigmoid",
            FREE_EXPERT_WEIGHTS: not mlp.experts.normed,
        }
        yield from (feature for feature, is_there in has.items() if is_there)
