"""What is freed while blocks are solved stays for what comes next, and does not pile up."""

import ctypes
import os
import subprocess
import sys

import pytest

from edgeq.planning.process_memory import (
    KEPT,
    REUSED_BELOW_BEFORE,
    give_large_arrays_back,
    resident_bytes,
    reused_memory,
)

LIBC = ctypes.CDLL(None)
ARRAY = REUSED_BELOW_BEFORE // 2  # bytes

pytestmark = pytest.mark.skipif(
    not (sys.platform.startswith("linux") and hasattr(LIBC, "malloc_trim")),
    reason="only glibc is told what to do with freed memory",
)


def take_and_free(count, size=ARRAY):
    """Fill arrays from C's own memory, then free them all; give how many pages were taken anew."""
    import resource  # noqa: PLC0415 - not there on Windows

    LIBC.malloc.restype, LIBC.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    LIBC.free.argtypes = [ctypes.c_void_p]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [LIBC.malloc(size) for _ in range(count)]
    for array in arrays:
        ctypes.memset(array, 1, size)
    for array in arrays:
        LIBC.free(array)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def freed_arrays_are_used_again_while_blocks_are_solved():
    with reused_memory():
        take_and_free(2)
        again = take_and_free(2)
    assert again < 2 * ARRAY / 4096 / 20


def freed_memory_beyond_a_share_is_given_back_when_asked():
    with reused_memory() as bound:
        bound()
        needed = resident_bytes()
        count = int(4 * KEPT * needed / ARRAY) + 1
        take_and_free(count)
        kept = resident_bytes()
        bound()
        left = resident_bytes()
    assert kept > needed + 0.9 * count * ARRAY
    assert left < (1 + KEPT) * needed


def what_the_process_needs_is_not_given_back_for_nothing():
    with reused_memory() as bound:
        bound()
        take_and_free(1, size=resident_bytes() // 100)  # less than the share that is kept
        bound()
        again = take_and_free(1, size=resident_bytes() // 100)
    assert again < resident_bytes() / 100 / 4096 / 5


def large_arrays_go_back_to_the_system_once_blocks_are_solved():
    with reused_memory():
        take_and_free(4)
    give_large_arrays_back()
    before = resident_bytes()
    take_and_free(4)
    assert resident_bytes() < before + ARRAY / 2


CHECKS = (
    freed_arrays_are_used_again_while_blocks_are_solved,
    freed_memory_beyond_a_share_is_given_back_when_asked,
    what_the_process_needs_is_not_given_back_for_nothing,
    large_arrays_go_back_to_the_system_once_blocks_are_solved,
)


def test_memory_is_used_again_and_given_back_in_a_process_of_its_own():
    """Not in one that other tests have used: what is free in its heap counts here."""
    calls = "; ".join(f"checks.{check.__name__}()" for check in CHECKS)
    command = [sys.executable, "-c", f"import {__name__} as checks; {calls}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
