"""Read and write JSON objects on disk: errors in one line, a fixed layout.

What keys a file has, and what they mean, is up to whoever reads it.
"""

import json
from pathlib import Path
from typing import Any

from edgeq.errors import BadInput, reason_of
from edgeq.files.ownership import HEAD_FILE
from edgeq.files.storage import write_bytes

NOT_A_CHECKPOINT = f"a quantized checkpoint is a directory with {HEAD_FILE}"
MAKE_AGAIN = "make the directory again"


def read_json(
    path: Path, *, missing: str = NOT_A_CHECKPOINT, mend: str = MAKE_AGAIN
) -> dict[str, Any]:
    """Read a JSON object, and say in one line what is wrong where there is none.

    `missing` says what a directory without the file lacks, `mend` what to do about a damaged one.

    Raises: BadInput when the file is missing, cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{str(path)!r}: no such file; {missing}") from error
    except OSError as error:
        raise BadInput(
            f"{str(path)!r} cannot be read ({reason_of(error)}); check its permissions"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"{str(path)!r} cannot be read as JSON ({reason_of(error)}); it is damaged, {mend}"
        ) from error
    if not isinstance(content, dict):
        raise BadInput(
            f"{str(path)!r} holds a JSON {type(content).__name__} and not an object; "
            f"it is damaged, {mend}"
        )
    return content


def json_bytes(content: Any, *, indent: int = 2) -> bytes:
    """Lay JSON out as edgeq does everywhere, so that equal content gives equal bytes."""
    return (json.dumps(content, indent=indent, ensure_ascii=False) + "\n").encode("utf-8")


def write_json(path: Path, content: Any, *, indent: int = 2) -> None:
    """Write a JSON file under a temporary name, flush it, and give it its name."""
    write_bytes(path, json_bytes(content, indent=indent))
