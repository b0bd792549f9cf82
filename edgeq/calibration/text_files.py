"""Read a text file as a stream of characters, and find out what it holds.

What is no UTF-8 text is refused here; items of JSON become text in `edgeq.calibration.reading`.
"""

import codecs
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from edgeq.calibration.chat import is_chat
from edgeq.calibration.json_items import BadJson, JsonReader
from edgeq.errors import BadInput, reason_of

Kind = Literal["text", "lines", "array"]
"""Text as it is, JSON values one after the other, or an array of JSON."""

CHUNK = 2**18  # bytes that are read at once
WANTED = 'give a UTF-8 text file, or JSON lines or a JSON array with "text" or "messages"'
LINES = {".jsonl", ".ndjson"}
TABLES = {".csv": "CSV", ".tsv": "CSV"}
"""Suffixes of tables that are text as well, so that their first bytes do not tell."""
OTHERS = {
    b"\x1f\x8b": "compressed (gzip)",
    b"BZh": "compressed (bzip2)",
    b"\xfd7zXZ\0": "compressed (xz)",
    b"\x28\xb5\x2f\xfd": "compressed (Zstandard)",
    b"\x04\x22\x4d\x18": "compressed (LZ4)",
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"PAR1": "a Parquet table",
    b"ARROW1": "an Arrow table",
    b"Obj\x01": "an Avro table",
    b"\x89HDF": "an HDF5 file",
    b"SQLite format 3\0": "a SQLite database",
    b"%PDF-": "a PDF",
    b"{\\rtf": "a text with formatting (RTF)",
    b"\xd0\xcf\x11\xe0": "an Office document",
    b"GGUF": "a model (GGUF)",
    b"version https://git-lfs.github.com": "a pointer of Git LFS (git lfs pull fetches the file)",
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""First bytes of files that are no UTF-8 text -> what they are; longer ones before their starts."""
CONTROLS = bytes({*range(1, 32), 127} - set(b"\a\b\t\n\v\f\r\x1b"))
LARGEST_CONTROL_SHARE = 0.1  # of the bytes; text has next to none


@dataclass(frozen=True, slots=True)
class TextFile:
    """A text file that can be read more than once, and what it was when it was first opened."""

    path: str
    kind: Kind
    size: int
    changed: int

    @classmethod
    def find(cls, path: str) -> "TextFile":
        """Open a file, and find out what it holds.

        Raises: BadInput for what is no text file.
        """
        with open_file(path) as file:
            status = os.fstat(file.fileno())
            refuse_others(path, file.read(64))
            file.seek(0)
            kind = kind_of(path, read_characters(path, file))
        return cls(path, kind, status.st_size, status.st_mtime_ns)

    def characters(self) -> Iterator[str]:
        """Read all characters, in pieces that are not empty.

        Raises: BadInput, also for a file that was changed since it was first opened.
        """
        with open_file(self.path) as file:
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != (self.size, self.changed):
                raise BadInput(
                    f"text {self.path!r} was changed while it was read; run the command again"
                )
            yield from read_characters(self.path, file)


def open_file(path: str) -> BinaryIO:
    """Open a regular file; a pipe without a writer would hold a plain `open` up for ever.

    Raises: BadInput.
    """
    try:
        file = open(path, "rb", opener=_open_at_once)
    except (OSError, ValueError) as error:
        found = "it is a directory" if os.path.isdir(path) else reason_of(error).lower()
        raise BadInput(f"text {path!r}: {found}; {WANTED}") from error
    mode = os.fstat(file.fileno()).st_mode
    if stat.S_ISREG(mode):
        return file
    file.close()
    kind = "a pipe" if stat.S_ISFIFO(mode) else "a device"
    raise BadInput(f"text {path!r}: it is {kind}, which cannot be read twice; write it to a file")


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def refuse_others(path: str, start: bytes) -> None:
    """Refuse a file that is no text, by its first bytes or the name of a table.

    Raises: BadInput.
    """
    found = next((kind for known, kind in OTHERS.items() if start.startswith(known)), None)
    found = found or TABLES.get(Path(path).suffix.lower())
    if found in {"UTF-16", "UTF-32"}:
        raise BadInput(f"text {path!r}: it is {found}; convert it to UTF-8 text")
    if found is not None:
        raise BadInput(f"text {path!r}: it is {found}; {WANTED}")


def read_characters(path: str, file: BinaryIO) -> Iterator[str]:
    """Decode UTF-8 piece by piece; every end of a line becomes a line feed.

    Raises: BadInput with the place of what is no UTF-8, or no text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    place = len(codecs.BOM_UTF8)
    if file.read(place) != codecs.BOM_UTF8:
        file.seek(0)
        place = 0
    first = place
    controls = 0
    chunk = b" "
    while chunk:
        try:
            chunk = file.read(CHUNK)
        except OSError as error:
            raise BadInput(f"text {path!r} cannot be read: {reason_of(error).lower()}") from error
        zero = chunk.find(b"\0")
        if zero >= 0:
            raise BadInput(
                f"text {path!r}: a zero byte at byte {place + zero}, which no text has; "
                "convert it to UTF-8 text"
            )
        pending = len(decoder.getstate()[0])
        try:
            characters = line_ends.decode(decoder.decode(chunk, final=not chunk), final=not chunk)
        except UnicodeDecodeError as error:
            at = place - pending + error.start
            raise BadInput(
                f"text {path!r}: not UTF-8 at byte {at}; convert it to UTF-8 text"
            ) from error
        place += len(chunk)
        controls += len(chunk) - len(chunk.translate(None, CONTROLS))
        if characters:
            yield characters
    if controls > LARGEST_CONTROL_SHARE * (place - first):
        raise BadInput(
            f"text {path!r}: {controls} of its {place - first} bytes are control characters, "
            f"so it is no text; {WANTED}"
        )


def kind_of(path: str, pieces: Iterator[str]) -> Kind:
    """Find out what a file holds, by its beginning; its suffix decides where that could be either.

    JSON under the name of a text is JSON when its first item is whole and another may follow.

    Raises: BadInput for a .json file that is none.
    """
    suffix = Path(path).suffix.lower()
    reader = JsonReader(pieces)
    opening = reader.peek()
    if suffix in LINES:
        return "array" if opening == "[" and begins_array(reader, of=dict) else "lines"
    if suffix == ".json":
        if opening not in {"", "[", "{"}:
            raise BadInput(
                f"text {path!r}: neither a JSON array nor JSON lines; give it the suffix .txt "
                "where it is plain text"
            )
        return "array" if opening == "[" else "lines"
    if opening == "[" and begins_array(reader):
        return "array"
    return "lines" if opening == "{" and begins_lines(reader) else "text"


def begins_array(reader: JsonReader, of: type | tuple[type, ...] = (dict, str)) -> bool:
    """Say whether an array of objects or strings begins here."""
    try:
        reader.take()
        reader.peek()
        first = reader.value()
    except BadJson:
        return False
    following = reader.peek()
    return isinstance(first, of) and (
        following == "," or (following == "]" and isinstance(first, dict))
    )


def begins_lines(reader: JsonReader) -> bool:
    """Say whether objects begin here that follow one another, or one that is an item alone."""
    try:
        first = reader.value()
        following = reader.peek()
        if is_item(first) and following in {"", "{"}:
            return True
        return following == "{" and isinstance(reader.value(), dict)
    except BadJson:
        return False


def is_item(value: object) -> bool:
    """Say whether a JSON value is an object with text or messages."""
    return isinstance(value, dict) and (isinstance(value.get("text"), str) or is_chat(value))
