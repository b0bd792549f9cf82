"""Llama-like models in mlx-lm: their tensors, and the quantization settings in the config.json it reads."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from edgeq.mlx_config import mlx_config
from edgeq.sources.layout import expected_linear_shapes, expected_outer_shapes
from edgeq.types import Grid

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

Config = Mapping[str, Any]
Shape = tuple[int, ...]
Shapes = Mapping[str, tuple[Shape, Grid | None]]


def tensor_shapes(config: Config) -> dict[str, Shape]:
    """Every tensor of the dense model that mlx-lm builds from a config, in the order of the file.

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
    """Linear layers of a block that have a bias, in mlx-lm as in transformers."""
    if config["model_type"] != "llama":
        return ATTENTION[:3] if config["model_type"] == "qwen2" else ()
    return (ATTENTION if config.get("attention_bias") else ()) + (MLP if config.get("mlp_bias") else ())


def exported_config(config: Config, grids: Shapes) -> dict[str, Any]:
    """The config.json that mlx-lm reads: its model, and how its weights are quantized."""
    written = mlx_config(config)
    if any(grid is not None for _, grid in grids.values()):
        written["quantization"] = written["quantization_config"] = quantization(grids)
    return written


def quantization(grids: Shapes) -> dict[str, Any]:
    """The grid of most weights in blocks as the default, then every module that differs; false for dense ones."""
    settings = {
        name.removesuffix(".weight"): _settings(grid) for name, (shape, grid) in grids.items() if len(shape) == 2
    }
    default = _settings(_commonest_grid(grids))
    return {**default, **{module: of_module or False for module, of_module in settings.items() if of_module != default}}


def _commonest_grid(grids: Shapes) -> Grid:
    """Embedding and head, which often have a grid of their own, count only where nothing else is quantized."""
    everywhere: Counter[Grid] = Counter()
    in_blocks: Counter[Grid] = Counter()
    for name, ((rows, *columns), grid) in grids.items():
        if grid is not None:
            kind = Grid(grid.bits, grid.group_size)  # zero points and scale types need no setting
            everywhere[kind] += rows * columns[0]
            in_blocks[kind] += rows * columns[0] * (".layers." in name)
    return (+in_blocks or everywhere).most_common(1)[0][0]


def _settings(grid: Grid | None) -> dict[str, Any]:
    return {} if grid is None else {"group_size": grid.group_size, "bits": grid.bits, "mode": "affine"}
