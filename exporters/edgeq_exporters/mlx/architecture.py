"""Llama-like models in mlx-lm: the quantization settings in the config.json it reads."""

from collections import Counter
from typing import Any

from edgeq.architectures.mlx import mlx_config
from edgeq.decoder import ModelRecord
from edgeq.types import Grid
from edgeq_exporters.common.decoder import Shapes


def exported_config(record: ModelRecord, grids: Shapes) -> dict[str, Any]:
    """The config.json that mlx-lm reads: its model, and how its weights are quantized."""
    written = mlx_config(record)
    if any(grid is not None for _, grid in grids.values()):
        written["quantization"] = written["quantization_config"] = quantization(grids)
    return written


def quantization(grids: Shapes) -> dict[str, Any]:
    """The grid of most weights in blocks as the default, then every module that differs; false for
    dense ones.
    """
    settings = {
        name.removesuffix(".weight"): _settings(grid)
        for name, (shape, grid) in grids.items()
        if len(shape) == 2
    }
    default = _settings(_commonest_grid(grids))
    return {
        **default,
        **{
            module: of_module or False
            for module, of_module in settings.items()
            if of_module != default
        },
    }


def _commonest_grid(grids: Shapes) -> Grid:
    """Embedding and head, which often have a grid of their own, count only where nothing else is
    quantized.
    """
    everywhere: Counter[Grid] = Counter()
    in_blocks: Counter[Grid] = Counter()
    for name, ((rows, *columns), grid) in grids.items():
        if grid is not None:
            kind = Grid(grid.bits, grid.group_size)  # zero points and scale types need no setting
            everywhere[kind] += rows * columns[0]
            in_blocks[kind] += rows * columns[0] * (".layers." in name)
    return (+in_blocks or everywhere).most_common(1)[0][0]


def _settings(grid: Grid | None) -> dict[str, Any]:
    return (
        {} if grid is None else {"group_size": grid.group_size, "bits": grid.bits, "mode": "affine"}
    )
