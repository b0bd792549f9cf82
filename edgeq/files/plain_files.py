"""Open files and walk directories that somebody else may have made: plain ones, and nothing else.

Reading a FIFO waits for ever, a device never ends, and a link leads to somebody else's files. What
is no file is refused by an OSError, which readers report with the name of what they read.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgeq.errors import BadInput
from edgeq.types import NumpyArray

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
JUNCTION = 0xA0000003  # Windows calls it a directory, and follows it like a link
WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def open_file(path: Path, *, follow: bool = True) -> BinaryIO:
    """Open a file for reading; `follow` says whether the name may be a link to one.

    Raises: OSError for what is missing or may not be read, and at once for what is no file.
    """
    found = path.stat() if follow else path.lstat()
    _check_file(path, found)  # asked first: some devices start to work when they are opened
    handle = os.open(path, os.O_RDONLY | WITHOUT_WAITING | BINARY | (0 if follow else NO_LINK))
    try:
        _check_file(path, os.fstat(handle))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def append_to_file(path: Path) -> FileIO:
    """Open a file to append to, and make it where there is none; written bytes are not buffered.

    Raises: OSError for what cannot be written, and at once for what is no file.
    """
    with suppress(FileNotFoundError):
        _check_file(path, path.stat())
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | WITHOUT_WAITING | BINARY
    handle = os.open(path, flags, 0o666)
    try:
        _check_file(path, os.fstat(handle))
        return FileIO(handle, "ab")
    except BaseException:
        os.close(handle)
        raise


def read_file(path: Path, *, follow: bool = True) -> bytes:
    """Read a whole file. Raises: OSError as `open_file` does."""
    with open_file(path, follow=follow) as file:
        return file.read()


def read_array(path: Path, dtype: np.dtype[Any], count: int, *, offset: int) -> NumpyArray:
    """Read numbers from a file, not from a map of it: a map ends the process if the file shrinks.

    Shapes: (count,).
    Raises: BadInput when the file is too short by now; OSError.
    """
    values = np.empty(count, dtype)
    left = values.view(np.uint8).data
    with open_file(path) as file:
        file.seek(offset)
        while left:
            read = file.readinto(left)  # type: ignore[attr-defined]
            if not read:
                raise BadInput(f"{str(path)!r} became shorter while in use; fetch or make it again")
            left = left[read:]
    return values


def what_to_do(error: OSError) -> str:
    """Say what to do about a file that cannot be read."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "check the path"
    return "put a file there" if error.errno == errno.EINVAL else "check its permissions"


def is_plain_file(path: Path) -> bool:
    """Say whether a name is that of a file itself, not of a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def is_plain_directory(path: Path) -> bool:
    """Say whether a name is that of a directory itself, not of a link or junction to one."""
    try:
        found = path.lstat()
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(found.st_mode) and not _is_junction(found)


def inside(path: Path, folder: Path) -> bool:
    """Say whether a path, all links followed, lies below a directory; a loop of links does not."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):
        return False


def kind_of(path: Path) -> str:
    """Say in words what has a name, without following a link."""
    found = path.lstat()
    return "a link" if _is_junction(found) else KINDS.get(stat.S_IFMT(found.st_mode), "a file")


def refuse_odd_files(folder: Path) -> None:
    """Refuse a directory whose files a library is given, if one of them is no file it could read.

    Libraries would wait for a FIFO for ever. Links to files are followed.

    Raises: BadInput naming the first one.
    """
    for path in sorted(folder.iterdir()):
        if not path.is_file() and not path.is_dir():
            raise BadInput(f"{str(path)!r} is {kind_of(path)}, not a file; put a file there")


def first_not_plain(folder: Path) -> Path | None:
    """Find what is neither file nor directory below a directory, or a directory that is a link.

    Nothing is followed. Returns None where there is none.
    """
    if not is_plain_directory(folder):
        return folder
    return next((path for path in entries_below(folder) if _is_odd(path)), None)


def entries_below(folder: Path) -> Iterator[Path]:
    """List everything below a directory, in order, without following links."""
    for entry in sorted(folder.iterdir()):
        yield entry
        if is_plain_directory(entry):
            yield from entries_below(entry)


def _is_odd(path: Path) -> bool:
    return not is_plain_file(path) and not is_plain_directory(path)


def _is_junction(found: os.stat_result) -> bool:
    return getattr(found, "st_reparse_tag", 0) == JUNCTION


def _check_file(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))
