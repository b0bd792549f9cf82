"""Find what an interrupted download leaves in a file of the right size: zeros to its end.

Zeros that models have on purpose are told apart: biases, rows of an embedding that no token uses,
rows and columns that fill a matrix up to a size.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgeq.errors import DamagedModel
from edgeq.files.plain_files import open_file

AT_ONCE = 1 << 20  # bytes that are read together where the first ones are all zeros
FIRST = 1 << 12  # of a sound tensor no more is read
CERTAIN = 16  # bytes of zeros before a row of zeros: fewer may be numbers that are zero


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """The bytes of a matrix in a file; a row is what its last axis takes."""

    tensor: str
    file: Path
    start: int
    size: int
    row: int


def row_bytes(size: int, shape: tuple[int, ...]) -> int:
    """Count the bytes of a row of a tensor that takes `size` bytes in all."""
    return size // max(1, math.prod(shape[:-1]))


def check_gaps(places: Iterable[StoredBytes]) -> None:
    """Refuse files in which bytes were reserved and never written; a few KB of a tensor are read.

    Only matrices are looked at.

    Raises: DamagedModel naming the first tensor that is all zeros, or one whose zeros begin inside
    of a row and go on to the end of the file for more than a row.
    """
    of_file: dict[Path, list[StoredBytes]] = {}
    for place in places:
        if place.row < place.size:
            of_file.setdefault(place.file, []).append(place)
    for file, inside in of_file.items():
        ordered = sorted(inside, key=lambda place: place.start)
        with open_file(file) as stream:
            for place in ordered:
                if is_all_zeros(stream, place):
                    raise unwritten(place, "is all zeros")
            last = ordered[-1]
            zeros = zeros_at_end(stream, last)
        # rows that fill a matrix up begin where a row does, a download stops anywhere
        if zeros > last.row and zeros % last.row >= CERTAIN:
            raise unwritten(last, f"ends in {zeros} bytes of zeros that begin inside of a row")


def unwritten(place: StoredBytes, found: str) -> DamagedModel:
    return DamagedModel(
        f"tensor {place.tensor!r} of {place.file} {found}, as an interrupted download leaves it; "
        "fetch the checkpoint again"
    )


def is_all_zeros(stream: BinaryIO, place: StoredBytes) -> bool:
    """Say whether a tensor has no byte but zeros; stops at the first other one."""
    stream.seek(place.start)
    left, count = place.size, FIRST
    while left:
        content = stream.read(min(count, left))
        if not content or content.strip(b"\0"):
            return False
        left, count = left - len(content), AT_ONCE
    return True


def zeros_at_end(stream: BinaryIO, place: StoredBytes) -> int:
    """Count the zero bytes that a tensor ends in."""
    end, count = place.start + place.size, FIRST
    stop = end
    while stop > place.start:
        begin = max(place.start, stop - count)
        stream.seek(begin)
        content = stream.read(stop - begin)
        kept = content.rstrip(b"\0")
        if kept:
            return end - (begin + len(kept))
        stop, count = begin, AT_ONCE
    return end - place.start
