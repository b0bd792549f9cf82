"""Write the manifest beside an export: what became of each tensor, and each file's hash.

Readers and `edgeq verify` read it back.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeq.checkpoint.certificate import hash_of_layer, sha256_of, write_sealed
from edgeq.errors import BadInput
from edgeq.files.hashes import hash_files
from edgeq.files.ownership import MANIFEST_FILE
from edgeq.grids.types import with_type
from edgeq.types import Grid, QuantizedLinear
from edgeq.words import describe_grid
from edgeq_exporters.common.deviation import largest_difference

__all__ = [
    "Entry",
    "grid_of",
    "hash_of_layer",
    "quantized_entry",
    "sha256_of",
    "tensor_entry",
    "write_manifest",
]

Entry = dict[str, Any]


def tensor_entry(  # noqa: PLR0913 (one argument per field)
    *,
    name: str,
    source: str,
    type_name: str,
    grid: Grid | None,
    status: str,
    deviation: float,
    digest: str,
    stored: str | None = None,
    solved_on: Grid | None = None,
) -> Entry:
    """Describe one tensor for the manifest.

    `digest` is the hash of the solution. `stored` is the hash of what a reader finds in the file;
    it is needed where the two differ. `solved_on` is the grid of a tensor whose codes the file
    holds as dense numbers.

    Units: deviation in those of the weights.
    """
    if stored is None and status in ("exact", "widened"):
        stored = digest
    entry: Entry = {
        "name": name,
        "source": source,
        "type": type_name,
        "bits": None if grid is None else grid.bits,
        "group_size": None if grid is None else grid.group_size,
        "zeros": None if grid is None else grid.zeros,
        "scale_dtype": None if grid is None else grid.scale_dtype,
        "status": status,
        "largest_deviation": deviation,
        "sha256": digest,
        "stored_sha256": stored,
    }
    if grid is not None and grid.outlier_columns:
        entry["outlier_columns"] = grid.outlier_columns
    if grid is not None and grid.type:
        entry["grid_type"] = grid.type
    return entry if solved_on is None else entry | {"from": describe_grid(solved_on)}


def grid_of(entry: Mapping[str, Any]) -> Grid | None:
    """Read from an entry the grid that its tensor was solved on; None for a dense one.

    Raises: BadInput for a type that is unknown, or has other bits, groups or zeros.
    """
    if entry["bits"] is None:
        return None
    outliers = entry.get("outlier_columns", 0.0)
    plain = Grid(entry["bits"], entry["group_size"], entry["zeros"], entry["scale_dtype"], outliers)
    grid = with_type(plain, entry.get("grid_type", ""))
    if grid is None:
        raise BadInput(
            f"the manifest states a grid of type {entry['grid_type']!r:.80}, not its own"
        )
    return grid


def quantized_entry(
    *,
    name: str,
    source: str,
    type_name: str,
    layer: QuantizedLinear,
    stored: QuantizedLinear,
    widened: bool = False,
) -> Entry:
    """Describe a tensor that was solved as `layer` and that the file holds as `stored`."""
    deviation = largest_difference(layer, stored.scales, stored.offsets)
    kept = "widened" if widened else "exact"
    return tensor_entry(
        name=name,
        source=source,
        type_name=type_name,
        grid=layer.grid,
        status="rescaled" if deviation else kept,
        deviation=deviation,
        digest=hash_of_layer(layer),
        stored=hash_of_layer(stored),
    )


def write_manifest(
    folder: Path,
    *,
    format_name: str,
    file: str,
    entries: Sequence[Entry],
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write manifest.json, after all other files: it lists them with their hashes, and its own.

    `file` is what a reader opens first. `settings` are the options of the export.
    """
    path = folder / MANIFEST_FILE
    files = hash_files(folder, but=(MANIFEST_FILE,))
    content: dict[str, Any] = {"format": format_name, "file": file, "files": files}
    content |= {"settings": settings} if settings else {}
    content["tensors"] = entries
    write_sealed(path, content)
    return path
