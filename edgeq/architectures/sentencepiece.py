"""Say how BPE of SentencePiece's kind writes blanks, as tokenizer.json has it and as llama.cpp.

Its words are characters and not bytes: a character without a token is written in bytes, <0xE2>, and
a blank as a sign of its own. Models of this kind are Llama 2, Mistral, Gemma, Phi-3 and TinyLlama.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgeq.architectures.word_splits import steps_of

Json = Mapping[str, Any]
Pair = tuple[str, str]

BLANK = "\u2581"  # the sign that tokens have for a blank
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
LONGEST = 512  # characters of a token; its own limit is 16 unless a user sets another
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
PREPEND = {"type": "Prepend", "prepend": BLANK}
AT_BLANKS = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
"""What Gemma's file has behind the normalizer, which leaves it no blank to split at."""


@dataclass(frozen=True, slots=True)
class Blanks:
    """Tells how blanks are written.

    prefix says whether every text begins with one more, also behind special tokens. differs names
    the text where tokenizer.json has none there, which llama.cpp cannot do.
    """

    prefix: bool
    differs: str = ""


def blanks_of(tokenizer: Json) -> Blanks | None:
    """Read how a tokenizer.json writes blanks; None for a way that llama.cpp has nothing like."""
    normalizers = steps_of(tokenizer.get("normalizer"), key="normalizers")
    steps = steps_of(tokenizer.get("pre_tokenizer"))
    if not normalizers and len(steps) == 1:
        return _of_metaspace(steps[0])
    if steps not in ([], [AT_BLANKS]):
        return None
    if normalizers == [REPLACE]:
        return Blanks(prefix=False)
    if not steps and normalizers in ([PREPEND, REPLACE], [REPLACE, PREPEND]):
        return Blanks(prefix=True)
    return None


def _of_metaspace(step: Json) -> Blanks | None:
    """Read a Metaspace, which begins no text with a blank that has one already."""
    if step.get("type") != "Metaspace" or step.get("replacement") != BLANK:
        return None
    if step.get("split", True):
        return None
    older = "always" if step.get("add_prefix_space", True) else "never"
    scheme = step.get("prepend_scheme", older)
    if scheme == "never":
        return Blanks(prefix=False)
    begin = "where text begins with a blank"
    if scheme == "first":
        begin += ", or stands behind a special token"
    return Blanks(prefix=True, differs=begin)


def written_blanks(*, prefix: bool) -> tuple[Json, Json | None]:
    """Write normalizer and pre-tokenizer of a tokenizer.json, as published files have them."""
    if prefix:
        return {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}, None
    return REPLACE, AT_BLANKS


def unlisted_pair(vocabulary: Collection[str], merges: Collection[Pair]) -> Pair | None:
    """Find two pieces that make a token of a vocabulary, and that no merge joins; None without.

    llama.cpp joins any that make a token. Pieces are characters and what merges lead to.
    """
    listed = set(merges)
    results = {left + right for left, right in listed}
    for token in vocabulary:
        for pair in cuts(token):
            if pair not in listed and all(len(part) == 1 or part in results for part in pair):
                return pair
    return None


def too_long(tokens: Collection[str]) -> str | None:
    """Find a token of more characters than SentencePiece makes; None without.

    It could be cut in too many ways.
    """
    return next((token for token in tokens if len(token) > LONGEST), None)


def cuts(token: str) -> Iterator[Pair]:
    """Cut a token in two in every way."""
    return ((token[:at], token[at:]) for at in range(1, len(token)))
