"""Check numbers that were read from the files of a run."""

import sys
from collections.abc import Mapping
from typing import Any


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_numbers(values: Mapping[str, Any]) -> None:
    """Refuse what is no finite number of a float. Raises: ValueError naming it."""
    for name, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not abs(value) <= sys.float_info.max:  # also where it is NaN
            raise ValueError(f"{name} is {value!r:.40} and no number")
