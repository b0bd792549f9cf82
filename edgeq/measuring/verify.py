"""`edgeq verify`: whether an export on disk still holds what its manifest says.

Files are read by the format's own reader, which shares nothing with the writer.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from edgeq.calibration.reading import read_text
from edgeq.calibration.windows import first_windows, tokenize
from edgeq.checkpoint.certificate import hash_of_layer, sha256_of
from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput, EdgeqError
from edgeq.files.hashes import hash_files
from edgeq.files.json_files import read_json
from edgeq.files.ownership import MANIFEST_FILE
from edgeq.measuring.evaluate import (
    EVALUATION_TEXT,
    check_runtime,
    find_export,
    model_logits,
    runnable_names,
)
from edgeq.measuring.quality import Meter
from edgeq.protocols import ExportReader
from edgeq.registry import LOGITS, find_format, load, load_reader
from edgeq.types import NumpyArray, QuantizedLinear, ScaleDtype, StoredTensor, ZeroKind

UNREADABLE = (EdgeqError, ValueError, KeyError, IndexError, TypeError, RuntimeError)
ROUNDING = 2.0**-22  # of float32 sums and products, relative to their terms
NAMED_IN_ENTRY = ("name", "source", "status", "sha256")
CODE_BITS = range(2, 9)
LARGEST_GROUP = 2**31 - 1  # columns: what shapes of tensors count with
LARGEST_KL = 0.01  # llama.cpp quantizes activations to 8 bits, which costs up to 0.004

Entry = Mapping[str, Any]


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
    reader = load_reader(manifest["format"], folder)
    checkpoint = None if against is None else Checkpoint(against)
    differences = [*changed_files(folder, manifest), *other_checkpoint(manifest, checkpoint)]
    differences += other_names(reader, manifest["tensors"])
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


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of an export.

    Raises: BadInput when there is none that edgeq wrote.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise BadInput(
            f"{str(folder)!r} is not an export; give the directory with {MANIFEST_FILE} in it"
        )
    manifest = read_json(path)
    entries, files = manifest.get("tensors"), manifest.get("files")
    whole = isinstance(entries, list) and all(map(is_entry, entries))
    named = all(isinstance(manifest.get(key), str) for key in ("format", "file"))
    if not named or not isinstance(files, dict) or not whole:
        raise BadInput(f"{str(path)!r} is not a manifest of edgeq's, or damaged; export again")
    return manifest


def is_entry(entry: Any) -> bool:
    """Say whether something in a manifest is about a tensor."""
    if not isinstance(entry, dict):
        return False
    named = all(isinstance(entry.get(key), str) for key in NAMED_IN_ENTRY)
    return named and is_finite(entry.get("largest_deviation")) and is_grid(entry)


def is_grid(entry: Mapping[str, Any]) -> bool:
    """Say whether an entry states a grid that edgeq solves on, or none, for a dense tensor."""
    if entry.get("bits", 0) is None:
        return True
    stated = (entry.get(key) for key in ("bits", "group_size", "zeros", "scale_dtype"))
    bits, group_size, zeros, scale_dtype = stated
    sizes = [size for size in (bits, group_size) if size is not None]
    return (
        all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
        and bits in CODE_BITS
        and (group_size is None or 0 < group_size <= LARGEST_GROUP)
        and zeros in get_args(ZeroKind)
        and scale_dtype in get_args(ScaleDtype)
    )


def is_finite(value: Any) -> bool:
    """Say whether a value of JSON is a number that float64 holds."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def changed_files(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Describe files that are not as they were written."""
    claimed, found = manifest["files"], hash_files(folder, but=(MANIFEST_FILE,))
    for name in sorted({*claimed, *found}):
        if name not in found:
            yield f"file '{name}': missing"
        elif name not in claimed:
            yield f"file '{name}': not part of the export"
        elif found[name] != claimed[name]:
            yield f"file '{name}': its bytes are not those that were written"


def other_checkpoint(manifest: Mapping[str, Any], checkpoint: Checkpoint | None) -> Iterator[str]:
    """Describe a checkpoint other than the one that the export's manifest names."""
    claimed = manifest.get("checkpoint")
    if checkpoint is None or not isinstance(claimed, dict):
        return
    if claimed.get("solution") != checkpoint.solution_fingerprint():
        yield f"checkpoint '{checkpoint.path}': the export was made from another one"


def other_names(reader: ExportReader, entries: Sequence[Entry]) -> Iterator[str]:
    """Describe tensors of an export that its manifest does not name."""
    named = {entry["name"] for entry in entries}
    for name in sorted(set(reader.tensor_names()) - named):
        yield f"tensor '{name}': the manifest does not name it"


def check_tensor(reader: ExportReader, entry: Entry, checkpoint: Checkpoint | None) -> TensorReport:
    """Compare one tensor of an export with its manifest's entry, and with the checkpoint's."""
    name, status = entry["name"], entry["status"]
    deviation = None
    try:
        with np.errstate(all="ignore"):  # damaged scales may be zero, infinite or NaN
            stored = reader.read(entry)
            found = list(differences_from_entry(stored, entry))
            if checkpoint is not None:
                deviation = largest_deviation(stored.weights, checkpoint.read(entry["source"]))
                found += differences_from_checkpoint(stored, entry, checkpoint, deviation)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        return TensorReport(name, status, None, [f"cannot be read ({reason})"])
    return TensorReport(name, status, deviation, found)


def differences_from_entry(stored: StoredTensor, entry: Entry) -> Iterator[str]:
    """Describe how a tensor as it is read differs from the manifest's entry."""
    found = sha256_of(stored.weights) if stored.layer is None else hash_of_layer(stored.layer)
    claimed = entry.get("stored_sha256")
    if claimed is not None and found != claimed:
        yield f"hash {found[:12]} is not {claimed[:12]} of the manifest"
    if entry["status"] in ("exact", "widened") and claimed != entry["sha256"]:
        yield f"marked {entry['status']}, but the manifest's own hashes differ"
    if stored.layer is not None and not computes(stored.weights, stored.layer):
        yield "its library computes other weights than the codes and scales stand for"


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
    if checkpoint.grid(name) is None:
        expected = sha256_of(checkpoint.dense(name))
    else:
        expected = hash_of_layer(checkpoint.quantized(name))
    if expected != entry["sha256"]:
        yield (
            f"hash {entry['sha256'][:12]} of the manifest is not {expected[:12]} of the checkpoint"
        )
    rounding = ROUNDING * float(np.abs(stored.weights).max(initial=0.0))
    allowed = entry["largest_deviation"] * (1 + 1e-6) + rounding  # decimals of JSON
    if not deviation <= allowed:
        yield (
            f"deviates by {deviation:.3g} from the checkpoint, "
            f"the manifest says {entry['largest_deviation']:.3g}"
        )


def largest_deviation(found: NumpyArray, expected: NumpyArray) -> float:
    """Find the largest absolute difference of two tensors.

    Raises: ValueError for other shapes.
    """
    if found.shape != expected.shape:
        raise ValueError(f"shape {found.shape} is not {expected.shape} of the checkpoint")
    return float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0))


def run_export(
    folder: Path,
    *,
    against: Path,
    backend: str = "auto",
    windows: int = 1,
    sequence_length: int = 128,
) -> dict[str, Any]:
    """Run an export in its runtime beside the checkpoint's dequantized weights in the backend.

    Units: logit_difference is the largest one, as a share of the largest logit; kl in nats per
    token.
    """
    exported = find_export(str(folder))
    runtime = None if exported is None else find_format(exported.kind).runtime
    if exported is None or not runtime:
        raise BadInput(f"no runtime for {str(folder)!r}; formats with one: {runnable_names()}")
    check_runtime(runtime)
    checkpoint = Checkpoint(against)
    longest = checkpoint.record.context or sequence_length
    tokens = tokenize(checkpoint, read_text(None, default=EVALUATION_TEXT))
    ids = first_windows(tokens, windows=windows, sequence_length=min(sequence_length, longest))
    found = load(LOGITS[runtime], f"runtime {runtime!r}")(exported.path).logits(ids)
    original = model_logits(checkpoint, backend).logits(ids)
    meter = Meter()
    difference = 0.0
    scale = 0.0
    for window, got, expected in zip(ids, found, original, strict=True):
        meter.add(window, got, expected)
        difference = max(difference, float(np.abs(got - expected).max()))
        scale = max(scale, float(np.abs(expected).max()))
    quality = meter.quality()
    assert quality.kl is not None
    result = {"runtime": runtime, "tokens": quality.tokens, "logit_difference": difference / scale}
    result |= {"kl": quality.kl, "top1_agreement": quality.top1_agreement}
    text = (
        f"runtime '{runtime}': KL divergence {quality.kl:.4f} to the dequantized weights, "
        f"allowed is {LARGEST_KL}"
    )
    return result | {"differences": [] if quality.kl <= LARGEST_KL else [text]}
