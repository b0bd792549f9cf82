"""Read the JSON files that lie beside the weights of a model."""

import json
from collections.abc import Mapping
from typing import Any

from edgeq.errors import BadInput, reason_of


def json_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Read one of a model's files as a JSON object; one that the model lacks is empty.

    Raises: BadInput for anything else, and for halves of surrogate pairs, which no file can hold.
    """
    try:
        content = json.loads(files.get(name, b"{}"))
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"'{name}' of the model is not valid JSON: {reason_of(error)}; download the model again"
        ) from error
    if not isinstance(content, dict):
        raise BadInput(
            f"'{name}' of the model holds a JSON {type(content).__name__}; it must hold an object"
        )
    return content
