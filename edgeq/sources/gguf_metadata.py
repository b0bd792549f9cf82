"""Read single values of a GGUF's metadata, each with the rule that it must follow."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeq.architectures.config_checks import positive_integer
from edgeq.errors import BadInput, UnsupportedModel

Metadata = Mapping[str, Any]


def size(metadata: Metadata, key: str) -> int:
    """Read a positive whole number; of a list by block, the one that all blocks share.

    Raises: BadInput for other values; UnsupportedModel where blocks differ.
    """
    value = metadata.get(key)
    if not isinstance(value, list) or not value:
        return positive_integer(metadata, key)
    if any(each != value[0] for each in value):
        raise UnsupportedModel(
            f"the GGUF has {key} {value!r:.60}, other sizes by block, which is not supported; "
            "give a model whose blocks are alike"
        )
    return positive_integer({key: value[0]}, key)


def decimal(metadata: Metadata, key: str) -> float:
    """Read a float32 number as the shortest decimal that means it.

    That is 1e-05, not 9.999999747378752e-06.

    Raises: BadInput.
    """
    value = metadata.get(key)
    if not isinstance(value, float) or not 0 < value < float("inf"):
        raise BadInput(f"the GGUF's {key} is {value!r}; it must be a positive number")
    return float(str(np.float32(value)))


def decimal_or_nothing(metadata: Metadata, key: str) -> float | None:
    """Read a float32 number that llama.cpp takes for not stated where it is 0.

    Raises: BadInput.
    """
    return None if metadata.get(key) == 0 else decimal(metadata, key)


def size_or_nothing(metadata: Metadata, key: str) -> int | None:
    """Read a whole number that llama.cpp takes for not stated where it is 0.

    Raises: BadInput.
    """
    return None if metadata.get(key) == 0 else size(metadata, key)


def flag(metadata: Metadata, key: str) -> bool:
    """Read true or false.

    Raises: BadInput.
    """
    value = metadata.get(key)
    if not isinstance(value, bool):
        raise BadInput(f"the GGUF's {key} is {value!r:.60}; it must be true or false")
    return value
