"""Read and write JSON objects on disk: errors in one line, a fixed layout.

What keys a file has, and what they mean, is up to whoever reads it.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeq.errors import BadInput, EdgeqError, reason_of
from edgeq.files.ownership import HEAD_FILE
from edgeq.files.plain_files import read_file, what_to_do
from edgeq.files.storage import write_bytes

NOT_A_CHECKPOINT = f"a quantized checkpoint is a directory with {HEAD_FILE}"
MAKE_AGAIN = "make the directory again"
DEEPEST = 64  # levels: files of models have a handful, and copies of very deep ones fail
STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
BRACKETS = re.compile(r"[\[\]{}]")


def read_json(
    path: Path, *, missing: str = NOT_A_CHECKPOINT, mend: str = MAKE_AGAIN
) -> dict[str, Any]:
    """Read a JSON object, and say in one line what is wrong where there is none.

    `missing` says what a directory without the file lacks, `mend` what to do about a damaged one.

    Raises: BadInput when the file is missing, cannot be read or holds something else.
    """
    try:
        content = parse_json(read_file(path).decode("utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{str(path)!r}: no such file; {missing}") from error
    except OSError as error:
        raise BadInput(
            f"{str(path)!r} cannot be read ({reason_of(error)}); {what_to_do(error)}"
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


def parse_json(text: str) -> Any:
    """Read JSON as its standard has it, and only what can be written again.

    Of a key that stands twice the last one counts.

    Raises: ValueError for NaN and Infinity, half a surrogate pair, and nesting that no file needs.
    """
    if max(text.count("["), text.count("{")) > DEEPEST and depth_of(text) > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    content = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    if "\\u" in text:
        try:
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"{error.object[error.start]!a}"
            raise ValueError(f"{half} is half of a surrogate pair, and no character") from None
    return content


def depth_of(text: str) -> int:
    """Count how deep objects and lists of a JSON text lie in one another.

    Brackets inside of strings do not count.
    """
    depth = deepest = 0
    for bracket in BRACKETS.findall(STRINGS.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _finite(stated: str) -> float:
    number = float(stated)
    if math.isinf(number):
        raise ValueError(f"{stated:.40} is larger than any float")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def json_bytes(content: Any, *, indent: int = 2) -> bytes:
    """Lay JSON out as edgeq does everywhere, so that equal content gives equal bytes.

    Raises: EdgeqError for NaN and infinity, which JSON has not, and what is no text.
    """
    try:
        text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
        return (text + "\n").encode("utf-8")
    except ValueError as error:  # also of an encoding
        raise EdgeqError(
            f"what was found cannot be written as JSON ({reason_of(error)}); please report it"
        ) from error


def finite(value: Any) -> Any:
    """Return the same data with null for infinity and NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Any, *, indent: int = 2) -> None:
    """Write a JSON file under a temporary name, flush it, and give it its name."""
    write_bytes(path, json_bytes(content, indent=indent))
