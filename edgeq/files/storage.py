"""Write files and directories so that nothing is ever half-written: temporary name, fsync, rename.

Which directories may be replaced is left to `edgeq.files.ownership`.
"""

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edgeq.errors import BadInput, EdgeqError
from edgeq.files.hashes import CHUNK_BYTES
from edgeq.files.locking import acquire
from edgeq.files.ownership import (
    MADE,
    MARKER_FILE,
    REPLACED,
    clear_contents,
    foreign_entry,
    foreign_in_temporary,
    is_temporary,
    remove_empty,
    temporary_of,
)
from edgeq.files.plain_files import is_plain_directory, kind_of
from edgeq.types import NumpyArray

# the longest name that a format or a run gives a file in a temporary directory, and some more
LONGEST_INSIDE = Path(MADE, "blocks", "x" * 80)
NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file grew to the size limit of this system or shell (ulimit -f)",
}


def check_destination(
    path: Path, *, force: bool, source: Path | None = None, whole: bool = True
) -> None:
    """Refuse an output that cannot be made, before any work starts.

    `whole` says whether exports in it that were changed since stay too.

    Raises: BadInput when it exists (and force is off), holds its own source, or cannot be made.
    """
    _check_text(path)
    with explaining(path):
        _check_name(path)
        if path.exists() and not force:
            raise BadInput(
                f"output {str(path)!r} exists; choose another name with --output, or pass --force "
                "to replace it"
            )
        for kept, what in ((Path.cwd(), "the current directory"), (source, "what it is made from")):
            real = None if kept is None else Path(os.path.realpath(kept))
            if real is not None and path.resolve() in (real, *real.parents):
                raise BadInput(f"output {str(path)!r} would replace {what}; choose another name")
        if path.exists():
            check_own(path, whole=whole)
        check_temporary(path.resolve())
        _check_parent(path)


def check_output_file(path: Path, *, force: bool, is_own: Callable[[Path], bool]) -> None:
    """Refuse an output of one file that cannot be made, before any work starts.

    is_own says of a file that is there whether `force` may replace it.

    Raises: BadInput.
    """
    _check_text(path)
    with explaining(path):
        is_there = os.path.lexists(path) or path.resolve().exists()
        if is_there and not force:
            raise BadInput(
                f"output {str(path)!r} exists; choose another name or pass --force to replace it"
            )
        if is_there and not is_own(path):
            raise BadInput(
                f"output {str(path)!r} is no file of the kind that is to be written; "
                "--force replaces only such files, choose another name"
            )
        with suppress(FileNotFoundError, NotADirectoryError):
            path.with_name(f".{path.name}{'x' * 16}").stat()  # the longest name it is made under
        _check_parent(path)


def _check_parent(path: Path) -> None:
    """Raise BadInput where neither a directory nor one above it can be written to."""
    parent = path.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise BadInput(
            f"output {str(path)!r}: {str(parent)!r} is not a directory that can be written to"
        )


def _check_text(path: Path) -> None:
    """Raise BadInput for a name that is no text."""
    if not _is_text(path):
        raise BadInput(
            f"output {str(path)!r} has bytes in its name that are no text, "
            "which the libraries of formats cannot open; choose another name"
        )


def _is_text(path: Path) -> bool:
    try:
        return b"\0" not in str(path.absolute()).encode("utf-8")
    except UnicodeEncodeError:  # bytes of a file name that Python could not decode
        return False


def _check_name(path: Path) -> None:
    """Raise OSError for a loop of links, and for names longer than the system takes."""
    for longest in (path, temporary_of(Path(os.path.realpath(path))) / LONGEST_INSIDE):
        with suppress(FileNotFoundError, NotADirectoryError):
            longest.stat()


def check_own(path: Path, *, whole: bool = True) -> None:
    """Refuse to replace an output that holds anything which edgeq did not write.

    Raises: BadInput naming the first such entry.
    """
    foreign = foreign_entry(path, whole=whole) if path.is_dir() else "."
    if foreign == ".":
        raise BadInput(
            f"output {str(path)!r} was not written by edgeq; "
            "--force replaces only edgeq's own directories"
        )
    if foreign is not None:
        raise BadInput(
            f"output {str(path)!r} holds {foreign!r}, which edgeq did not write, "
            "or not as it is now; move it away or choose another name, "
            "--force replaces only what edgeq wrote"
        )


def check_temporary(path: Path) -> None:
    """Refuse an output whose temporary name is taken by something else.

    Raises: BadInput.
    """
    temporary = temporary_of(path)
    try:
        os.lstat(temporary)
    except (FileNotFoundError, NotADirectoryError):
        return
    if not is_temporary(temporary):
        raise BadInput(
            f"output {str(path)!r} is made under the name {temporary.name!r}, "
            "which exists and is not edgeq's; move that away or choose another name"
        )


@contextmanager
def new_directory(destination: Path, *, force: bool = False, whole: bool = True) -> Iterator[Path]:
    """Make a directory that appears under its name once it is complete, and not at all on failure.

    It is made in a temporary directory beside it. That one also keeps what it replaces until the
    new directory is in place.
    """
    with claimed(destination) as temporary, explaining(destination, temporary):
        check_destination(destination, force=force, whole=whole)
        clear_contents(temporary)
        made = temporary / MADE
        try:
            made.mkdir()
            yield made
            put_in_place(made, destination)
        finally:
            bring_back(destination)
            clear_contents(temporary)


@contextmanager
def output_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears under its name once it is complete, and not at all on failure.

    A link stays, what it points to is replaced.

    Raises: BadInput where it cannot be written.
    """
    with explaining(path):
        real = path.resolve()
        real.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(".partial", f".{real.name}", real.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
            rename_when_stored(partial, real)
            sync_directory(real.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def claimed(destination: Path) -> Iterator[Path]:
    """Claim the temporary directory of an output for this process.

    It is removed at the end if nothing is in it.

    Raises: BadInput when another process works on the output, or something else has the directory's
    name.
    """
    temporary = temporary_of(destination.resolve())  # a link stays, what it points to is replaced
    with explaining(destination):
        check_temporary(destination.resolve())
        lock = acquire(temporary, MARKER_FILE)
    if lock is None:
        raise BadInput(
            f"output {str(destination)!r} is being written by another edgeq process; "
            "wait for it or choose another name"
        )
    try:
        with explaining(destination):
            check_inside(destination, temporary)
            bring_back(destination)
        yield temporary
    finally:
        if os.name == "nt":  # where open files cannot be removed
            os.close(lock)
        with suppress(OSError):  # another process has claimed it by now
            remove_empty(temporary)
        if os.name != "nt":
            os.close(lock)


def check_inside(destination: Path, temporary: Path) -> None:
    """Refuse a temporary directory with anything in it that edgeq does not make there.

    Raises: BadInput naming the first such entry; nothing is touched.
    """
    found = foreign_in_temporary(temporary)
    if found is not None:
        raise BadInput(
            f"output {str(destination)!r} is made in {temporary.name!r}, which holds {found!r}, "
            f"{kind_of(temporary / found)} that edgeq did not put there; "
            "move it away or choose another name"
        )


def put_in_place(made: Path, destination: Path) -> None:
    """Give a finished directory its name; what has that name is kept until then."""
    resolved = destination.resolve()
    sync_directory(made)
    if resolved.exists():
        os.replace(resolved, made.with_name(REPLACED))
    os.replace(made, resolved)
    sync_directory(resolved.parent)


def bring_back(destination: Path) -> None:
    """Undo a replacement that was stopped half-way, by an error or long ago with its process."""
    resolved = destination.resolve()
    replaced = temporary_of(resolved) / REPLACED
    if is_plain_directory(replaced) and not resolved.exists():
        os.replace(replaced, resolved)


@contextmanager
def explaining(destination: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turn the system's refusals to write an output into one clear line.

    Those that libraries pass on count too. With a temporary directory only errors about it and the
    directories above it count: other files are not the output.

    Raises: BadInput.
    """
    try:
        yield
    except EdgeqError:
        raise
    except Exception as error:  # safetensors, for one, has an exception of its own for a full disk
        no_room = NO_ROOM.get(system_error(error) or 0)
        if no_room is not None:
            raise BadInput(
                f"output {str(destination)!r} cannot be written: {no_room}; "
                "make room or choose another place"
            ) from error
        if isinstance(error, OSError) and (temporary is None or _is_about(error, temporary)):
            raise BadInput(
                f"output {str(destination)!r} cannot be written ({error.strerror}); "
                "choose another place or name"
            ) from error
        raise


def _is_about(error: OSError, folder: Path) -> bool:
    named = str(error.filename)
    return named.startswith(str(folder)) or str(folder).startswith(named)


def system_error(error: Exception) -> int | None:
    """Read the number of the system's error behind an exception.

    Python states it in errno, libraries in Rust in their text.
    """
    if isinstance(error, OSError):
        return error.errno
    stated = re.search(r"\(os error (\d+)\)", str(error))
    return int(stated[1]) if stated else None


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
    with new_file(temporary) as file:
        file.write(data)
    rename_when_stored(temporary, path)


def new_file(path: Path) -> BinaryIO:
    """Open a file that is not there yet for writing; what has its name goes, whatever it is.

    Written over, it would change every other file that is linked to it.
    """
    path.unlink(missing_ok=True)
    return path.open("xb")


def write_array(path: Path, array: NumpyArray) -> str:
    """Write a .npy file and flush it; the name is its own from the start. Gives its SHA-256.

    Raises: OSError; NumPy's own way to write loses the reason when the disk is full.
    """
    array = np.ascontiguousarray(array)
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    digest = hashlib.sha256()
    content = array.reshape(-1).view(np.uint8).data
    parts = (content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES))
    with new_file(path) as file:
        for part in (header.getbuffer(), *parts):
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def rename_when_stored(partial: Path, path: Path, *, flush: bool = True) -> None:
    """Give a finished file its name once its bytes have reached the disk.

    It gets the mode that new files have. Without flush it gets its name at once, and counts for
    nothing until somebody has flushed it.
    """
    mask = os.umask(0)
    os.umask(mask)
    partial.chmod(0o666 & ~mask)  # safetensors makes files that only their owner may read
    if flush:
        sync_file(partial)
    os.replace(partial, path)


def size_of(path: Path) -> int:
    """Count the bytes of a file, or of all files in a directory."""
    files: Iterable[Path] = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files)
