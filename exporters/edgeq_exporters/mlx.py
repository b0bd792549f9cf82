"""MLX directories for mlx-lm: Llama-like models in MLX's affine quantization."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from edgeq.errors import BadInput
from edgeq.mlx_config import why_not_mlx
from edgeq.protocols import QuantizedModel
from edgeq.sources.safetensors_directory import is_redundant
from edgeq.types import Grid, NumpyArray, ScaleDtype
from edgeq_exporters.decoder import Shapes, tensor_shapes
from edgeq_exporters.manifest import (
    Entry,
    rename_when_stored,
    sha256_of,
    tensor_entry,
    write_in_place,
    write_manifest,
)
from edgeq_exporters.mlx_architecture import exported_config
from edgeq_exporters.mlx_tensors import dense_tensor, quantized_tensors, stored_bytes, why_not_grid

SHARD_BYTES = 1_000_000_000  # a larger tensor has a shard of its own
INDEX_NAME = "model.safetensors.index.json"
DENSE_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A file of weights: the bytes of its tensors, the names they have there, and the manifest's entries."""

    path: Path
    size: int
    names: Sequence[str]
    entries: Sequence[Entry]


class MlxExporter:
    """Writes the directory that mlx-lm loads. Integer zero points are accepted; their offsets are rounded."""

    name = "mlx"
    zero_kinds: Sequence[str] = ("symmetric", "offset")

    def reject_reason(self, config: Mapping[str, Any], companions: Mapping[str, bytes], grids: Shapes) -> str | None:
        """Why this model on these grids cannot be written, naming what to change; None when it can.

        Shapes: grids maps each tensor name to its shape and its grid (None: dense).
        Raises: BadInput for a config whose sizes are not positive whole numbers.
        """
        return why_not_mlx(config) or why_not_tensors(config, grids)

    def write(self, model: QuantizedModel, destination: Path) -> list[Path]:
        """Write the directory; the result starts with `destination` itself, which is what mlx-lm is given.

        The tensors of one shard are in memory at a time. The same model gives the same bytes.

        Raises: BadInput, before anything is written, for a model with a `reject_reason`.
        """
        companions = model.companions()
        reason = self.reject_reason(model.config, companions, _claimed_grids(model))
        if reason is not None:
            raise BadInput(f"export 'mlx': {reason}")
        grids = planned_grids(model)
        shards = write_shards(model, grids, destination)
        files = {
            INDEX_NAME: _json_bytes(_index(shards)),
            "config.json": _json_bytes(exported_config(model.config, grids)),
        }
        files |= {name: companions[name] for name in sorted(companions) if name not in files}
        for name, content in files.items():
            write_in_place(destination / name, content)
        weights = [shard.path for shard in shards]
        first = weights[0].name if len(weights) == 1 else INDEX_NAME
        entries = [entry for shard in shards for entry in shard.entries]
        manifest = write_manifest(destination, format_name=self.name, file=first, entries=entries)
        return [destination, *weights, *(destination / name for name in files), manifest]


def why_not_tensors(config: Mapping[str, Any], grids: Shapes) -> str | None:
    """The first tensor, by name, that mlx-lm has no place for, wants in another shape, cannot compute with or lacks."""
    expected = tensor_shapes(config)
    kept = {name: grids[name] for name in sorted(grids) if not is_redundant(name, config)}
    for name, (shape, grid) in kept.items():
        if name not in expected:
            return _no_place(name, config)
        if shape != expected[name]:
            return _wrong_shape(name, shape, expected[name])
        reason = None if grid is None else why_not_grid(shape, grid)
        if reason is not None:
            return f"tensor '{name}': {reason}"
    missing = next((name for name in expected if name not in kept), None)
    if missing is None:
        return None
    return f"the model has no tensor '{missing}', which mlx-lm builds from config.json; add it or correct config.json"


def _wrong_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return (
        f"tensor '{name}' has shape {found} but config.json asks for {expected};"
        " use the config.json that belongs to these weights"
    )


def _no_place(name: str, config: Mapping[str, Any]) -> str:
    advice = "only models with mlx-lm's own tensors can be written"
    if name.endswith(".bias") and config["model_type"] == "llama":
        advice = "for biases set attention_bias or mlp_bias in config.json"
    return f"tensor '{name}' has no place in mlx-lm's {config['model_type']} with this config; {advice}"


def _claimed_grids(model: QuantizedModel) -> Shapes:
    """Grids with the shapes that the config asks for; no tensor is read for its own."""
    if why_not_mlx(model.config) is not None:
        return {}
    shapes = tensor_shapes(model.config)
    return {name: (shapes.get(name, ()), model.grid(name)) for name in model.tensor_names()}


def planned_grids(model: QuantizedModel) -> Shapes:
    """Shape and grid of every tensor to be written, in the order of the file."""
    return {name: (shape, model.grid(name)) for name, shape in tensor_shapes(model.config).items()}


def dense_dtype(grids: Shapes) -> ScaleDtype:
    """The scale type of most quantized weights; float16 where none is quantized."""
    weights: Counter[ScaleDtype] = Counter()
    for (rows, *columns), grid in grids.values():
        if grid is not None:
            weights[grid.scale_dtype] += rows * columns[0]
    return weights.most_common(1)[0][0] if weights else "float16"


def plan_shards(grids: Shapes, *, dense: ScaleDtype) -> list[list[str]]:
    """Tensor names by shard, in order, as many in each as the limit allows."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, (shape, grid) in grids.items():
        added = stored_bytes(shape, grid, dense)
        if shards[-1] and size + added > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += added
    return shards


def write_shards(model: QuantizedModel, grids: Shapes, folder: Path) -> list[WrittenShard]:
    """Write every shard under a temporary name, and rename them when all are complete."""
    dense = dense_dtype(grids)
    plan = plan_shards(grids, dense=dense)
    paths = [folder / name for name in shard_names(len(plan))]
    try:
        written = [
            _write_shard(model, {name: grids[name] for name in members}, path, dense=dense)
            for path, members in zip(paths, plan, strict=True)
        ]
        for path in paths:
            rename_when_stored(_partial(path), path)
    finally:
        for path in paths:
            _partial(path).unlink(missing_ok=True)
    return written


def shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _write_shard(model: QuantizedModel, members: Shapes, path: Path, *, dense: ScaleDtype) -> WrittenShard:
    tensors: dict[str, NumpyArray] = {}
    entries = []
    for name, (shape, grid) in members.items():
        stored, entry = _tensor(model, name, shape, grid, dense)
        tensors |= stored
        entries.append(entry | {"file": path.name})
    save_file(tensors, _partial(path), metadata={"format": "mlx"})
    return WrittenShard(path, sum(array.nbytes for array in tensors.values()), [*tensors], entries)


def _tensor(
    model: QuantizedModel, name: str, shape: tuple[int, ...], grid: Grid | None, dense: ScaleDtype
) -> tuple[Mapping[str, NumpyArray], Entry]:
    """What is stored of one tensor, and what became of it."""
    if grid is None:
        array = model.dense(name)
        _check_shape(name, array.shape, shape)
        stored, deviation = dense_tensor(array, dense)
        type_name, status, digest = DENSE_TYPES[str(stored.dtype)], "dense", sha256_of(array)
        tensors: Mapping[str, NumpyArray] = {name: stored}
    else:
        layer = model.quantized(name)
        _check_shape(name, layer.codes.shape, shape)
        tensors, deviation = quantized_tensors(name, layer)
        type_name, status = "affine", "rescaled" if deviation else "exact"
        digest = sha256_of(layer.codes, layer.scales, layer.offsets)
    return tensors, tensor_entry(
        name=name, source=name, type_name=type_name, grid=grid, status=status, deviation=deviation, digest=digest
    )


def _check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise BadInput(f"export 'mlx': {_wrong_shape(name, found, expected)}")


def _index(shards: Sequence[WrittenShard]) -> dict[str, Any]:
    """Which file holds a tensor. Units: total_size in bytes."""
    files = {name: shard.path.name for shard in shards for name in shard.names}
    return {"metadata": {"total_size": sum(shard.size for shard in shards)}, "weight_map": dict(sorted(files.items()))}


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
