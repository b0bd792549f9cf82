"""Read the JSON files that lie beside the weights of a model."""

import json
import math
from collections.abc import Mapping
from typing import Any

from edgeq.errors import BadInput, reason_of


def json_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Read one of a model's files as a JSON object; one that the model lacks is empty.

    Raises: BadInput for anything else, and for what no file of JSON can hold: NaN and Infinity,
    halves of surrogate pairs.
    """
    try:
        content = json.loads(
            files.get(name, b"{}"), parse_constant=_refuse_constant, parse_float=_finite
        )
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


def _finite(stated: str) -> float:
    number = float(stated)
    if math.isinf(number):
        raise ValueError(f"{stated:.40} is larger than any float")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")
