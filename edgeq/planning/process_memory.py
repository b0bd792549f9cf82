"""What this process takes of the machine's memory, and how the C library is kept from hoarding it.

On other systems than Linux nothing is known of the process, and nothing is changed.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any

# bytes: arrays of this size and more go back to the system when they are freed
MAPPED_FROM = 4 * 2**20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def give_large_arrays_back() -> None:
    """Let glibc give large arrays back to the system when they are freed.

    By itself it raises the size from which it maps memory anew to 32 MB as arrays come and go. Then
    it keeps holes between them, and the resident set of a long run grows for many blocks.
    """
    mallopt = _c_function("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)
        mallopt(M_TRIM_THRESHOLD, MAPPED_FROM)


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
