"""Tell which directories edgeq wrote, entry by entry: only these may be replaced or cleared away.

A head alone proves nothing: anybody can list somebody's files in one. So each file must be what the
head says.

- A checkpoint (edgeq.json) holds blocks/NNNN.safetensors and outer.safetensors, whose headers carry
  edgeq's metadata, beside them config.json, report.json, recipe.toml, tokenizer files, licences, a
  README.md that ends with its own hash, and exports. measured.json and report.html may lie there
  too. Both depend on time and machine, and no hash counts them.
- An export (manifest.json) holds files called model..., ..._config.json, README.md, Modelfile, or
  like those beside a model's weights, and the .gguf file that it names first, each with the hash
  that it states.
- A temporary directory (its name, and a marker in it) holds new/, states/, tuning/, tuned/,
  run.json, allocation.json, and replaced/, which is one of the two above.

Links, FIFOs and devices are never edgeq's, and no link is followed. Who copies a whole checkpoint
or export into a directory, or writes a manifest with the right hashes of files with such names,
makes these edgeq's: nothing in a directory can tell them apart.

Writing directories so that nothing is half-written is left to `edgeq.files.storage`.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from edgeq.files.hashes import hash_of_file
from edgeq.files.names import GGUF_FILE
from edgeq.files.plain_files import (
    entries_below,
    first_not_plain,
    is_plain_directory,
    is_plain_file,
    open_file,
    read_file,
)

HEAD_FILE = "edgeq.json"
MANIFEST_FILE = "manifest.json"
REPORT_FILE = "report.json"
MEASURED_FILE = "measured.json"
PAGE_FILE = "report.html"
PAGE_MARK = b'<meta name="generator" content="edgeq">'  # near the beginning of each page
RECIPE_FILE = "recipe.toml"
CONFIG_FILE = "config.json"
TEMPORARY_SUFFIX = ".edgeq-partial"
# names in a temporary directory
MARKER_FILE = "EDGEQ-UNFINISHED"  # lies in every one
RUN_FILE = "run.json"
ALLOCATION_FILE = "allocation.json"
MADE = "new"
STATES = "states"
TUNING = "tuning"
TUNED = "tuned"
REPLACED = "replaced"

TIMED_FILES = (MEASURED_FILE, PAGE_FILE)
"""The files of a checkpoint that depend on time and machine: equal runs write different ones."""
REWRITTEN_FILES = (REPORT_FILE, *TIMED_FILES)
"""Files of a finished checkpoint that are written anew, under a name of their own until then."""
OWN_FILES = {
    MARKER_FILE,
    *(name for file in (RUN_FILE, ALLOCATION_FILE) for name in (file, f".{file}.partial")),
}
"""The files of a temporary directory."""
COMPANION_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""The files beside the weights that a model is read from."""
CARD_FILE = "README.md"
MODELFILE = "Modelfile"
LEGAL_FILE = re.compile(
    r"(model[-_])?(licen[cs]e|notice|copying|(acceptable[-_])?use[-_]policy)([-_]\w+)*"
    r"(\.(txt|md|rst|pdf))?",
    re.IGNORECASE,
)
"""Files that say under which terms a model is given: they go wherever it goes."""
HEAD_LISTS = ("files", "companions")
HEAD_KEYS = {"format_version", "edgeq", "model", "source", "recipe", *HEAD_LISTS}
MANIFEST_KEYS = {"format", "file", "files", "tensors"}
ENTRY_KEYS = {"name", "source", "type", "status", "largest_deviation", "sha256"}
TENSOR_FILE = re.compile(r"(blocks/\d{4,}|outer)\.safetensors")
EXPORT_FILE = re.compile(r"model[\w.-]*|(\w+_)?config\.json")
STATE_FILES = {
    STATES: re.compile(r"(\d{4,}|\.\d{4,}\.partial)(/[\w-]+\.npy)?"),
    TUNING: re.compile(r"tuning\.(json|safetensors)|\.tuning\.(json|safetensors)\.partial"),
}
"""What lies in the directories of a temporary one that keep how far a run has come."""
SIGNATURE = "<!-- written by edgeq, sha256 "
MOST_CARD_BYTES = 1_000_000
MOST_HEADER_BYTES = 100_000_000  # as the safetensors library has it
MARK_WITHIN = 1024  # bytes from the beginning of a page

IsOwn = Callable[[Path], bool]
"""Says of a file that a head lists whether it is what edgeq writes under this name."""


def temporary_of(destination: Path) -> Path:
    """Name the directory beside an output in which the output is made."""
    return destination.with_name(f".{destination.name}{TEMPORARY_SUFFIX}")


def foreign_entry(folder: Path, *, whole: bool = True) -> str | None:
    """Find the first entry of a directory that edgeq did not write, as a path inside of it.

    `whole` says whether a card, or a file of an export, that was changed since counts as such.
    Returns None where edgeq wrote all of them, "." where it did not write the directory.
    """
    written = written_files(folder, whole=whole)
    return _first_foreign(folder, PurePosixPath(), written, whole=whole) if written else "."


def _first_foreign(
    folder: Path, place: PurePosixPath, written: Mapping[str, IsOwn], *, whole: bool
) -> str | None:
    for entry in sorted(folder.iterdir()):
        name = place / entry.name
        found: str | None = None
        if is_plain_file(entry):
            is_own = written.get(str(name))
            found = None if is_own is not None and is_own(entry) else str(name)
        elif not is_plain_directory(entry):
            found = str(name)
        elif any(name in PurePosixPath(file).parents for file in written):
            found = _first_foreign(entry, name, written, whole=whole)
        else:
            temporary = is_temporary(entry)
            inner = foreign_in_temporary(entry) if temporary else foreign_entry(entry, whole=whole)
            found = None if inner is None else str(name / inner)
        if found is not None:
            return found
    return None


def foreign_in_temporary(folder: Path) -> str | None:
    """Find the first entry of a temporary directory that edgeq does not make there.

    new/ and tuned/ may hold whatever a run or an exporter writes; links and the like are nowhere.
    """
    odd = first_not_plain(folder)
    if odd is not None:
        return odd.relative_to(folder).as_posix()
    for entry in sorted(folder.iterdir()):
        if not _belongs_in_temporary(entry):
            return entry.name
    found = (_foreign_below(folder / name, files) for name, files in STATE_FILES.items())
    return next(filter(None, found), None) or _foreign_in_replaced(folder)


def _belongs_in_temporary(entry: Path) -> bool:
    if entry.name in {MADE, STATES, TUNING, TUNED, REPLACED}:
        return is_plain_directory(entry)
    return is_plain_file(entry) and entry.name in OWN_FILES


def _foreign_below(folder: Path, files: re.Pattern[str]) -> str | None:
    below = entries_below(folder) if folder.exists() else ()
    names = (path.relative_to(folder).as_posix() for path in below)
    return next((f"{folder.name}/{name}" for name in names if not files.fullmatch(name)), None)


def _foreign_in_replaced(folder: Path) -> str | None:
    replaced = folder / REPLACED
    found = foreign_entry(replaced) if replaced.exists() else None
    return None if found is None else (PurePosixPath(REPLACED) / found).as_posix()


def written_files(folder: Path, *, whole: bool = True) -> dict[str, IsOwn]:
    """List the files of a checkpoint or an export, each with what shows that it is edgeq's.

    The list is empty for other directories, and for heads that list what edgeq does not write.
    """
    head = _read(folder / HEAD_FILE)
    if set(head) >= HEAD_KEYS:
        return _files_of_checkpoint(folder, head, whole=whole)
    manifest = _read(folder / MANIFEST_FILE)
    if set(manifest) >= MANIFEST_KEYS:
        return _files_of_export(manifest, whole=whole)
    return {}


def _files_of_checkpoint(folder: Path, head: Mapping[str, Any], *, whole: bool) -> dict[str, IsOwn]:
    tensors, companions = (_names(head[key]) for key in HEAD_LISTS)
    if not all(map(TENSOR_FILE.fullmatch, tensors)) or not all(map(is_companion, companions)):
        return {}
    beside = {HEAD_FILE, REPORT_FILE, RECIPE_FILE, CONFIG_FILE, MEASURED_FILE, *companions}
    # without one tensor file nothing shows that the others are edgeq's, unless no file is left
    proven = any(_is_tensor_file(folder / name) for name in tensors)
    if not proven and any((folder / name).exists() for name in beside - {HEAD_FILE}):
        return {}
    partial = [f".{name}.partial" for name in (*REWRITTEN_FILES, CARD_FILE)]
    files: dict[str, IsOwn] = dict.fromkeys([*beside, *partial], _is_any)
    files |= {PAGE_FILE: is_page, CARD_FILE: is_own_card if whole else _is_any}
    return files | dict.fromkeys(tensors, _is_tensor_file)


def _files_of_export(manifest: Mapping[str, Any], *, whole: bool) -> dict[str, IsOwn]:
    stated = manifest["files"] if isinstance(manifest["files"], dict) else {}
    if not all(_is_exported(name, manifest) for name in stated):
        return {}
    tensors = manifest["tensors"]
    if not isinstance(tensors, list) or not tensors or not all(map(_is_tensor_entry, tensors)):
        return {}
    files = {name: _has_hash(digest) if whole else _is_any for name, digest in stated.items()}
    partial = [f".{name}.partial" for name in (MANIFEST_FILE, CARD_FILE)]
    return {**dict.fromkeys([MANIFEST_FILE, *partial], _is_any), **files}


def is_companion(name: str) -> bool:
    """Say whether a file beside a model's weights belongs to it and goes where it goes."""
    return name in COMPANION_FILES or bool(LEGAL_FILE.fullmatch(name))


def signed_card(text: str) -> bytes:
    """Make the bytes of a checkpoint's card, which end with a hash of what stands before."""
    content = text.encode()
    return content + f"{SIGNATURE}{hashlib.sha256(content).hexdigest()} -->\n".encode()


def is_own_card(path: Path) -> bool:
    """Say whether the card of a checkpoint is as edgeq wrote it."""
    try:
        with open_file(path, follow=False) as file:
            found = file.read(MOST_CARD_BYTES)
    except OSError:
        return False
    text = found.rpartition(SIGNATURE.encode())[0]
    return found == signed_card(text.decode(errors="replace"))


def _is_exported(name: str, manifest: Mapping[str, Any]) -> bool:
    """Say whether exporters write files of a name; a GGUF file has a name of its own."""
    if EXPORT_FILE.fullmatch(name) or is_companion(name) or name in (CARD_FILE, MODELFILE):
        return True
    return name == manifest["file"] and bool(GGUF_FILE.fullmatch(name))


def _is_tensor_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and set(entry) >= ENTRY_KEYS


def _is_any(path: Path) -> bool:
    return True


def _has_hash(digest: object) -> IsOwn:
    def has_hash(path: Path) -> bool:
        try:
            found = path.lstat()
            return _hash_of(path, found.st_size, found.st_ctime_ns, found.st_ino) == digest
        except OSError:
            return False

    return has_hash


@lru_cache(maxsize=64)  # an output is checked several times before it is replaced
def _hash_of(path: Path, _size: int, _changed: int, _inode: int) -> str:
    return hash_of_file(path)


def _is_tensor_file(path: Path) -> bool:
    """Say whether a file has a safetensors header with edgeq's metadata."""
    try:
        with open_file(path, follow=False) as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size <= MOST_HEADER_BYTES else {}
        return bool("edgeq" in header["__metadata__"])
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return False


def is_page(path: Path) -> bool:
    """Say whether a file is a page that edgeq wrote, by the mark in its head."""
    try:
        with open_file(path, follow=False) as file:
            return PAGE_MARK in file.read(MARK_WITHIN)
    except OSError:
        return False


def leads_out(name: str) -> bool:
    """Say whether a name is absolute or climbs out, by the rules of any operating system.

    So do names that none of them takes. Symlinks are not followed.
    """
    try:
        name.encode("utf-8")  # JSON's escapes also write halves of surrogate pairs
    except UnicodeEncodeError:
        return True
    paths = (PurePosixPath(name), PureWindowsPath(name))
    return "\0" in name or any(path.root or path.drive or ".." in path.parts for path in paths)


def is_temporary(folder: Path) -> bool:
    """Say whether a directory is a temporary one that edgeq made.

    Name and marker say so, or the name alone while nothing is in it.
    """
    named = folder.name.startswith(".") and folder.name.endswith(TEMPORARY_SUFFIX)
    if not named or not is_plain_directory(folder):
        return False
    return is_plain_file(folder / MARKER_FILE) or not any(folder.iterdir())


def clear_contents(folder: Path) -> None:
    """Empty a temporary directory down to its marker."""
    for entry in folder.iterdir():
        if entry.name == REPLACED and is_plain_directory(entry):
            _remove_output(entry)
        elif entry.name != MARKER_FILE:
            remove_entry(entry)


def remove_entry(path: Path) -> None:
    """Remove a file, a directory with all in it, or a link and not what it leads to."""
    if is_plain_directory(path):
        shutil.rmtree(path)
    else:
        path.unlink()


def _remove_output(folder: Path) -> None:
    """Remove an output in an order that leaves it edgeq's own wherever that is cut short.

    What shows that other files are edgeq's goes after these: tensor files, then heads.
    """
    for entry in sorted(folder.iterdir(), key=_when_removed):
        if is_plain_directory(entry):
            _remove_output(entry)
        else:
            entry.unlink()
    folder.rmdir()


def _when_removed(entry: Path) -> tuple[bool, bool]:
    is_proof = entry.name == "blocks" or entry.suffix == ".safetensors"
    return entry.name in {HEAD_FILE, MANIFEST_FILE}, is_proof


def remove_empty(folder: Path) -> None:
    """Remove a temporary directory unless something beside its marker is in it."""
    if any(entry.name != MARKER_FILE for entry in folder.iterdir()):
        return
    (folder / MARKER_FILE).unlink(missing_ok=True)
    folder.rmdir()


def _names(listed: Any) -> list[str]:
    return [str(name) for name in listed] if isinstance(listed, list) else []


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(read_file(path, follow=False))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
