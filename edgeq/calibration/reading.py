"""Read a text from a file: short ones whole, long ones as what can be read again.

Files as streams of characters are `edgeq.calibration.text_files`.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from edgeq.calibration.chat import BadChat, ChatTemplate, is_chat
from edgeq.calibration.json_items import BadJson, JsonReader
from edgeq.calibration.text_files import TextFile
from edgeq.errors import BadInput
from edgeq.protocols import TextModel

CALIBRATION_TEXT = "calibration.txt"
LONGEST_WHOLE = 3 * 2**19
"""Characters: longer texts are never held. The text that ships with edgeq, 1.5 MB, is held."""
KEPT_END = 2**18  # characters: the last window of a long text is mostly found among them
BETWEEN_TEXTS = "\n\n"  # between items of JSON with "text"; messages follow one another directly


@dataclass(frozen=True, slots=True)
class LongText:
    """A text that is too long to be held: windows are cut from it as it is read once more.

    end are its last characters. read gives all of it, in pieces that are not empty.
    """

    path: str
    characters: int
    sha256: str
    end: str
    read: Callable[[], Iterator[str]]

    def last(self, count: int) -> str:
        """Read the last so many characters."""
        if count <= len(self.end):
            return self.end[len(self.end) - count :]
        skipped = self.characters - count
        pieces = []
        for piece in self.read():
            if skipped < len(piece):
                pieces.append(piece[max(0, skipped) :])
            skipped -= len(piece)
        return "".join(pieces)


def open_text(path: str, model: TextModel | None = None) -> str | LongText:
    """Read a text file, JSON lines or a JSON array; messages become text by the model's template.

    Raises: BadInput when it cannot be read, is empty, or is no text.
    """
    file = TextFile.find(path)

    def read() -> Iterator[str]:
        return read_pieces(file, model)

    digest = hashlib.sha256()
    characters = 0
    is_empty = True
    kept: list[str] = []
    held = 0
    for piece in read():
        digest.update(piece.encode("utf-8"))
        characters += len(piece)
        is_empty = is_empty and not piece.strip()
        kept.append(piece)
        held += len(piece)
        if characters > LONGEST_WHOLE and held > 2 * KEPT_END:
            kept = ["".join(kept)[-KEPT_END:]]
            held = KEPT_END
    if is_empty:
        raise BadInput(f"text {path!r}: it is empty; give some pages of text")
    if characters <= LONGEST_WHOLE:
        return "".join(kept)
    return LongText(path, characters, digest.hexdigest(), "".join(kept)[-KEPT_END:], read)


def read_text(path: str | None, *, default: str = CALIBRATION_TEXT) -> str:
    """Read a text and hold all of it; None gives a text that ships with edgeq.

    Raises: BadInput when it cannot be read, is empty, or is no text.
    """
    if path is None:
        return (resources.files("edgeq") / "data" / default).read_text(encoding="utf-8")
    text = open_text(path)
    return text if isinstance(text, str) else "".join(text.read())


def read_pieces(file: TextFile, model: TextModel | None) -> Generator[str, None, None]:
    """Read a text in pieces that are not empty; those of JSON are its items.

    Closing it ends the process in which a chat template runs.

    Raises: BadInput with the line or item that is no text.
    """
    if file.kind == "text":
        yield from file.characters()
        return
    after_text = False
    with ChatTemplate(model) as template:
        for number, item, reader in read_items(file):
            where = f"item {number}" if file.kind == "array" else f"line {reader.begun}"
            text = text_of(item, template, f"text {file.path!r}, {where}", file.kind == "array")
            is_text = isinstance(item, str) or isinstance(item.get("text"), str)
            piece = BETWEEN_TEXTS + text if after_text and is_text else text
            after_text = is_text
            if piece:
                yield piece


def read_items(file: TextFile) -> Iterator[tuple[int, Any, JsonReader]]:
    """Read the items of a JSON file, each with its number and the reader that stands behind it.

    Raises: BadInput for what is no JSON.
    """
    reader = JsonReader(file.characters())
    reader.peek()
    items = reader.array() if file.kind == "array" else reader.values()
    number = 0
    try:
        for item in items:
            number += 1
            yield number, item, reader
    except BadJson as error:
        where = f"item {number + 1}" if file.kind == "array" else f"line {reader.line}"
        wanted = "separate items by commas" if file.kind == "array" else "one object per line"
        raise BadInput(f"text {file.path!r}, {where}: not JSON ({error}); {wanted}") from error


def text_of(item: Any, template: ChatTemplate, place: str, in_array: bool) -> str:
    """Take the text of an item of JSON.

    Raises: BadInput with the place of an item that has none.
    """
    text = item if isinstance(item, str) and in_array else None
    if isinstance(item, dict):
        text = item.get("text")
        if not isinstance(text, str) and is_chat(item):
            try:
                text = template.render(item)
            except BadChat as error:
                raise BadInput(f"{place}: {error}") from error
    if not isinstance(text, str):
        keys = ", ".join(map(repr, item)) if isinstance(item, dict) else ""
        found = f" (it has {keys[:100]})" if keys else ""
        raise BadInput(
            f'{place}: no "text" string{found}; each is an object with one, or with "messages"'
        )
    if not is_unicode(text):
        raise BadInput(
            f"{place}: half of a surrogate pair, which is no character; "
            "escape whole pairs or write UTF-8"
        )
    return text


def is_unicode(text: str) -> bool:
    """Say whether a text can be encoded: JSON's escapes also write halves of surrogate pairs."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
