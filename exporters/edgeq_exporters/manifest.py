"""What every export has beside its weights: a manifest of what became of each tensor, and files that appear whole."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.types import Grid, NumpyArray

MANIFEST_NAME = "manifest.json"

Entry = dict[str, Any]


def tensor_entry(
    *, name: str, source: str, type_name: str, grid: Grid | None, status: str, deviation: float, digest: str
) -> Entry:
    """What the manifest says of one tensor. Units: deviation in those of the weights."""
    return {
        "name": name,
        "source": source,
        "type": type_name,
        "bits": None if grid is None else grid.bits,
        "group_size": None if grid is None else grid.group_size,
        "status": status,
        "largest_deviation": deviation,
        "sha256": digest,
    }


def write_manifest(
    folder: Path, *, format_name: str, file: str, entries: Sequence[Entry], settings: Mapping[str, Any] | None = None
) -> Path:
    """Write manifest.json; `file` is what a reader opens first, settings are the options of the export."""
    path = folder / MANIFEST_NAME
    content = {"format": format_name, "file": file, **({"settings": settings} if settings else {}), "tensors": entries}
    write_in_place(path, (json.dumps(content, indent=1) + "\n").encode())
    return path


def sha256_of(*arrays: NumpyArray) -> str:
    """One hash over arrays in row-major little-endian bytes, the same for every container of one solution."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype=_little_endian(array.dtype)).view(np.uint8).data)
    return digest.hexdigest()


def _little_endian(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.kind == "V" else dtype.newbyteorder("<")  # bfloat16 has no other order


def write_in_place(path: Path, content: bytes) -> None:
    """Write a small file so that its name only ever stands for the complete content."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    rename_when_stored(partial, path)


def rename_when_stored(partial: Path, path: Path) -> None:
    """Give a finished file its name after its bytes have reached the disk."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
