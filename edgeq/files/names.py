"""Make names of files out of names that people gave, so that any system and any tool takes them."""

import re
import unicodedata

from edgeq.words import as_text

MOST_BYTES = 100  # of 255 that a file may have: a type, a suffix and the like come behind
OTHERS = re.compile(r"[^\w.-]+")
GGUF_FILE = re.compile(r"\w[\w.-]*\.gguf")
"""What an exported GGUF file may be called."""


def safe_name(name: str, *, otherwise: str = "model") -> str:
    """Write a name with letters, digits, dots, dashes and underscores alone.

    All else becomes a dash, and nothing stands at its ends that hides a file or looks like an
    option. `otherwise` is what a name is called of which nothing is left.
    """
    plain = OTHERS.sub("-", unicodedata.normalize("NFC", as_text(name))).strip("-._")
    short = plain.encode()[:MOST_BYTES].decode(errors="ignore").strip("-._")
    return short or otherwise


def gguf_name(name: str, kind: str) -> str:
    """Name the GGUF file of a model as users look for it: NAME-TYPE.gguf."""
    return f"{safe_name(name)}-{safe_name(kind, otherwise='mixed')}.gguf"
