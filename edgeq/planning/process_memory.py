"""What this process takes of the machine's memory, and how the C library is kept from hoarding it.

On other systems than Linux nothing is known of the process, and nothing is changed.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# bytes: arrays of this size and more go back to the system when they are freed
MAPPED_FROM = 4 * 2**20
# bytes, while blocks are solved: no array is as large, but on models whose arrays fill a machine
REUSED_BELOW = 2**30
# what glibc before 2.35 takes at most
REUSED_BELOW_BEFORE = 32 * 2**20
KEPT = 1 / 20  # of what a process needed so far: as much may be free beside it
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def give_large_arrays_back() -> None:
    """Let glibc give large arrays back to the system when they are freed.

    By itself it raises the size from which it maps memory anew to 32 MB as arrays come and go. Then
    it keeps holes between them, and the resident set of a long run grows for many blocks.
    """
    set_thresholds(MAPPED_FROM)


@contextmanager
def reused_memory() -> Iterator[Callable[[], None]]:
    """Keep arrays that are freed for those that come next, while blocks are solved.

    Every page that is taken anew costs an interrupt and is filled with zeros by the system, which
    adds up to a quarter of the seconds of a solve. What this yields bounds the memory that is kept:
    it is to be called between passes and solves, and gives all that is free back where the process
    has grown by more than a share of what it ever needed.
    """
    most = 0

    def bound() -> None:
        nonlocal most
        resident = _status_bytes("RssAnon")  # without pages of files, which come and go as well
        if resident is None or resident > (1 + KEPT) * most:
            trim()
            most = max(most, _status_bytes("RssAnon") or 0)

    set_thresholds(REUSED_BELOW_BEFORE)
    set_thresholds(REUSED_BELOW)
    try:
        yield bound
    finally:
        give_large_arrays_back()
        trim()


def set_thresholds(size: int) -> None:
    """Let glibc map arrays of a size and more anew; below it, keep as much in its heap.

    Sizes that this glibc does not take change nothing. Units: bytes.
    """
    mallopt = _c_function("mallopt")
    if mallopt is not None and mallopt(M_MMAP_THRESHOLD, size):
        mallopt(M_TRIM_THRESHOLD, size)


def trim() -> None:
    """Give back to the system what is free inside the heap."""
    malloc_trim = _c_function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def resident_bytes() -> int | None:
    """Read the resident set of this process now; None where the system does not say."""
    return _status_bytes("VmRSS")


def peak_resident_bytes() -> int | None:
    """Read the largest resident set of this process so far; None where the system does not say.

    getrusage would not do: it goes on from the peak of the process that started this one.
    """
    return _status_bytes("VmHWM")


def machine_bytes() -> int | None:
    """Read how much memory this machine has; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _status_bytes(name: str) -> int | None:
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            line = next(line for line in file if line.startswith(name))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def _c_function(name: str) -> Callable[..., Any] | None:
    """Find a function of glibc; None with another C library."""
    if not sys.platform.startswith("linux"):
        return None
    function: Callable[..., Any] | None = getattr(ctypes.CDLL(None), name, None)
    return function
