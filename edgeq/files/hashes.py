"""Hash files with SHA-256, to tell a damaged file from one that is as it was written.

What is hashed, and where the hashes are kept, is up to those who write files.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from edgeq.files.plain_files import open_file

CHUNK_BYTES = 1 << 22  # 4 MiB: reading takes the time then, not the loop


def hash_of_file(path: Path) -> str:
    """Hash a file of any size, a chunk at a time."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def hash_files(folder: Path, *, but: Collection[str]) -> dict[str, str]:
    """Hash every file below a folder, by its path in it, but for those that `but` names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: hash_of_file(path) for name, path in named.items() if name not in but}


def hash_of_content(content: Mapping[str, Any]) -> str:
    """Hash plain data by SHA-256, equally before it is written and after it was read."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
