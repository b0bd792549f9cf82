"""Make the config.json that mlx-lm reads: its model, and the quantization settings.

What mlx-lm's models compute is said in `edgeq.architectures.mlx`.
"""

from collections import Counter
from typing import Any

from edgeq.architectures.mlx_config import mlx_config
from edgeq.decoder import ModelRecord
from edgeq.types import Grid
from edgeq_exporters.common.decoder import Shapes


def exported_config(record: ModelRecord, grids: Shapes) -> dict[str, Any]:
    """Make the config.json that mlx-lm reads, with the quantization of the weights.

    Shapes: grids has the tensors of the file, stacks of experts with all their rows under another.
    """
    written = mlx_config(record)
    if any(grid is not None for _, grid in grids.values()):
        written["quantization"] = written["quantization_config"] = quantization(grids)
    return written


def quantization(grids: Shapes) -> dict[str, Any]:
    """Make the quantization settings: a default, then every module that differs from it.

    The default is the grid of most weights in blocks. A dense module is false.
    """
    settings = _settings(_commonest_grid(grids))
    default = dict(settings)
    for name, (shape, grid) in grids.items():
        of_module = _settings(grid)
        if len(shape) == 2 and of_module != default:
            settings[name.removesuffix(".weight")] = of_module or False
    return settings


def _commonest_grid(grids: Shapes) -> Grid:
    """Find the grid of most weights.

    Embedding and head often have a grid of their own; they count only where no block has one.
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
    if grid is None:
        return {}
    return {"group_size": grid.group_size, "bits": grid.bits, "mode": "affine"}
