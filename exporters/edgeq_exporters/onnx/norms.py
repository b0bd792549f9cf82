"""Add norms to a graph: of all columns, or of each head by itself."""

from dataclasses import dataclass

import numpy as np

from edgeq.decoder import Decoder, Norm
from edgeq_exporters.onnx.graph import CONTRIB, GraphBuilder


@dataclass(frozen=True, slots=True)
class NormNode:
    """Describes one norm: the name of its output, its width, its tensors, if it has any."""

    output: str
    width: int
    weight: str | None = None
    bias: str | None = None


def norm_node(block: str, norm: Norm) -> NormNode:
    """Describe a norm of a block, which is named after its module."""
    bias = None if norm.bias is None else f"{block}.{norm.bias}"
    weight = f"{block}.{norm.tensor}"
    return NormNode(weight.removesuffix(".weight"), norm.width, weight, bias)


def add_norm(builder: GraphBuilder, decoder: Decoder, value: str, norm: NormNode) -> str:
    """Add a norm of the model's kind, over the last axis."""
    assert decoder.epsilon is not None
    weight = norm_weight(builder, decoder, norm)
    if decoder.norm == "rms":
        return builder.norm(value, weight, norm.output, epsilon=decoder.epsilon)
    inputs = [value, weight] if norm.bias is None else [value, weight, norm.bias]
    epsilon = decoder.epsilon
    return builder.add("LayerNormalization", inputs, norm.output, axis=-1, epsilon=epsilon)


def add_and_norm(
    builder: GraphBuilder, decoder: Decoder, residual: str, value: str, norm: NormNode
) -> tuple[str, str]:
    """Add the norm of a sum, and return the names of the norm and of the sum."""
    total = f"{norm.output}.residual"
    if decoder.norm != "rms":
        builder.add("Add", [residual, value], total)
        return add_norm(builder, decoder, total, norm), total
    # The two outputs without a name are a mean and a deviation that nothing needs.
    outputs = (norm.output, "", "", total)
    inputs = [residual, value, norm_weight(builder, decoder, norm)]
    operator, epsilon = "SkipSimplifiedLayerNormalization", decoder.epsilon
    builder.add(operator, inputs, *outputs, domain=CONTRIB, epsilon=epsilon)
    return norm.output, total


def norm_weight(builder: GraphBuilder, decoder: Decoder, norm: NormNode) -> str:
    """Give the weight of a norm as it multiplies: what the model adds to it is added in the graph.

    The stored weight stays that of the checkpoint. ONNX Runtime adds once, when it loads the graph.
    """
    if norm.weight is None:
        return builder.constant(f"{norm.output}.ones", np.ones(norm.width), np.float32)
    if decoder.norm_offset == 0:
        return norm.weight
    offset = builder.constant(f"{norm.output}.offset", decoder.norm_offset, np.float32)
    return builder.add("Add", [norm.weight, offset], f"{norm.output}.multiplier")


def add_norm_by_head(
    builder: GraphBuilder, decoder: Decoder, value: str, norm: NormNode, heads: int
) -> str:
    """Add a norm of each head by itself.

    Shapes: (batch, tokens, heads * width) -> the same.
    """
    module, width = norm.output, norm.width
    apart = builder.constant(f"{module}.apart", [0, 0, heads, width], np.int64)
    together = builder.constant(f"{module}.together", [0, 0, heads * width], np.int64)
    by_head = builder.add("Reshape", [value, apart], f"{module}.by_head")
    of_heads = NormNode(f"{module}.heads", width, norm.weight, norm.bias)
    normed = add_norm(builder, decoder, by_head, of_heads)
    return builder.add("Reshape", [normed, together], module)
