"""Build the decoder of Llama-like models as an ONNX graph with a key-value cache.

Single nodes are left to `graph`, the bytes of tensors to `tensors`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from edgeq.decoder import Attention, Decoder
from edgeq_exporters.onnx.graph import (
    CONTRIB,
    GraphBuilder,
    Matrices,
    float_value,
    id_value,
    sorted_initializers,
)

OPSET = 21  # the first with 4-bit types and blocks in DequantizeLinear
IR_VERSION = 10  # what opset 21 came with
COSINES, SINES = "cos_cache", "sin_cache"


def decoder_model(decoder: Decoder, builder: GraphBuilder, matrices: Matrices) -> ModelProto:
    """Build the whole model from a builder that holds the initializers of every tensor.

    Inputs are input_ids, attention_mask over cached and new tokens (1, then 0 for padding on the
    right) and the cache. Outputs are logits and the extended cache. Names are those that
    onnxruntime-genai expects.
    """
    assert decoder.epsilon is not None
    attended = attended_lengths(builder)
    embedding, final, head = (
        tensor.removesuffix(".weight")
        for tensor in (decoder.embedding, decoder.final_norm, decoder.head)
    )
    blocks = [decoder.block_name(index) for index in range(len(decoder.layers))]
    norms = [*(f"{block}.input_layernorm" for block in blocks), final]  # the last is after them all
    residual = builder.lookup(matrices[embedding], "input_ids", embedding)
    normed = builder.norm(residual, f"{norms[0]}.weight", norms[0], epsilon=decoder.epsilon)
    for index, (block, layer) in enumerate(zip(blocks, decoder.layers, strict=True)):
        assert layer.attention is not None
        attention = AttentionBlock(f"{block}.self_attn", index, layer.attention)
        value = _attention(builder, attention, matrices, normed, attended, decoder.epsilon)
        norm = f"{block}.post_attention_layernorm"
        normed, residual = builder.add_and_norm(
            residual, value, f"{norm}.weight", norm, epsilon=decoder.epsilon
        )
        value = _feed_forward(builder, matrices, f"{block}.mlp", normed)
        norm = norms[index + 1]
        normed, residual = builder.add_and_norm(
            residual, value, f"{norm}.weight", norm, epsilon=decoder.epsilon
        )
    builder.multiply(matrices[head], normed, "logits")
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


def attended_lengths(builder: GraphBuilder) -> tuple[str, str]:
    """Add what GroupQueryAttention takes: each sequence's last index, and the longest length."""
    axes = builder.constant("attention_mask.axes", [1], np.int64)
    one = builder.constant("attention_mask.one", [1], np.int64)
    axis = builder.constant("attention_mask.axis", 1, np.int64)
    lengths = builder.add(
        "ReduceSum", ["attention_mask", axes], "attention_mask.lengths", keepdims=0
    )
    last = builder.add("Sub", [lengths, one], "attention_mask.last")
    shape = builder.add("Shape", ["attention_mask"], "attention_mask.shape")
    total = builder.add("Gather", [shape, axis], "attention_mask.total")
    return (
        builder.add("Cast", [last], "attention_mask.last_32", to=TensorProto.INT32),
        builder.add("Cast", [total], "attention_mask.total_32", to=TensorProto.INT32),
    )


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """Describes the attention of one block: its module's name, its number, and its traits."""

    module: str
    index: int
    traits: Attention


def _attention(
    builder: GraphBuilder,
    block: AttentionBlock,
    matrices: Matrices,
    value: str,
    attended: tuple[str, str],
    epsilon: float,
) -> str:
    module, traits = block.module, block.traits
    projected = [_linear(builder, matrices, f"{module}.{name}_proj", value) for name in "qkv"]
    if traits.head_norms:
        heads = (traits.heads, traits.key_heads)
        for place, (name, count) in enumerate(zip("qk", heads, strict=True)):
            norm = f"{module}.{name}_norm"
            projected[place] = _head_norm(
                builder, projected[place], norm, count, traits.head_size, epsilon
            )
    past = [f"past_key_values.{block.index}.{kind}" for kind in ("key", "value")]
    present = [f"present.{block.index}.{kind}" for kind in ("key", "value")]
    attributes: dict[str, Any] = {}
    if traits.window is not None:
        attributes["local_window_size"] = traits.window
    builder.add(
        "GroupQueryAttention",
        [*projected, *past, *attended, COSINES, SINES],
        module,
        *present,
        domain=CONTRIB,
        num_heads=traits.heads,
        kv_num_heads=traits.key_heads,
        scale=traits.head_size**-0.5,
        do_rotary=1,
        rotary_interleaved=0,
        **attributes,
    )
    return _linear(builder, matrices, f"{module}.o_proj", module)


def _head_norm(
    builder: GraphBuilder, value: str, module: str, heads: int, width: int, epsilon: float
) -> str:
    """Norm each head by itself.

    Shapes: (batch, tokens, heads * width) -> the same.
    """
    apart = builder.constant(f"{module}.apart", [0, 0, heads, width], np.int64)
    together = builder.constant(f"{module}.together", [0, 0, heads * width], np.int64)
    by_head = builder.add("Reshape", [value, apart], f"{module}.by_head")
    normed = builder.norm(by_head, f"{module}.weight", f"{module}.heads", epsilon=epsilon)
    return builder.add("Reshape", [normed, together], module)


def _feed_forward(builder: GraphBuilder, matrices: Matrices, module: str, value: str) -> str:
    gate = _linear(builder, matrices, f"{module}.gate_proj", value)
    up = _linear(builder, matrices, f"{module}.up_proj", value)
    sigmoid = builder.add("Sigmoid", [gate], f"{module}.sigmoid")
    silu = builder.add("Mul", [gate, sigmoid], f"{module}.silu")
    gated = builder.add("Mul", [silu, up], f"{module}.gated")
    return _linear(builder, matrices, f"{module}.down_proj", gated)


def _linear(builder: GraphBuilder, matrices: Matrices, module: str, value: str) -> str:
    bias = f"{module}.bias"
    if bias not in builder.initializers:
        return builder.multiply(matrices[module], value, module)
    product = builder.multiply(matrices[module], value, f"{module}.product")
    return builder.add("Add", [product, bias], module)


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
    attention = decoder.attention
    shape: list[str | int] = ["batch", attention.key_heads, length, attention.head_size]
    names = [
        f"{name}.{index}.{kind}"
        for index in range(len(decoder.layers))
        for kind in ("key", "value")
    ]
    return [float_value(each, shape) for each in names]
