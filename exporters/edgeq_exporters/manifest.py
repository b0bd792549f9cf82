"""What every export has beside its weights: a manifest of what became of each tensor, and files that appear whole."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.ownership import MANIFEST_FILE
from edgeq.storage import rename_when_stored
from edgeq.types import Grid, NumpyArray

__all__ = ["Entry", "rename_when_stored", "sha256_of", "tensor_entry", "write_in_place", "write_manifest"]

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
    """Write manifest.json, last of all files: it lists them.

    `file` is what a reader opens first, settings are the options of the export.
    """
    path = folder / MANIFEST_FILE
    others = (found for found in folder.rglob("*") if found.is_file() and found != path)
    files = sorted(found.relative_to(folder).as_posix() for found in others)
    content: dict[str, Any] = {"format": format_name, "file": file, "files": files}
    content |= {"settings": settings} if settings else {}
    content["tensors"] = entries
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
