"""Kinds of rules for settings: what a value may be, in words for messages and as a test.

`edgeq.recipe.settings` says which rule each setting has. Nothing here loads NumPy, since the
options of the command line are made from the same rules and `--help` must answer at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from edgeq.errors import BadInput

DENSE_BITS = 16  # what a layer has in the source: it stays as it is
AUTOMATIC = "auto"
LONG = 100  # letters of what is expected

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rule(Generic[T]):
    """A rule for a setting of type T: what its value may be.

    text completes the sentence "expected ...". kind is how words of a command line are read: int,
    float, bool or str; words are allowed beside numbers, or all that is allowed. normal gives the
    spelling that recipes hold, hint what a message adds for a value that breaks the rule.
    """

    text: str
    holds: Callable[[Any], bool]
    kind: type[Any]
    words: tuple[str, ...] = ()
    normal: Callable[[Any], Any] = lambda value: value
    hint: Callable[[Any], str] = lambda value: ""

    def check(self, called: str, value: Any) -> None:
        """Raise BadInput where a value breaks the rule, by the name it was called."""
        if self.holds(value):
            return
        hint = self.hint(value)
        stated = f"expected {self.text}{hint}"
        if hint and len(self.text) > LONG:  # the list would hide what is meant
            stated = f"{hint.removeprefix('; ')}; expected {self.text}"
        raise BadInput(f"{called} {shown(value)}: {stated}")


def shown(value: Any) -> str:
    """Write a value for a message; Python writes no whole numbers of thousands of digits."""
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits"


def whole(
    low: int, high: int, *others: int | str, hint: Callable[[Any], str] = lambda value: ""
) -> Rule[Any]:
    """Allow whole numbers in a range, and single others or words beside them."""
    words = tuple(other for other in others if isinstance(other, str))

    def holds(value: Any) -> bool:
        if isinstance(value, int) and not isinstance(value, bool):
            return low <= value <= high or value in others
        return isinstance(value, str) and value in words

    text = f"a whole number from {low} to {high}{_or(others)}"
    return Rule(text, holds, int, words, hint=hint)


def number(low: float, high: float, *words: str, optional: bool = False) -> Rule[Any]:
    """Allow numbers in a range, words beside them, and no value where it is optional."""

    def holds(value: Any) -> bool:
        if value is None:
            return optional
        if isinstance(value, str):
            return value in words
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and low <= value <= high

    return Rule(f"a number from {low:g} to {high:g}{_or(words)}", holds, float, words)


def one_of(*choices: T) -> Rule[T]:
    """Allow some words only; mypy holds them against the type of the setting."""
    words = tuple(str(choice) for choice in choices)
    return Rule(f"one of {', '.join(words)}", lambda value: value in words, str, words)


def flag(*words: str) -> Rule[Any]:
    """Allow true and false, and words beside them."""

    def holds(value: Any) -> bool:
        return isinstance(value, bool) or (isinstance(value, str) and value in words)

    return Rule(f"true or false{_or(words)}", holds, bool, words)


def _or(others: tuple[int | str, ...]) -> str:
    return "".join(f" or {other!r}" for other in others)
