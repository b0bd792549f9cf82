"""Add the feed-forward part of a block to a graph, with the activations that it computes."""

from collections.abc import Callable, Mapping

from edgeq.decoder import Layer
from edgeq_exporters.onnx.graph import GraphBuilder, Matrices, add_linear


def add_feed_forward(
    builder: GraphBuilder, matrices: Matrices, block: str, layer: Layer, value: str
) -> str:
    """Add down(activation(gate) * up), or down(activation(up)) where there is no gate."""
    assert layer.mlp is not None
    _, _, first, (down,) = (tuple(spec.inside(block) for spec in site) for site in layer.sites)
    module = f"{block}.mlp"
    products = [add_linear(builder, matrices, spec, value) for spec in first]
    if layer.mlp.gated and len(products) == 1:
        names = [f"{module}.gate", f"{module}.up"]
        products = builder.split(products[0], names, [layer.mlp.inner] * 2)
    active = ACTIVATIONS[layer.mlp.activation](builder, products[0], f"{module}.activated")
    if layer.mlp.gated:
        active = builder.add("Mul", [active, products[1]], f"{module}.gated")
    return add_linear(builder, matrices, down, active)


def _silu(builder: GraphBuilder, value: str, output: str) -> str:
    sigmoid = builder.add("Sigmoid", [value], f"{output}.sigmoid")
    return builder.add("Mul", [value, sigmoid], output)


def _gelu(builder: GraphBuilder, value: str, output: str) -> str:
    return builder.add("Gelu", [value], output, approximate="none")


def _gelu_by_tanh(builder: GraphBuilder, value: str, output: str) -> str:
    return builder.add("Gelu", [value], output, approximate="tanh")


def _relu(builder: GraphBuilder, value: str, output: str) -> str:
    return builder.add("Relu", [value], output)


def _squared_relu(builder: GraphBuilder, value: str, output: str) -> str:
    relu = builder.add("Relu", [value], f"{output}.relu")
    return builder.add("Mul", [relu, relu], output)


ACTIVATIONS: Mapping[str, Callable[[GraphBuilder, str, str], str]] = {
    "silu": _silu,
    "swish": _silu,
    "gelu": _gelu,
    "gelu_new": _gelu_by_tanh,
    "gelu_pytorch_tanh": _gelu_by_tanh,
    "relu": _relu,
    "relu2": _squared_relu,
}
"""Activations by their names in configs, as transformers knows them."""
