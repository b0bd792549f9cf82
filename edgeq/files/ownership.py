"""Tell which directories edgeq wrote, entry by entry: only these may be replaced or cleared away.

Writing them so that nothing is half-written is left to `edgeq.files.storage`.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

HEAD_FILE = "edgeq.json"
MANIFEST_FILE = "manifest.json"
REPORT_FILE = "report.json"
TEMPORARY_SUFFIX = ".edgeq-partial"
MARKER_FILE = "EDGEQ-UNFINISHED"  # lies in every temporary directory
HEAD_LISTS = ("files", "companions")
HEAD_KEYS = {"format_version", "edgeq", "model", "source", "recipe", *HEAD_LISTS}
MANIFEST_KEYS = {"format", "file", "files", "tensors"}


def temporary_of(destination: Path) -> Path:
    """Name the directory beside an output in which the output is made."""
    return destination.with_name(f".{destination.name}{TEMPORARY_SUFFIX}")


def foreign_entry(folder: Path) -> str | None:
    """Find the first entry of a directory that edgeq did not write, as a path inside of it.

    Returns None where edgeq wrote all of them, "." where it did not write the directory.
    """
    written = written_files(folder)
    return _first_foreign(folder, PurePosixPath(), written) if written else "."


def _first_foreign(folder: Path, inside: PurePosixPath, written: set[str]) -> str | None:
    for entry in sorted(folder.iterdir()):
        name = inside / entry.name
        if entry.is_symlink():
            return str(name)
        if not entry.is_dir():
            if str(name) not in written:
                return str(name)
        elif any(name in PurePosixPath(file).parents for file in written):
            found = _first_foreign(entry, name, written)
            if found is not None:
                return found
        elif not is_temporary(entry):
            found = foreign_entry(entry)
            if found is not None:
                return str(name / found)
    return None


def written_files(folder: Path) -> set[str]:
    """List the files that a checkpoint's edgeq.json or an export's manifest.json names.

    The list is empty for other directories.
    """
    head = _read(folder / HEAD_FILE)
    if set(head) >= HEAD_KEYS:
        listed = {name for key in HEAD_LISTS for name in _names(head[key])}
        return {HEAD_FILE, REPORT_FILE, "config.json"} | listed
    manifest = _read(folder / MANIFEST_FILE)
    if set(manifest) >= MANIFEST_KEYS:
        return {MANIFEST_FILE, *_names(manifest["files"])}
    return set()


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
    if not named or not folder.is_dir():
        return False
    return (folder / MARKER_FILE).is_file() or not any(folder.iterdir())


def clear_contents(folder: Path) -> None:
    """Empty a temporary directory down to its marker."""
    for entry in folder.iterdir():
        if entry.name == MARKER_FILE:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def remove_empty(folder: Path) -> None:
    """Remove a temporary directory unless something beside its marker is in it."""
    if any(entry.name != MARKER_FILE for entry in folder.iterdir()):
        return
    (folder / MARKER_FILE).unlink(missing_ok=True)
    folder.rmdir()


def _names(listed: Any) -> list[str]:
    """List the names in a list, or those that an object has hashes for."""
    if not isinstance(listed, list | dict):
        return []
    return [name for name in listed if isinstance(name, str)]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
