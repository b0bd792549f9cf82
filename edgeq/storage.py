"""Writing so that nothing is ever half-written: a temporary name, fsync, rename."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeq.errors import BadInput

# What marks a directory as edgeq's own: a file, and keys that other programs' files of that name do not have together.
MARKERS = {"edgeq.json": {"format_version", "recipe"}, "manifest.json": {"format", "file", "tensors"}}


def check_destination(path: Path, *, force: bool, source: Path | None = None) -> None:
    """Raises: BadInput when the output exists (and force is off), holds its own source, or cannot be made."""
    if path.exists() and not force:
        raise BadInput(f"output {str(path)!r} exists; choose another name or pass --force to replace it")
    if path.exists() and not is_own(path):
        raise BadInput(f"output {str(path)!r} was not written by edgeq; --force replaces only edgeq's own directories")
    for kept, what in ((Path.cwd(), "the current directory"), (source, "what it is made from")):
        if kept is not None and path.resolve() in (kept.resolve(), *kept.resolve().parents):
            raise BadInput(f"output {str(path)!r} would replace {what}; choose another name")
    parent = path.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise BadInput(f"output {str(path)!r}: {str(parent)!r} is not a directory that can be written to")


def is_own(path: Path) -> bool:
    """Whether edgeq wrote this directory."""
    return any(keys <= _keys_of(path / name) for name, keys in MARKERS.items())


def _keys_of(path: Path) -> set[str]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return set()
    return set(content) if isinstance(content, dict) else set()


@contextmanager
def new_directory(destination: Path, *, force: bool = False) -> Iterator[Path]:
    """A directory that appears under its name, complete, when the context ends well, and not at all when it fails."""
    check_destination(destination, force=force)
    destination = destination.resolve()  # a link stays, what it points to is replaced
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync_directory(partial)
        _swap_in(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap_in(partial: Path, destination: Path) -> None:
    old = destination.with_name(f".{destination.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if destination.exists():
        os.replace(destination, old)
    os.replace(partial, destination)
    shutil.rmtree(old, ignore_errors=True)
    sync_directory(destination.parent)


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to disk where the system allows it."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Flush a file's content to disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, flush it, and give it its name."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(data)
    sync_file(temporary)
    os.replace(temporary, path)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a directory."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")))
