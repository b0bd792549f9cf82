"""Judge what the manifest of an export states: its structure, and each entry by itself.

What the files hold is compared with it by `edgeq.measuring.verify`.
"""

import stat
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from edgeq.checkpoint.certificate import SEAL, seal_of
from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput, reason_of
from edgeq.files.hashes import hash_files, hash_of_content
from edgeq.files.json_files import read_json
from edgeq.files.ownership import CARD_FILE, MANIFEST_FILE, MODELFILE
from edgeq.format_parts import ExportReader, Format
from edgeq.grids.types import with_type
from edgeq.registry import find_format
from edgeq.types import LARGEST_OUTLIER_SHARE, Grid, ScaleDtype, ZeroKind
from edgeq.words import edgeq_command

Entry = Mapping[str, Any]

KEYS = ("format", "file", "files", "settings", "tensors", "checkpoint", SEAL)
NAMED_IN_ENTRY = ("name", "source", "type", "status", "sha256")
GRID_KEYS = ("bits", "group_size", "zeros", "scale_dtype")
FOUND_BY_READERS = ("type", "file", "outliers")
"""What an entry states of the files themselves, in the words of the format."""
ENTRY_KEYS = {
    *(*NAMED_IN_ENTRY, *GRID_KEYS, *FOUND_BY_READERS),
    *("largest_deviation", "stored_sha256", "outlier_columns", "grid_type", "from"),
}
OPTIONAL = ("file", "outliers", "outlier_columns", "grid_type")
"""Keys of an entry that stand there only with a value."""
KEPT = ("exact", "widened")
STATUSES = (*KEPT, "rescaled", "dense")
CODE_BITS = range(2, 9)
LARGEST_GROUP = 2**31 - 1  # columns: what shapes of tensors count with


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
    if not named or not are_hashes(files) or not whole:
        raise BadInput(f"{str(path)!r} is not a manifest of edgeq's, or damaged; export again")
    return manifest


def are_hashes(files: Any) -> bool:
    """Say whether something in a manifest gives files by name their hashes."""
    return isinstance(files, dict) and all(isinstance(digest, str) for digest in files.values())


def is_entry(entry: Any) -> bool:
    """Say whether something in a manifest is about a tensor."""
    if not isinstance(entry, dict):
        return False
    named = all(isinstance(entry.get(key), str) for key in NAMED_IN_ENTRY)
    named = named and all(key in entry for key in GRID_KEYS)
    deviation = entry.get("largest_deviation")
    return named and is_finite(deviation) and float(deviation or 0) >= 0 and is_grid(entry)


def is_grid(entry: Entry) -> bool:
    """Say whether an entry states a grid that edgeq solves on, or none, for a dense tensor."""
    bits, group_size, zeros, scale_dtype = (entry.get(key) for key in GRID_KEYS)
    share = entry.get("outlier_columns", 0.0)
    type = entry.get("grid_type", "")
    if bits is None:
        return (group_size, zeros, scale_dtype, share, type) == (None, None, None, 0.0, "")
    sizes = [size for size in (bits, group_size) if size is not None]
    return (
        all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
        and bits in CODE_BITS
        and (group_size is None or 0 < group_size <= LARGEST_GROUP)
        and zeros in get_args(ZeroKind)
        and scale_dtype in get_args(ScaleDtype)
        and is_finite(share)
        and 0 <= share <= LARGEST_OUTLIER_SHARE
        and isinstance(type, str)
        and grid_in(entry) is not None
    )


def is_finite(value: Any) -> bool:
    """Say whether a value of JSON is a number that float64 holds."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def grid_in(entry: Entry) -> Grid | None:
    """Read the grid that an entry states; None for a dense tensor, and for an unknown type."""
    if entry["bits"] is None:
        return None
    bits, group_size, zeros, scale_dtype = (entry[key] for key in GRID_KEYS)
    plain = Grid(bits, group_size, zeros, scale_dtype, entry.get("outlier_columns", 0.0))
    return with_type(plain, entry.get("grid_type", ""))


def changed_manifest(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Describe a manifest that is not as it was written, or states what manifests do not."""
    for key in sorted(set(manifest) - set(KEYS)):
        yield f"file '{MANIFEST_FILE}': states {key!r}, which edgeq does not write"
    claimed = manifest.get(SEAL)
    content = {key: value for key, value in manifest.items() if key != SEAL}
    if claimed is None:
        yield f"file '{MANIFEST_FILE}': has no hash of what it states; export again"
    elif claimed != own_hash(content):
        yield f"file '{MANIFEST_FILE}': was changed after it was written"
    for key in ("name", "source"):
        counts = Counter(entry[key] for entry in manifest["tensors"])
        for name in sorted(name for name, count in counts.items() if count > 1):
            yield f"tensor '{name}': stands {counts[name]} times in the manifest, as a {key}"


def own_hash(content: Mapping[str, Any]) -> str:
    """Hash what a manifest states; empty for what no manifest of edgeq's is nested as deep as."""
    try:
        return hash_of_content(content)
    except RecursionError:
        return ""


def check_plain(folder: Path) -> None:
    """Refuse an export with a pipe, a device, or a link to nothing where a file should be.

    Whoever opens a pipe may wait for ever, and a device may have no end. Links to files are those
    of a cache of downloads.

    Raises: BadInput naming the first one.
    """
    for path in sorted(folder.rglob("*")):
        try:
            kind = path.stat().st_mode
        except OSError as error:
            reason = reason_of(error)
        else:
            if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
                continue
            reason = "it is a pipe, a device or a socket"
        raise BadInput(f"{str(path)!r} is no file of an export ({reason}); remove it, export again")


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


def check_as_written(target: Path) -> None:
    """Refuse an export that is not as it was written, before a library loads what lies in it.

    Of a single file the files beside it count that its manifest names. One that lies without a
    manifest of edgeq's is not refused.

    Raises: BadInput with the first difference.
    """
    folder = target if target.is_dir() else target.parent
    try:
        manifest = read_manifest(folder)
    except BadInput:
        if target.is_dir():
            raise
        return
    if target.is_dir():
        check_plain(folder)
    elif target.name not in manifest["files"]:
        return
    found = [*(changed_manifest(manifest) if SEAL in manifest else ())]
    # nothing loads the two that people write into
    named = {f"file '{name}'" for name in {*manifest["files"]} - {CARD_FILE, MODELFILE}}
    for line in changed_files(folder, manifest):
        place = line.partition(":")[0]
        other = place not in (f"file '{CARD_FILE}'", f"file '{MODELFILE}'")
        if (target.is_dir() and other) or place in named:
            found.append(line)
    if found:
        see = edgeq_command("verify", folder)
        raise BadInput(f"{str(folder)!r}: {found[0]}; see {see}, and export again")


def other_head(manifest: Mapping[str, Any], reader: ExportReader) -> Iterator[str]:
    """Describe where a manifest states another first file, or other options, than there are."""
    if manifest["file"] != reader.file:
        yield f"the manifest names the file {manifest['file']!r}, a runtime opens {reader.file!r}"
    stated = manifest.get("settings", {})
    if not isinstance(stated, dict) or ("settings" in manifest and not stated):
        yield "the manifest's settings are none"
        return
    described = find_format(manifest["format"])
    for name in sorted({*stated, *reader.settings}):
        if name in reader.settings:
            found = reader.settings[name]
            right = stated.get(name) == found and type(stated.get(name)) is type(found)
            if not right:
                yield f"setting {name!r} is {stated.get(name)!r:.80}, the files show {found!r}"
        elif not may_be_set(described, name, stated[name]):
            yield f"setting {name!r} is {stated[name]!r:.80}, which {described.name!r} cannot have"


def may_be_set(described: Format, name: str, value: Any) -> bool:
    """Say whether a format has an option that may be this value."""
    for option in described.options:
        if option.name == name:
            if option.values is None:
                return isinstance(value, bool)
            return not isinstance(value, bool | float) and value in option.values
    return False


def other_checkpoint(manifest: Mapping[str, Any], checkpoint: Checkpoint | None) -> Iterator[str]:
    """Describe a checkpoint other than the one that an export's manifest names."""
    claimed = manifest.get("checkpoint")
    if checkpoint is None:
        whole = isinstance(claimed, dict) and set(claimed) == {"source", "solution"}
        if "checkpoint" in manifest and not (whole and are_hashes(claimed)):
            yield "the manifest names no checkpoint by its hashes; export again"
        return
    if claimed != seal_of(checkpoint):
        yield f"checkpoint '{checkpoint.path}': the export was made from another one"


def other_tensors(
    entries: Sequence[Entry], reader: ExportReader, checkpoint: Checkpoint | None
) -> Iterator[str]:
    """Describe tensors of the files, or of the checkpoint, that the manifest does not name."""
    held = set(reader.tensor_names())
    for name in sorted(held - {entry["name"] for entry in entries}):
        yield f"tensor '{name}': the manifest does not name it"
    for name, source in ((entry["name"], entry["source"]) for entry in entries):
        if name != source and source in held:
            yield f"tensor '{name}': made from {source!r}, which has its own name in the files"
    if checkpoint is None:
        return
    kept = {
        name
        for name in checkpoint.tensor_names()
        if not checkpoint.record.decoder.is_redundant(name)
    }
    for name in sorted(kept - {entry["source"] for entry in entries}):
        yield f"tensor '{name}' of the checkpoint: the manifest does not name it"


def contradictions(entry: Entry) -> Iterator[str]:
    """Describe what an entry states that cannot be, or not together."""
    for key in sorted(set(entry) - ENTRY_KEYS):
        yield f"the manifest states {key!r}, which edgeq does not write"
    for key in OPTIONAL:
        if key in entry and not entry[key]:
            yield f"the manifest states {key!r} as {entry[key]!r}, which edgeq leaves out"
    status, deviation = entry["status"], entry["largest_deviation"]
    if status not in STATUSES:
        yield f"marked {status!r:.80}, which is none of {', '.join(STATUSES)}"
    elif (status == "dense") != (entry["bits"] is None):
        yield f"marked {status}, but the manifest states {entry['bits'] or 'no'} bits"
    if status in KEPT and entry.get("stored_sha256") != entry["sha256"]:
        yield f"marked {status}, but the manifest's own hashes differ"
    if status in KEPT and deviation:
        yield f"marked {status}, but the manifest says that it deviates by {deviation:.3g}"
    if status == "rescaled" and not deviation:
        yield "marked rescaled, but the manifest says that it does not deviate"
    if not isinstance(entry.get("stored_sha256"), str):
        yield "the manifest has no hash of what is stored; export again"
    if "from" in entry and (status != "dense" or not isinstance(entry["from"], str)):
        yield f"the manifest states a grid it comes from, {entry['from']!r:.80}, but it is {status}"
