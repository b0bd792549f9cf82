"""Check how generation_config.json says that tokens are chosen, which exports hand on."""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures.config_checks import COUNT, FLAG, POSITIVE, SIZE, Rule
from edgeq.architectures.rope import LARGEST
from edgeq.errors import BadInput

Json = Mapping[str, Any]


def check_choices(generation: Json, file: str) -> None:
    """Refuse settings of how tokens are chosen that no runtime can follow.

    Raises: BadInput naming the key.
    """
    for key, (rule, holds) in CHOICES.items():
        if generation.get(key) is not None and not holds(generation[key]):
            raise BadInput(f"{file}: {key} is {generation[key]!r:.60}; it must be {rule}")


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= LARGEST


def _is_share(value: Any) -> bool:
    return _is_number(value) and value <= 1


CHOICES: Mapping[str, Rule] = {
    "do_sample": FLAG,
    "temperature": ("a number of 0 or more that float32 holds", _is_number),
    "top_k": COUNT,
    "top_p": ("a number from 0 to 1", _is_share),
    "repetition_penalty": POSITIVE,
    "max_new_tokens": SIZE,
}
