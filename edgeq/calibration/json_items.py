"""Read JSON values one after the other from text that comes in pieces.

Only what belongs to one value is held at a time.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

LONGEST_VALUE = 16 * 2**20  # characters; each piece that is read on parses the value again
LONGEST_SIGN = 16  # characters: what is cut may fail this much before its end, such as an escape
SPACE = re.compile(r"\s*")
DECODER = json.JSONDecoder()


class BadJson(ValueError):
    """Text that is no JSON, with the reason; the place is that of the reader."""


class JsonReader:
    """Reads values from pieces of text, none of which is empty.

    line is the one it stands in, begun the one in which the last value began.
    """

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = iter(pieces)
        self._held = ""
        self._at = 0
        self.line = 1
        self.begun = 1

    def peek(self) -> str:
        """Skip space, and give the character behind it; empty at the end."""
        while True:
            found = SPACE.match(self._held, self._at)
            assert found is not None
            self._move(found.end())
            if self._at < len(self._held):
                return self._held[self._at]
            if not self._read_on():
                return ""

    def take(self) -> None:
        """Step over the character that `peek` gave."""
        self._move(self._at + 1)

    def value(self) -> Any:
        """Read the value that begins here.

        Raises: BadJson.
        """
        self.begun = self.line
        while True:
            try:
                value, end = DECODER.raw_decode(self._held, self._at)
            except RecursionError as error:
                raise BadJson("too deeply nested") from error
            except json.JSONDecodeError as error:
                if not self._may_go_on(error):
                    raise BadJson(error.msg) from error
            except ValueError as error:  # thousands of digits
                raise BadJson("a number of too many digits") from error
            else:
                self._move(end)
                return value

    def values(self) -> Iterator[Any]:
        """Read values that follow one another, as JSON lines do.

        Raises: BadJson.
        """
        while self.peek():
            yield self.value()

    def array(self) -> Iterator[Any]:
        """Read the values of the array that begins here and is alone in the text.

        Raises: BadJson.
        """
        self.take()
        following = self.peek()
        while following != "]":
            self.peek()
            yield self.value()
            following = self.peek()
            if following not in {",", "]"}:
                raise BadJson("',' or ']' is missing behind it")
            if following == ",":
                self.take()
        self.take()
        if self.peek():
            raise BadJson("text follows the end of the array")

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """Read on where a value may only be cut; False where it is wrong or the text ends.

        Raises: BadJson.
        """
        length = len(self._held) - self._at
        cut = error.msg.startswith("Unterminated") or error.pos >= len(self._held) - LONGEST_SIGN
        if cut and length >= LONGEST_VALUE:
            raise BadJson(f"longer than {LONGEST_VALUE} characters; split it into several")
        return cut and self._read_on(length)

    def _read_on(self, count: int = 1) -> bool:
        """Hold at least so many characters more, and drop what was read; False at the end."""
        pieces = [self._held[self._at :]]
        while count > 0 and (piece := next(self._pieces, "")):
            pieces.append(piece)
            count -= len(piece)
        self._held = "".join(pieces)
        self._at = 0
        return len(pieces) > 1

    def _move(self, place: int) -> None:
        self.line += self._held.count("\n", self._at, place)
        self._at = place
