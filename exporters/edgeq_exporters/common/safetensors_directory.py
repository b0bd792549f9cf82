"""Write model directories of safetensors files: shards, index, config.json and manifest.

What the tensors are is left to each format.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from edgeq.decoder import ModelRecord
from edgeq.dtypes import CODE_NAMES, NUMPY
from edgeq.files.json_files import json_bytes
from edgeq.files.storage import rename_when_stored, write_bytes
from edgeq.types import Grid, NumpyArray, ScaleDtype
from edgeq_exporters.common.decoder import Shapes
from edgeq_exporters.common.manifest import Entry, sha256_of, tensor_entry, write_manifest

# One shard is in memory at a time, so this bounds memory. A larger tensor has a shard of its own.
SHARD_BYTES = 1_000_000_000
INDEX_NAME = "model.safetensors.index.json"

HOLDERS: Mapping[ScaleDtype, Sequence[ScaleDtype]] = {
    "float16": ("float16", "float32"),
    "bfloat16": ("bfloat16", "float32"),
    "float32": ("float32",),
}
"""The types that hold every number of a type."""

MakeTensor = Callable[[str], tuple[Mapping[str, NumpyArray], Entry | Sequence[Entry]]]
"""Makes what is stored under a name, and its entry, or those of all tensors that it is made of."""


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """Describes a file of weights: the bytes, names and manifest entries of its tensors."""

    path: Path
    size: int
    names: Sequence[str]
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class DirectoryContent:
    """Says what goes into a directory.

    `label` is the framework that the metadata of the files name. `make` gives what is stored of a
    tensor. `sizes` has every tensor of the model, in the order of the file.

    Units: sizes in bytes.
    """

    format_name: str
    label: str
    sizes: Mapping[str, int]
    make: MakeTensor
    config: Mapping[str, Any]
    companions: Mapping[str, bytes]


def write_directory(content: DirectoryContent, destination: Path) -> list[Path]:
    """Write a directory and list what was written, first the directory that runtimes are given.

    The tensors of one shard are in memory at a time. The same content gives the same bytes.
    """
    shards = write_shards(content, destination)
    files = {INDEX_NAME: json_bytes(_index(shards)), "config.json": json_bytes(content.config)}
    added = sorted(set(content.companions) - set(files))
    files |= {name: content.companions[name] for name in added}
    for name, data in files.items():
        write_bytes(destination / name, data)
    weights = [shard.path for shard in shards]
    first = weights[0].name if len(weights) == 1 else INDEX_NAME
    entries = [entry for shard in shards for entry in shard.entries]
    manifest = write_manifest(
        destination, format_name=content.format_name, file=first, entries=entries
    )
    return [destination, *weights, *(destination / name for name in files), manifest]


def plan_shards(sizes: Mapping[str, int]) -> list[list[str]]:
    """Divide tensor names among shards, in order, as many to each as the limit allows.

    Units: sizes in bytes.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name, added in sizes.items():
        if shards[-1] and size + added > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += added
    return shards


def write_shards(content: DirectoryContent, folder: Path) -> list[WrittenShard]:
    """Write every shard under a temporary name, and rename them when all are complete."""
    plan = plan_shards(content.sizes)
    paths = [folder / name for name in shard_names(len(plan))]
    try:
        written = [
            _write_shard(content, names, path) for path, names in zip(paths, plan, strict=True)
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


def _write_shard(content: DirectoryContent, names: Sequence[str], path: Path) -> WrittenShard:
    tensors: dict[str, NumpyArray] = {}
    entries: list[Entry] = []
    for name in names:
        stored, made = content.make(name)
        tensors |= stored
        of_name = [made] if isinstance(made, dict) else made
        entries += [entry | {"file": path.name} for entry in of_name]
    save_file(tensors, _partial(path), metadata={"format": content.label})
    return WrittenShard(path, sum(array.nbytes for array in tensors.values()), [*tensors], entries)


def _index(shards: Sequence[WrittenShard]) -> dict[str, Any]:
    """Make the index that says which file holds a tensor.

    Units: total_size in bytes.
    """
    files = {name: shard.path.name for shard in shards for name in shard.names}
    return {
        "metadata": {"total_size": sum(shard.size for shard in shards)},
        "weight_map": dict(sorted(files.items())),
    }


def dense_dtype(record: ModelRecord, grids: Shapes) -> ScaleDtype:
    """Choose the type of dense tensors, which is the one that runtimes compute in.

    It is the model's: activations of a bfloat16 model may be infinite in float16. Where the scales
    are of a type that holds all its numbers it is theirs.
    """
    weights: Counter[ScaleDtype] = Counter()
    for (rows, *columns), grid in grids.values():
        if grid is not None:
            weights[grid.scale_dtype] += rows * columns[0]
    own = next(kind for kind in NUMPY if kind == record.dtype)
    scales = weights.most_common(1)[0][0] if weights else own
    return scales if scales in HOLDERS[own] else own


def dense_tensor(array: NumpyArray, dense: ScaleDtype) -> tuple[NumpyArray, float]:
    """Round a tensor to the type of the scales, and return the largest rounding error with it.

    A tensor with a value that would overflow stays as it is. The precision of a weight spreads to
    the activations, so one wider tensor would make the whole model wider.
    """
    with np.errstate(over="ignore"):
        rounded = array.astype(NUMPY[dense])
    if rounded.dtype == array.dtype or not np.isfinite(rounded).all():
        return np.asarray(array, order="C"), 0.0
    difference = rounded.astype(np.float32) - array.astype(np.float32)
    return np.asarray(rounded, order="C"), float(np.abs(difference).max(initial=0.0))


def make_dense(
    name: str,
    array: NumpyArray,
    dense: ScaleDtype,
    *,
    digest: str | None = None,
    solved_on: Grid | None = None,
) -> tuple[Mapping[str, NumpyArray], Entry]:
    """Make a dense tensor as it is stored, and the entry that says what became of it.

    `digest` and `solved_on` are given where the tensor was solved as codes.
    """
    stored, deviation = dense_tensor(array, dense)
    entry = tensor_entry(
        name=name,
        source=name,
        type_name=CODE_NAMES[str(stored.dtype)],
        grid=None,
        status="dense",
        deviation=deviation,
        digest=digest or sha256_of(array),
        stored=sha256_of(stored),
        solved_on=solved_on,
    )
    return {name: stored}, entry
