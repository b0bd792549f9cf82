"""Keep a directory to one process at a time, by a lock on a file in it.

The system lets go of the lock when its holder ends, however it ends.
"""

import os
import sys
from pathlib import Path

from edgeq.files.plain_files import BINARY, NO_LINK

ATTEMPTS = 100  # each fails only where a holder removes the directory at that very moment

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system that has no locks
            return True
        return True


def acquire(folder: Path, name: str) -> int | None:
    """Make a directory with the file `name` in it, and lock that file for this process.

    Returns a handle to close, or None when another process holds the lock.
    """
    path = folder / name
    for _ in range(ATTEMPTS):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK | BINARY, 0o666)
        except FileNotFoundError:  # whoever held it has just removed the directory
            continue
        if not _lock(handle):
            os.close(handle)
            return None
        if _is_still(path, handle):
            return handle
        os.close(handle)
    return None


def _is_still(path: Path, handle: int) -> bool:
    """Say whether a file that was opened has its name still.

    Its holder removes it before it lets go.
    """
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False
