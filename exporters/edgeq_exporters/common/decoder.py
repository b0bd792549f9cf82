"""Llama-like decoders: the tensors that a config asks for, and whether a model has exactly
these.
"""

from collections.abc import Callable, Mapping
from typing import Any

from edgeq.architectures.layout import expected_linear_shapes, expected_outer_shapes, is_redundant
from edgeq.errors import BadInput
from edgeq.protocols import QuantizedModel
from edgeq.types import Grid

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

Config = Mapping[str, Any]
Shape = tuple[int, ...]
Shapes = Mapping[str, tuple[Shape, Grid | None]]


def tensor_shapes(config: Config) -> dict[str, Shape]:
    """Every tensor of the dense model, in the order of the decoder.

    Raises: BadInput for sizes that are not positive whole numbers.
    """
    outer, linears = expected_outer_shapes(config), expected_linear_shapes(config)
    block: dict[str, Shape] = {}
    for linear, shape in linears.items():
        block[f"{linear}.weight"] = shape
        if linear in biased_linears(config):
            block[f"{linear}.bias"] = shape[:1]
    for norm in ("input_layernorm", "post_attention_layernorm"):
        block[f"{norm}.weight"] = outer["model.norm.weight"]
    shapes = {"model.embed_tokens.weight": outer.pop("model.embed_tokens.weight")}
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in block.items()}
    return shapes | outer


def biased_linears(config: Config) -> tuple[str, ...]:
    """Linear layers of a block that have a bias, in every runtime as in transformers."""
    if config["model_type"] != "llama":
        return ATTENTION[:3] if config["model_type"] == "qwen2" else ()
    return (ATTENTION if config.get("attention_bias") else ()) + (
        MLP if config.get("mlp_bias") else ()
    )


def why_not_tensors(
    config: Config,
    grids: Shapes,
    why_not_grid: Callable[[str, Shape, Grid], str | None],
    *,
    runtime: str,
) -> str | None:
    """The first tensor, by name, that a runtime has no place for, wants in another shape, cannot
    hold or lacks.
    """
    expected = tensor_shapes(config)
    kept = {name: grids[name] for name in sorted(grids) if not is_redundant(name, config)}
    for name, (shape, grid) in kept.items():
        if name not in expected:
            return _no_place(name, config, runtime)
        if shape != expected[name]:
            return wrong_shape(name, shape, expected[name])
        reason = None if grid is None else why_not_grid(name, shape, grid)
        if reason is not None:
            return f"tensor '{name}': {reason}"
    missing = next((name for name in expected if name not in kept), None)
    if missing is None:
        return None
    return (
        f"the model has no tensor '{missing}', which "
        "config.json asks for; add it or correct config.json"
    )


def wrong_shape(name: str, found: Shape, expected: Shape) -> str:
    return (
        f"tensor '{name}' has shape {found} but config.json asks for {expected};"
        " use the config.json that belongs to these weights"
    )


def check_shape(format_name: str, name: str, found: Shape, expected: Shape) -> None:
    """Raises: BadInput for a tensor of another shape than was planned."""
    if found != expected:
        raise BadInput(f"export '{format_name}': {wrong_shape(name, found, expected)}")


def _no_place(name: str, config: Config, runtime: str) -> str:
    advice = f"only models with {runtime}'s own tensors can be written"
    if name.endswith(".bias") and config["model_type"] == "llama":
        advice = "for biases set attention_bias or mlp_bias in config.json"
    return (
        f"tensor '{name}' has no place in {runtime}'s "
        f"{config['model_type']} with this config; {advice}"
    )


def why_not_outliers(grid: Grid, container: str) -> str | None:
    """What keeps a grid with outlier columns out of a container that has only codes; None for other
    grids.
    """
    if not grid.outlier_columns:
        return None
    return (
        f"{container} has no place for outlier columns; "
        "quantize without them, or choose format onnx"
    )


def claimed_grids(model: QuantizedModel) -> Shapes:
    """Grids with the shapes that the config asks for; no tensor is read for its own."""
    shapes = tensor_shapes(model.config)
    return {name: (shapes.get(name, ()), model.grid(name)) for name in model.tensor_names()}


def planned_grids(model: QuantizedModel) -> Shapes:
    """Shape and grid of every tensor to be written, in the order of the file."""
    return {name: (shape, model.grid(name)) for name, shape in tensor_shapes(model.config).items()}
