"""Write text of somebody else's where people see it: names hold whatever their makers put there.

Control characters steer a terminal, marks of direction make it show another name, and not every
console can encode every letter. This module imports nothing heavy: failures are written with it.
"""

import sys
import unicodedata
from io import TextIOWrapper

UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Categories of Unicode: control, format, surrogate, line and paragraph separator."""

IN_TEXT = "\t\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
"""Characters of these that text needs: letters of Persian and Hindi, and faces, are joined so."""


def visible(text: str) -> str:
    r"""Write characters that a terminal obeys as Python does, such as \x1b; line ends stay."""
    return "".join(map(_visible, text))


def visible_text(text: str) -> str:
    r"""Do as `visible` does for running text, where tabs and joiners of letters stay."""
    return "".join(each if each in IN_TEXT else _visible(each) for each in text)


def visible_line(text: str) -> str:
    r"""Do as `visible` does, and write line ends as \n too."""
    return visible(text).replace("\n", "\\n")


def _visible(character: str) -> str:
    seen = character == "\n" or unicodedata.category(character) not in UNSEEN
    return character if seen else repr(character)[1:-1]


def write_what_can_be_encoded() -> None:
    r"""Let standard output and error write \u6a21 for a letter that their encoding does not have.

    Without it a command would fail when all is done, at printing where the result lies.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
