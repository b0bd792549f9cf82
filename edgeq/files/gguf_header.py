"""Check that every count and length in a GGUF header stays inside the file.

The gguf library trusts them: a damaged count makes it loop and allocate until memory is gone.
"""

import mmap
import struct
from pathlib import Path

from edgeq.files.plain_files import open_file

# by GGUF value type
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)
MOST_DIMENSIONS = 4  # ggml has no tensors of more
SMALLEST_ENTRY = 12  # bytes of a key-value or tensor entry whose texts are empty; bounds the counts


def check_header(path: Path) -> None:
    """Walk over key-values and tensor infos, before the gguf library reads the file.

    Raises: ValueError saying what is wrong; OSError.
    """
    with (
        open_file(path) as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        HeaderWalk(content).check()


class HeaderWalk:
    """A position in a GGUF header that moves forward and never leaves the file."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.offset = 0

    def check(self) -> None:
        if self.content[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.skip(4)
        version = self.number("<I")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}; only 2 and 3, little-endian, are known")
        tensors, pairs = self.count("tensors"), self.count("key-values")
        for _ in range(pairs):
            self.skip_text()
            self.skip_value(self.number("<I"))
        for _ in range(tensors):
            self.skip_tensor_info()

    def skip(self, count: int) -> None:
        self.offset += count
        if self.offset > len(self.content):
            raise ValueError(
                f"its header runs past the end of the file at {len(self.content)} bytes"
            )

    def number(self, layout: str) -> int:
        start = self.offset
        self.skip(struct.calcsize(layout))
        return int(struct.unpack_from(layout, self.content, start)[0])

    def count(self, what: str) -> int:
        count = self.number("<Q")
        if count * SMALLEST_ENTRY > len(self.content):
            raise ValueError(
                f"it claims {count} {what}, more than fit into {len(self.content)} bytes"
            )
        return count

    def skip_text(self) -> None:
        self.skip(self.number("<Q"))

    def skip_value(self, kind: int) -> None:
        if kind == STRING:
            self.skip_text()
        elif kind == ARRAY:
            self.skip_array()
        elif kind in SCALAR_BYTES:
            self.skip(SCALAR_BYTES[kind])
        else:
            raise ValueError(f"it holds a value of the unknown type {kind}")

    def skip_array(self) -> None:
        kind, count = self.number("<I"), self.number("<Q")
        if kind in SCALAR_BYTES:
            self.skip(count * SCALAR_BYTES[kind])
        elif kind == STRING:
            # ends with the file at the latest: every text takes eight bytes or more
            for _ in range(count):
                self.skip_text()
        else:
            raise ValueError(
                f"it holds an array of the type {kind}; only numbers and texts are known"
            )

    def skip_tensor_info(self) -> None:
        self.skip_text()
        dimensions = self.number("<I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise ValueError(
                f"it holds a tensor of {dimensions} dimensions; at most {MOST_DIMENSIONS} are known"
            )
        self.skip(8 * dimensions + 4 + 8)  # sizes, type, offset
