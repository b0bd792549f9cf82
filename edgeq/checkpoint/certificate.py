"""What certifies an export: a hash of every solution, a hash of every file, and its checkpoint.

A solution has the same hash in every container. Exporters write the hashes into their manifests,
and `edgeq.measuring.verify` compares them with what lies on disk.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.checkpoint.reader import Checkpoint
from edgeq.files.hashes import hash_of_content, hash_of_file
from edgeq.files.json_files import read_json, write_json
from edgeq.files.ownership import CARD_FILE, MANIFEST_FILE, MODELFILE
from edgeq.files.plain_files import is_plain_file
from edgeq.files.storage import write_bytes
from edgeq.types import NumpyArray, QuantizedLinear

SEAL = "sha256"
"""The key of a manifest that holds the hash of all that it states otherwise."""


def sha256_of(*arrays: NumpyArray) -> str:
    """Hash arrays by their row-major little-endian bytes, equally on every machine."""
    digest = hashlib.sha256()
    for array in arrays:
        stored = np.ascontiguousarray(array, dtype=_little_endian(array.dtype))
        digest.update(stored.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _little_endian(dtype: np.dtype[Any]) -> np.dtype[Any]:
    # bfloat16 (kind V) has no other order
    return dtype if dtype.kind == "V" else dtype.newbyteorder("<")


def hash_of_layer(layer: QuantizedLinear) -> str:
    """Hash a solution by its codes, scales, offsets and outliers, equally in every container."""
    same = without_signed_zeros(without_zero_at_zero(layer))
    outliers = () if same.outliers is None else (same.outliers.columns, same.outliers.values)
    return sha256_of(same.codes, same.scales, same.offsets, *outliers)


def without_zero_at_zero(layer: QuantizedLinear) -> QuantizedLinear:
    """Write the same weights without whole zero points of 0, which some containers cannot carry.

    Such a group is written from its other end: s q = -s ((max - q) - max). Its zero point becomes
    max = 2 ** bits - 1.
    """
    if layer.grid.zeros != "integer":
        return layer
    turned = layer.zeros == 0
    if not turned.any():
        return layer
    last = layer.grid.max_code
    scales = np.where(turned, -layer.scales, layer.scales)
    offsets = np.where(turned, layer.scales * np.float32(last), layer.offsets)
    of_column = turned[:, layer.grid.group_index(layer.codes.shape[1])]
    codes = np.where(of_column, np.uint8(last) - layer.codes, layer.codes)
    return replace(layer, codes=codes, scales=scales, offsets=offsets)


def without_signed_zeros(layer: QuantizedLinear) -> QuantizedLinear:
    """Write the same weights with zeros of one sign.

    Scales and offsets are zero only on grids with a type, where the sign of a product says nothing.
    """
    if not layer.grid.type:
        return layer
    zero = np.float32(0)  # which is added to a zero of either sign
    return replace(layer, scales=layer.scales + zero, offsets=layer.offsets + zero)


def seal(folder: Path, checkpoint: Checkpoint, *, card: bytes | None = None) -> None:
    """Add to an export's manifest what it was made from, and its card, which is written first."""
    path = folder / MANIFEST_FILE
    manifest = read_json(path)
    if card is not None:
        write_bytes(folder / CARD_FILE, card)
        files = manifest["files"] | {CARD_FILE: hash_of_file(folder / CARD_FILE)}
        manifest["files"] = dict(sorted(files.items()))
    manifest["checkpoint"] = seal_of(checkpoint)
    write_sealed(path, manifest)


def write_sealed(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest with a hash of what it states, so that no change of it goes unseen."""
    content = {key: value for key, value in manifest.items() if key != SEAL}
    write_json(path, content | {SEAL: hash_of_content(content)}, indent=1)


def is_sealed(folder: Path, checkpoint: Checkpoint) -> bool:
    """Say whether an export is there that was made from this very checkpoint."""
    path = folder / MANIFEST_FILE
    return is_plain_file(path) and read_json(path).get("checkpoint") == seal_of(checkpoint)


def has_own_texts(folder: Path) -> bool:
    """Say whether an export's card and Modelfile are as they were written, or not there."""
    files = read_json(folder / MANIFEST_FILE).get("files")
    stated = files if isinstance(files, dict) else {}
    there = [name for name in (CARD_FILE, MODELFILE) if is_plain_file(folder / name)]
    return all(hash_of_file(folder / name) == stated.get(name) for name in there)


def why_not_as_written(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Name what differs from an export written with these settings; None when nothing does."""
    manifest = read_json(folder / MANIFEST_FILE)
    stated, files = manifest.get("settings", {}), manifest.get("files")
    if not isinstance(stated, dict) or not isinstance(files, dict):
        return f"its {MANIFEST_FILE} is damaged"
    if manifest.get("file") not in files:
        return f"its {MANIFEST_FILE} is damaged"
    if stated != settings:
        names = sorted({*stated, *settings})
        others = [name for name in names if stated.get(name) != settings.get(name)]
        was = ", ".join(f"{name} {json.dumps(stated.get(name))}" for name in others)
        return f"it was made with other options ({was})"
    for name, digest in files.items():
        if name in (CARD_FILE, MODELFILE):  # people write into them
            continue
        if not (folder / name).is_file():
            return f"its file {name} is missing"
        if hash_of_file(folder / name) != digest:
            return f"its file {name} was changed or damaged"
    return None


def seal_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Give the hashes by which a manifest names the checkpoint that an export was made from."""
    return {"source": checkpoint.fingerprint(), "solution": checkpoint.solution_fingerprint()}
