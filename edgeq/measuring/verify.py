"""`edgeq verify`: whether an export on disk still holds what its manifest says.

Files are read by the format's own reader, which shares nothing with the writer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.checkpoint.certificate import hash_of_layer, sha256_of
from edgeq.checkpoint.reader import Checkpoint
from edgeq.dtypes import NUMPY
from edgeq.errors import BadInput, EdgeqError, reason_of
from edgeq.format_parts import ExportReader
from edgeq.measuring.manifest import (
    FOUND_BY_READERS,
    KEPT,
    Entry,
    changed_files,
    changed_manifest,
    check_plain,
    contradictions,
    grid_in,
    other_checkpoint,
    other_head,
    other_tensors,
    read_manifest,
)
from edgeq.protocols import QuantizedModel
from edgeq.registry import find_format, load_reader
from edgeq.types import NumpyArray, QuantizedLinear, StoredTensor
from edgeq.words import describe_grid

ROUNDING = 2.0**-22  # of float32 sums and products, relative to their terms


@dataclass(frozen=True, slots=True)
class TensorReport:
    """The findings of one tensor; deviation is None where there was no checkpoint."""

    name: str
    status: str
    deviation: float | None
    differences: Sequence[str]


def verify(folder: Path, *, against: Path | None = None) -> dict[str, Any]:
    """Read an export back and compare it with its manifest, and with its checkpoint where given.

    Raises: BadInput for something that is not an export.
    """
    manifest = read_manifest(folder)
    check_plain(folder)
    reader = open_reader(manifest["format"], folder)
    checkpoint = None if against is None else Checkpoint(against)
    differences = [*changed_files(folder, manifest), *changed_manifest(manifest)]
    differences += [*other_checkpoint(manifest, checkpoint), *other_head(manifest, reader)]
    differences += other_tensors(manifest["tensors"], reader, checkpoint)
    reports = [check_tensor(reader, entry, checkpoint) for entry in manifest["tensors"]]
    for report in reports:
        differences += [f"tensor '{report.name}': {text}" for text in report.differences]
    statuses = [report.status for report in reports]
    deviations = [report.deviation for report in reports if report.deviation is not None]
    return {
        "export": str(folder),
        "format": manifest["format"],
        "library": reader.library,
        "against": None if against is None else str(against),
        "statuses": {status: statuses.count(status) for status in sorted(set(statuses))},
        "largest_deviation": max(deviations, default=None),
        "differences": differences,
        "tensors": [asdict(report) for report in reports],
    }


def open_reader(name: str, folder: Path) -> ExportReader:
    """Open an export with the reader of its format.

    Raises: BadInput, whatever a library of the format raises for damaged files.
    """
    find_format(name)
    try:
        reader = load_reader(name, folder)
        reader.tensor_names()
        return reader
    except (EdgeqError, MemoryError):
        raise
    except Exception as error:
        raise BadInput(
            f"{str(folder)!r} cannot be read ({reason_of(error)}); export again"
        ) from error


def check_tensor(reader: ExportReader, entry: Entry, checkpoint: Checkpoint | None) -> TensorReport:
    """Compare one tensor of an export with its manifest's entry, and with the checkpoint's."""
    name, status = entry["name"], entry["status"]
    found = list(contradictions(entry))
    deviation = None
    try:
        with np.errstate(all="ignore"):  # damaged scales may be zero, infinite or NaN
            stored = reader.read(entry)
            found += differences_from_entry(stored, entry)
            if checkpoint is not None:
                deviation = largest_deviation(
                    stored.weights, solved_matrix(checkpoint, entry["source"])
                )
                found += differences_from_checkpoint(stored, entry, checkpoint, deviation)
    except MemoryError:
        raise
    # libraries raise a type of their own for each way that bytes can be wrong
    except Exception as error:
        found.append(f"cannot be read ({reason_of(error)})")
        return TensorReport(name, status, None, found)
    return TensorReport(name, status, deviation, found)


def solved_matrix(model: QuantizedModel, name: str) -> NumpyArray:
    """Read a tensor as it was solved, outputs before inputs; a dense one as it is."""
    return model.dense(name) if model.grid(name) is None else model.quantized(name).dequantized()


def differences_from_entry(stored: StoredTensor, entry: Entry) -> Iterator[str]:
    """Describe how a tensor as it is read differs from the manifest's entry."""
    digest = sha256_of(stored.weights) if stored.layer is None else hash_of_layer(stored.layer)
    claimed = entry.get("stored_sha256")
    if isinstance(claimed, str) and digest != claimed:
        yield f"hash {digest[:12]} is not {claimed[:12]} of the manifest"
    else:
        yield from differences_from_words(stored, entry)
    if stored.layer is not None and not computes(stored.weights, stored.layer):
        yield "its library computes other weights than the codes and scales stand for"


def differences_from_words(stored: StoredTensor, entry: Entry) -> Iterator[str]:
    """Describe what a manifest says of the right numbers that does not fit them."""
    for key in FOUND_BY_READERS:
        found, claimed = stored.labels.get(key), entry.get(key)
        if found != claimed:
            yield f"{key} is {found!r} in the files, {claimed!r:.80} in the manifest"
    if stored.layer is not None:
        yield from differences_from_grid(stored, stored.layer, entry)


def differences_from_grid(
    stored: StoredTensor, layer: QuantizedLinear, entry: Entry
) -> Iterator[str]:
    """Describe where codes and scales cannot lie on the grid that the manifest states."""
    grid, status = layer.grid, entry["status"]
    is_kept = status in KEPT
    other_width = stored.bits is not None and (status == "exact") != (stored.bits == grid.bits)
    if is_kept and other_width:
        yield f"marked {status}, but codes of {grid.bits} bits lie in {stored.bits} bits"
    if is_kept and stored.scale_dtype not in (None, grid.scale_dtype):
        yield f"its scales are {stored.scale_dtype}, {grid.scale_dtype} in the manifest"
    columns = layer.codes.shape[1]
    count = 0 if layer.outliers is None else len(layer.outliers.columns)
    if count != grid.outlier_count(columns):
        yield f"it has {count} outlier columns, {grid.outlier_count(columns)} by the manifest"
    if not is_kept:
        return
    numbers = [layer.scales] + ([layer.offsets] if grid.zeros == "offset" else [])
    if any((values.astype(NUMPY[grid.scale_dtype]) != values).any() for values in numbers):
        yield f"its scales are no numbers of {grid.scale_dtype}, which the manifest states"
    if grid.zeros == "symmetric" and (layer.offsets != -layer.scales * grid.middle).any():
        yield "its zero points are not the middle, which the manifest states (symmetric)"
    if grid.zeros == "integer" and (layer.offsets != -layer.scales * layer.zeros).any():
        yield "its zero points are not whole, as the manifest states (integer)"


def computes(weights: NumpyArray, layer: QuantizedLinear) -> bool:
    """Say whether weights are scale * code + offset, but for float32 rounding."""
    if weights.shape != layer.codes.shape:
        return False
    index = layer.grid.group_index(layer.codes.shape[1])
    allowed = (ROUNDING * (np.abs(layer.scales) * 255 + np.abs(layer.offsets)))[:, index]
    if layer.outliers is not None:
        allowed[:, layer.outliers.columns] += ROUNDING * np.abs(layer.outliers.values)
    return bool((np.abs(weights - layer.dequantized()) <= allowed).all())


def differences_from_checkpoint(
    stored: StoredTensor, entry: Entry, checkpoint: Checkpoint, deviation: float
) -> Iterator[str]:
    """Describe how a tensor as it is read differs from the checkpoint's."""
    name = entry["source"]
    solved = checkpoint.grid(name)
    stated = grid_in(entry)
    comes_from = None if solved is None or stated is not None else describe_grid(solved)
    if stated is not None and stated != solved:
        described = "none" if solved is None else describe_grid(solved)
        yield f"its grid is {describe_grid(stated)} by the manifest, {described} in the checkpoint"
    if entry.get("from") != comes_from:
        claimed = entry.get("from")
        yield f"comes from {claimed!r:.80} by the manifest, {comes_from!r} in the checkpoint"
    if solved is None:
        expected = sha256_of(checkpoint.dense(name))
    else:
        expected = hash_of_layer(checkpoint.quantized(name))
    if expected != entry["sha256"]:
        yield (
            f"hash {entry['sha256'][:12]} of the manifest is not {expected[:12]} of the checkpoint"
        )
    deviates = entry["largest_deviation"]
    # decimals of JSON; sums and products in float32
    allowed = deviates * 1e-6 + ROUNDING * largest_term(stored)
    kept = entry["bits"] is None and deviation == 0  # numbers as they were have no rounding
    if not abs(deviation - deviates) <= allowed or (kept and deviates):
        yield f"deviates by {deviation:.3g} from the checkpoint, the manifest says {deviates:.3g}"


def largest_term(stored: StoredTensor) -> float:
    """Find the largest number that the weights of a tensor are summed from."""
    if stored.layer is None:
        return float(np.abs(stored.weights).max(initial=0.0))
    layer = stored.layer
    terms = np.abs(layer.scales) * layer.grid.max_code + np.abs(layer.offsets)
    return float(terms.max(initial=0.0))


def largest_deviation(found: NumpyArray, expected: NumpyArray) -> float:
    """Find the largest absolute difference of two tensors.

    Raises: ValueError for other shapes.
    """
    if found.shape != expected.shape:
        raise ValueError(f"shape {found.shape} is not {expected.shape} of the checkpoint")
    return float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0))
