"""Say which models the graph computes, and name what it does not compute of others.

Nodes and tensors of the graph are left to the modules beside this one.
"""

from edgeq.architectures import features
from edgeq.architectures.families.hunyuan_v1_dense import NORMED_LAST
from edgeq.architectures.families.olmo import BARE_NORMS
from edgeq.architectures.requirements import (
    why_not_activation,
    why_not_features,
    why_not_stated,
)
from edgeq.decoder import Decoder, Layer
from edgeq.words import edgeq_command
from edgeq_exporters.onnx.feed_forward import ACTIVATIONS
from edgeq_exporters.onnx.rotary import why_not_rotary

COMPUTES = frozenset(
    {
        features.PARTIAL_ROTARY,
        features.ADJACENT_ROTARY,
        features.NO_ROTARY,
        features.ROTARY_BY_BLOCK,
        features.WINDOWS,
        features.SCORE_SCALE,
        features.SCORE_CAP,
        features.HEAD_NORMS,
        features.WHOLE_NORMS,
        features.NORMS_AROUND,
        features.NORMS_BEHIND,
        features.LAYER_NORMS,
        features.NORM_BIASES,
        features.NORM_OFFSET,
        features.PARALLEL,
        features.PLAIN_MLP,
        features.FUSED,
        features.EMBEDDING_SCALE,
        features.RESIDUAL_SCALE,
        features.LOGIT_SCALE,
        features.LOGIT_CAP,
        features.HEAD_BIAS,
        NORMED_LAST,
        BARE_NORMS,
    }
)
"""What the graph computes beyond a Llama."""
HEAD_MULTIPLE = 8  # GroupQueryAttention knows no other heads
SITES = ((1, 3), (1,), (1, 2), (1,))
"""How many linear layers read one input: of attention, then of feed-forward."""


def why_not_decoder(decoder: Decoder) -> str | None:
    """Say what keeps a model from ONNX Runtime's operators and what to change, or None."""
    return (
        _why_not_described(decoder)
        or why_not_features(decoder, "the graph", COMPUTES)
        or _why_not_tensors(decoder)
        or why_not_stated(decoder, "the graph")
        or why_not_activation(decoder, "the graph", tuple(ACTIVATIONS))
        or _why_not_heads(decoder)
        or why_not_rotary(decoder)
    )


def _why_not_described(decoder: Decoder) -> str | None:
    """Refuse a model of which nothing but names and shapes is known, or not of all blocks."""
    for index, layer in enumerate(decoder.layers):
        if layer.attention is None or layer.mlp is None:
            return (
                f"block {index} of a {decoder.model_type} model is not described as attention and "
                "feed-forward, which the graph computes; "
                f"see {edgeq_command('export', '--list')} for formats that hold it"
            )
    return None


def _why_not_tensors(decoder: Decoder) -> str | None:
    """Refuse tensors that no node would read, and linear layers that are parts of tensors."""
    read = {
        f"{decoder.head.removesuffix('weight')}bias",
        f"{decoder.final_norm.removesuffix('weight')}bias",
    }
    foreign = sorted(set(decoder.others) - read)
    for index, layer in enumerate(decoder.layers):
        block = decoder.block_name(index)
        foreign += [f"{block}.{name}" for name in layer.others]
        foreign += [f"{block}.{norm.tensor}" for norm in layer.norms if norm.place == "elsewhere"]
        if not _is_plain(layer):
            return (
                f"linear layers of {block} in a {decoder.model_type} model are not laid out as "
                "the graph computes them; use another format"
            )
    if not foreign:
        return None
    return (
        f"tensor '{foreign[0]}' of a {decoder.model_type} model: the graph has no place for it; "
        "use another format"
    )


def _is_plain(layer: Layer) -> bool:
    counts = [len(site) for site in layer.sites]
    whole = all(
        linear.rows is None and linear.stored_shape == linear.shape and not linear.transposed
        for linear in layer.linears
    )
    known = len(counts) == len(SITES) and all(
        count in allowed for count, allowed in zip(counts, SITES, strict=True)
    )
    return whole and known


def _why_not_heads(decoder: Decoder) -> str | None:
    for layer in decoder.layers:
        assert layer.attention is not None
        size = layer.attention.head_size
        if size % HEAD_MULTIPLE:
            return (
                f"heads of {size} are not a multiple of {HEAD_MULTIPLE}, "
                "as GroupQueryAttention needs; use another format"
            )
    return None
