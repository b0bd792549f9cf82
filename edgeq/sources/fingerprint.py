"""Hash a model's weights cheaply: sizes, first and last bytes, and samples between them."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgeq.files.plain_files import open_file

# 6 MiB in all are read of a file, however large it is: 1 MiB at each end, 4 MiB between them
EDGE_BYTES = 1 << 20
SAMPLE_BYTES = 1 << 16
SAMPLES = 64


def hash_model(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], files: Iterable[Path]
) -> str:
    """Hash a config, the names and shapes of tensors, and a sample of each file.

    Moving the files keeps the hash.
    """
    digest = hashlib.sha256(json.dumps([config, shapes], sort_keys=True).encode())
    for file in files:
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with open_file(file) as stream:
            for start, count in sampled_ranges(size):
                stream.seek(start)
                digest.update(stream.read(count))
    return digest.hexdigest()


def sampled_ranges(size: int) -> list[tuple[int, int]]:
    """Choose start and length of what is hashed of a file.

    These are both ends, and evenly spaced samples between them.
    """
    if size <= 2 * EDGE_BYTES + SAMPLES * SAMPLE_BYTES:
        return [(0, size)]
    step = (size - 2 * EDGE_BYTES) // SAMPLES
    samples = [(EDGE_BYTES + index * step, SAMPLE_BYTES) for index in range(SAMPLES)]
    return [(0, EDGE_BYTES), *samples, (size - EDGE_BYTES, EDGE_BYTES)]
