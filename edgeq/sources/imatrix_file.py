"""Read and write importance matrices in llama.cpp's file formats: GGUF, and binary of older ones.

A GGUF file has, for each tensor that takes part, NAME.in_sum2 and NAME.counts: sums of squared
inputs and how many tokens they are of. The older kind has means times a number of calls. Which
layers of a model the names stand for is said by `edgeq.sources.imatrix`.
"""

import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np

from edgeq.errors import BadInput, lower_first, reason_of
from edgeq.files.plain_files import open_file, read_file, what_to_do
from edgeq.sources.gguf_file import open_reader, read_metadata
from edgeq.sources.gguf_tensors import decode_whole
from edgeq.sources.refusals import check_content
from edgeq.types import NumpyArray

MAGIC = b"GGUF"
VERSION = 3
KIND = "imatrix"
TYPE_KEY = "general.type"
SUMS, COUNTS = ".in_sum2", ".counts"
ADVICE = "give a file that llama-imatrix or edgeq imatrix wrote"


@dataclass(frozen=True, slots=True)
class Entry:
    """What a file says of one tensor: sums of squared inputs, and how many tokens they are of.

    Counts may be one for all parts, as the older kind has it.

    Shapes: sums (parts, in), or (1, parts * in) where the file does not tell parts apart; counts
    (parts,) or (1,). Both float64; a part without tokens has a count of zero.
    """

    sums: NumpyArray
    counts: NumpyArray


def is_imatrix(path: Path) -> bool:
    """Say whether a file is a GGUF file that states to be an importance matrix."""
    try:
        with open_file(path) as file:
            if file.read(len(MAGIC)) != MAGIC:
                return False
        return read_metadata(open_reader(path), path).get(TYPE_KEY) == KIND
    except (OSError, BadInput):
        return False


def read_entries(path: Path) -> dict[str, Entry]:
    """Read the entries of a file of either kind, by llama.cpp's names of tensors.

    Raises: BadInput for what is missing, damaged, of another kind or no second moments.
    """
    try:
        with open_file(path) as file:
            start = file.read(len(MAGIC))
    except OSError as error:
        raise BadInput(
            f"importance matrix {str(path)!r}: {lower_first(reason_of(error))}; {what_to_do(error)}"
        ) from error
    check_content(path)
    entries = read_gguf(path) if start == MAGIC else read_binary(path)
    if not entries:
        raise refused(path, "it has no entry")
    for name, entry in entries.items():
        check_entry(path, name, entry)
    return entries


def refused(path: Path, why: str) -> BadInput:
    """Make the error for a file that is no importance matrix."""
    return BadInput(f"importance matrix {str(path)!r}: {why}; {ADVICE}")


def check_entry(path: Path, name: str, entry: Entry) -> None:
    """Raise BadInput for numbers that no sum of squares and no count can be."""
    for values, what in ((entry.sums, "sums of squares"), (entry.counts, "counts")):
        if not np.isfinite(values).all():
            raise refused(path, f"the {what} of {name!r:.100} hold NaN or infinity")
        if (values < 0).any():
            raise refused(path, f"the {what} of {name!r:.100} hold numbers below zero")


def read_gguf(path: Path) -> dict[str, Entry]:
    """Read the entries of a GGUF file; tensors of further kinds, such as sums, are left alone."""
    reader = open_reader(path)
    kind = read_metadata(reader, path).get(TYPE_KEY, KIND)
    if kind != KIND:
        raise refused(path, f"it is a GGUF file of type {kind!r:.40}, not {KIND!r}")
    found: dict[str, dict[str, NumpyArray]] = defaultdict(dict)
    for tensor in reader.tensors:
        suffix = next((each for each in (SUMS, COUNTS) if tensor.name.endswith(each)), None)
        if suffix is None:
            continue
        if tensor.tensor_type != gguf.GGMLQuantizationType.F32:
            raise refused(path, f"{tensor.name!r:.100} is {tensor.tensor_type.name}, not F32")
        if not tensor.n_elements:
            raise refused(path, f"{tensor.name!r:.100} is empty")
        values = decode_whole(tensor, path).astype(np.float64)
        found[tensor.name.removesuffix(suffix)][suffix] = values.reshape(-1)
    return {name: entry_of(path, name, parts) for name, parts in found.items()}


def entry_of(path: Path, name: str, parts: Mapping[str, NumpyArray]) -> Entry:
    """Put the two tensors of an entry together. Raises: BadInput where one is missing or odd."""
    for suffix in (SUMS, COUNTS):
        if suffix not in parts:
            raise refused(
                path, f"it has no tensor {name + suffix!r:.100}, which belongs to its other"
            )
    sums, counts = parts[SUMS], parts[COUNTS]
    if not sums.size or not counts.size or sums.size % counts.size:
        raise refused(
            path,
            f"{name!r:.100} has {sums.size} sums for {counts.size} counts, no multiple of them",
        )
    return Entry(sums.reshape(counts.size, -1), counts)


class Walk:
    """A position in a binary file that never leaves it."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content, self.offset = path, content, 0

    def take(self, size: int) -> bytes:
        """Read so many bytes. Raises: BadInput where there are not as many."""
        if not 0 <= size <= len(self.content) - self.offset:
            raise refused(
                self.path,
                "it is neither GGUF nor of llama.cpp's older kind, or it is cut short "
                f"({size} bytes are stated at byte {self.offset} of {len(self.content)})",
            )
        start = self.offset
        self.offset += size
        return self.content[start : self.offset]

    def number(self) -> int:
        return int(struct.unpack("<i", self.take(4))[0])

    def text(self) -> str:
        try:
            return self.take(self.number()).decode("utf-8")
        except UnicodeDecodeError:
            raise refused(self.path, f"a name before byte {self.offset} is no text") from None

    @property
    def is_at_end(self) -> bool:
        return self.offset == len(self.content)


def read_binary(path: Path) -> dict[str, Entry]:
    """Read the entries of the older kind: name, calls, and means times calls; no parts.

    Entries without calls hold the means themselves. Behind them may stand the number of chunks,
    and the name of the text.
    """
    walk = Walk(path, read_file(path))
    entries: dict[str, Entry] = {}
    for _ in range(walk.number()):
        name = walk.text()
        calls, size = walk.number(), walk.number()
        if size < 1:
            raise refused(path, f"{name!r:.100} states {size} values")
        if name in entries:
            raise refused(path, f"{name!r:.100} stands in it twice")
        sums = np.frombuffer(walk.take(4 * size), "<f4").astype(np.float64)
        entries[name] = Entry(sums.reshape(1, -1), np.array([float(calls or 1)]))
    if not walk.is_at_end:
        walk.number()
    if not walk.is_at_end:
        walk.text()
    if not walk.is_at_end:
        raise refused(path, f"it goes on behind its end at byte {walk.offset}")
    return entries


def write_entries(
    file: BinaryIO, entries: Mapping[str, Entry], *, datasets: Sequence[str], chunks: int, size: int
) -> None:
    """Write a GGUF file as llama-imatrix does: its keys, its shapes, names in order.

    chunks is how many windows of `size` tokens the sums are of.
    """
    strings, whole = gguf.GGUFValueType.STRING, gguf.GGUFValueType.UINT32
    listed = b"".join(map(text_bytes, datasets))
    values = {
        TYPE_KEY: (strings, text_bytes(KIND)),
        "imatrix.datasets": (
            gguf.GGUFValueType.ARRAY,
            struct.pack("<IQ", strings, len(datasets)) + listed,
        ),
        "imatrix.chunk_count": (whole, struct.pack("<I", chunks)),
        "imatrix.chunk_size": (whole, struct.pack("<I", size)),
    }
    tensors: dict[str, NumpyArray] = {}
    for name in sorted(entries):
        tensors[name + SUMS] = entries[name].sums.astype("<f4")
        tensors[name + COUNTS] = entries[name].counts.astype("<f4").reshape(-1, 1)
    header = MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(values))
    header += b"".join(
        text_bytes(key) + struct.pack("<I", kind) + data for key, (kind, data) in values.items()
    )
    offset = 0
    for name, tensor in tensors.items():
        sizes = struct.pack("<IQQ", 2, *reversed(tensor.shape))
        place = struct.pack("<IQ", gguf.GGMLQuantizationType.F32, offset)
        header += text_bytes(name) + sizes + place
        offset += tensor.nbytes + padding(tensor.nbytes)
    file.write(header + bytes(padding(len(header))))
    for tensor in tensors.values():
        file.write(tensor.tobytes() + bytes(padding(tensor.nbytes)))


def text_bytes(text: str) -> bytes:
    """Write a text as GGUF does: its length, then its bytes."""
    data = text.encode("utf-8", "replace")
    return struct.pack("<Q", len(data)) + data


def padding(size: int) -> int:
    """Count the bytes from a place to the next one that is aligned."""
    return -size % gguf.GGUF_DEFAULT_ALIGNMENT
