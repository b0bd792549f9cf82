"""What lies in a model, a checkpoint or a GGUF file, without running it."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeq.assembly import find_gguf, open_model
from edgeq.checkpoint import Checkpoint
from edgeq.plan import Grids, bits_per_weight
from edgeq.protocols import ModelSource
from edgeq.types import Grid


def inspect_model(name: str) -> dict[str, Any]:
    """Shapes, grids, bits per weight and size of a model, checkpoint or GGUF file."""
    source = open_model(str(find_gguf(name) or name))
    grids = grids_of(source)
    result: dict[str, Any] = {
        "model": source.name,
        "kind": "quantized checkpoint" if isinstance(source, Checkpoint) else "model",
        "architecture": source.config.get("model_type"),
        "blocks": len(source.blocks()),
        "parameters": parameter_count(grids),
        "tensors": tensor_rows(grids),
    }
    if isinstance(source, Checkpoint):
        result |= {"bits_per_weight": bits_per_weight(grids), "bytes": directory_bytes(source.path),
                   "recipe": source.head["recipe"]}  # fmt: skip
    else:
        result |= {"bytes at 16 bits": source_bytes(grids)}
    return result


def grids_of(source: ModelSource) -> Grids:
    """Shape and grid of every tensor; models that are not quantized by edgeq have no grids."""
    grid = source.grid if isinstance(source, Checkpoint) else _no_grid
    return {name: (source.shape(name), grid(name)) for name in source.tensor_names()}


def _no_grid(_: str) -> Grid | None:
    return None


def tensor_rows(grids: Grids) -> list[dict[str, Any]]:
    """Tensors of equal name, shape and grid across blocks, counted together."""
    counted: Counter[tuple[str, tuple[int, ...], Grid | None]] = Counter()
    for name, (shape, grid) in grids.items():
        counted[".".join("*" if part.isdigit() else part for part in name.split(".")), shape, grid] += 1
    return [
        {"name": name, "count": count, "shape": list(shape), "grid": describe_grid(grid)}
        for (name, shape, grid), count in counted.items()
    ]


def describe_grid(grid: Grid | None) -> str:
    if grid is None:
        return "dense"
    group = "row" if grid.group_size is None else str(grid.group_size)
    return f"{grid.bits} bits, group {group}, {grid.zeros}"


def parameter_count(grids: Grids) -> int:
    return sum(_elements(shape) for shape, _ in grids.values())


def source_bytes(grids: Grids) -> int:
    """Size of the model with 16 bits per parameter, the usual form it is shared in."""
    return 2 * parameter_count(grids)


def directory_bytes(path: Path) -> int:
    """Size of all files that belong to a checkpoint itself; exports inside it count apart."""
    own = [*path.glob("*"), *path.glob("blocks/*")]
    return sum(file.stat().st_size for file in own if file.is_file())


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
