"""Build a decoder as an ONNX graph with a key-value cache, block by block from its description.

Attention, feed-forward parts and norms are left to modules beside this one, single nodes to
`graph`, the bytes of tensors to `tensors`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from edgeq.architectures.families.olmo import BARE_NORMS
from edgeq.decoder import Decoder, Layer, NormPlace
from edgeq_exporters.onnx.attention import Attending, add_positions
from edgeq_exporters.onnx.feed_forward import add_feed_forward
from edgeq_exporters.onnx.graph import (
    CONTRIB,
    GraphBuilder,
    Matrices,
    float_value,
    id_value,
    sorted_initializers,
)
from edgeq_exporters.onnx.norms import NormNode, add_and_norm, add_norm, norm_node
from edgeq_exporters.onnx.rotary import tables_of

OPSET = 21  # the first with 4-bit types and blocks in DequantizeLinear
IR_VERSION = 10  # what opset 21 came with


def decoder_model(decoder: Decoder, builder: GraphBuilder, matrices: Matrices) -> ModelProto:
    """Build the whole model from a builder that holds the initializers of every tensor.

    Inputs are input_ids, attention_mask over cached and new tokens (1, then 0 for padding on the
    right) and the cache. Outputs are logits and the extended cache. Names are those that
    onnxruntime-genai expects.
    """
    positions = add_positions(builder, decoder)
    attending = Attending(builder, decoder, matrices, positions, tables_of(decoder))
    name = decoder.embedding.removesuffix(".weight")
    embedded = builder.lookup(matrices[name], "input_ids", name)
    residual = builder.scale(embedded, decoder.embedding_scale, f"{name}.scaled")
    first = norm_before(decoder, 0, "before attention")
    state = State(residual, residual)
    if first is not None:
        state = State(residual, add_norm(builder, decoder, residual, first))
    for index, layer in enumerate(decoder.layers):
        state = _add_block(attending, index, layer, state)
    _add_head(builder, decoder, matrices, state.normed)
    graph = helper.make_graph(
        builder.nodes,
        "decoder",
        _inputs(decoder),
        _outputs(decoder),
        initializer=sorted_initializers(builder),
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(
        graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="edgeq"
    )


@dataclass(frozen=True, slots=True)
class State:
    """Names the hidden states between two parts of a block, and what the next part reads."""

    residual: str
    normed: str


def _add_block(attending: Attending, index: int, layer: Layer, state: State) -> State:
    builder, decoder = attending.builder, attending.decoder
    block = decoder.block_name(index)
    value = attending.add(index, layer, state.normed)
    value = _behind(attending, block, layer, value, "after attention")
    if decoder.parallel:
        own = norm_before(decoder, index, "before mlp")
        read = state.normed if own is None else add_norm(builder, decoder, state.residual, own)
        residual = builder.add("Add", [state.residual, value], f"{block}.attended")
        state = State(residual, read)
    else:
        norm = norm_before(decoder, index, "before mlp")
        state = _sum(attending, state.residual, value, norm, f"{block}.attended")
    value = add_feed_forward(builder, attending.matrices, block, layer, state.normed)
    value = _behind(attending, block, layer, value, "after mlp")
    norm = norm_before(decoder, index + 1, "before attention")
    return _sum(attending, state.residual, value, norm, f"{block}.output")


def _behind(attending: Attending, block: str, layer: Layer, value: str, place: NormPlace) -> str:
    """Norm and scale what a half of a block gives, where the model does."""
    builder, decoder = attending.builder, attending.decoder
    norm = layer.norm_at(place)
    if norm is not None:
        value = add_norm(builder, decoder, value, norm_node(block, norm))
    return builder.scale(value, decoder.residual_scale, f"{block}.scaled_{place.replace(' ', '_')}")


def _sum(
    attending: Attending, residual: str, value: str, norm: NormNode | None, output: str
) -> State:
    """Add to the hidden states and norm the sum for the next part, which reads it else as it is."""
    if norm is None:
        total = attending.builder.add("Add", [residual, value], output)
        return State(total, total)
    normed, total = add_and_norm(attending.builder, attending.decoder, residual, value, norm)
    return State(total, normed)


def norm_before(decoder: Decoder, index: int, place: NormPlace) -> NormNode | None:
    """Describe the norm before a half of a block; behind the last block it is the final one.

    None where there is none. Norms without weights have no tensor to be found by.
    """
    bare = BARE_NORMS in decoder.traits
    if index == len(decoder.layers):
        if not decoder.final_norm:
            return NormNode("final_norm", decoder.hidden) if bare else None
        output = decoder.final_norm.removesuffix(".weight")
        bias = f"{output}.bias"
        has_bias = bias in decoder.others
        return NormNode(output, decoder.hidden, decoder.final_norm, bias if has_bias else None)
    block = decoder.block_name(index)
    norm = decoder.layers[index].norm_at(place)
    if norm is not None:
        return norm_node(block, norm)
    return NormNode(f"{block}.norm_{place.replace(' ', '_')}", decoder.hidden) if bare else None


def _add_head(builder: GraphBuilder, decoder: Decoder, matrices: Matrices, value: str) -> None:
    """Add the head, its bias, and what scales and bends logits; the last node is named logits."""
    name = decoder.head.removesuffix(".weight")
    bias = f"{name}.bias"
    steps: list[tuple[str, list[str]]] = []
    if bias in decoder.others:
        steps.append(("Add", [bias]))
    if decoder.logit_scale != 1:
        steps.append(("Mul", [_number(builder, "logits.scale", decoder.logit_scale)]))
    if decoder.logit_cap is not None:
        cap = _number(builder, "logits.cap", decoder.logit_cap)
        steps += [("Div", [cap]), ("Tanh", []), ("Mul", [cap])]
    names = [f"logits.{number}" for number in range(len(steps))]
    value = builder.multiply(matrices[name], value, [*names, "logits"][0])
    for (operator, others), output in zip(steps, [*names[1:], "logits"], strict=bool(steps)):
        value = builder.add(operator, [value, *others], output)


def _number(builder: GraphBuilder, name: str, value: float) -> str:
    return builder.constant(name, value, np.float32)


def _inputs(decoder: Decoder) -> Sequence[Any]:
    ids = [
        id_value("input_ids", ["batch", "tokens"]),
        id_value("attention_mask", ["batch", "total_tokens"]),
    ]
    return [*ids, *_cache(decoder, "past_key_values", "past_tokens")]


def _outputs(decoder: Decoder) -> Sequence[Any]:
    return [
        float_value("logits", ["batch", "tokens", decoder.vocabulary]),
        *_cache(decoder, "present", "total_tokens"),
    ]


def _cache(decoder: Decoder, name: str, length: str) -> Sequence[Any]:
    values = []
    for index, layer in enumerate(decoder.layers):
        assert layer.attention is not None
        heads, size = layer.attention.key_heads, layer.attention.head_size
        for kind in ("key", "value"):
            values.append(float_value(f"{name}.{index}.{kind}", ["batch", heads, length, size]))
    return values
