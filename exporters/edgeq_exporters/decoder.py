"""The tensors of Llama-like decoders, as transformers builds them from a config."""

from collections.abc import Mapping
from typing import Any

from edgeq.sources.layout import expected_linear_shapes, expected_outer_shapes
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
    """Linear layers of a block that have a bias."""
    if config["model_type"] != "llama":
        return ATTENTION[:3] if config["model_type"] == "qwen2" else ()
    return (ATTENTION if config.get("attention_bias") else ()) + (MLP if config.get("mlp_bias") else ())
