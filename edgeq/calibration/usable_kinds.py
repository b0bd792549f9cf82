"""Find the kinds of the mix that a model can be calibrated on, where no text was named.

A text that was named is refused where the model cannot use it; of the default such kinds are left
out. They are tried on a few pieces, so that a plan knows it too and the run need not find out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from edgeq.calibration.chat import BadChat
from edgeq.calibration.shipped import DEFAULT, KINDS, read_kind
from edgeq.calibration.variety import check_variety, unknown_ids
from edgeq.calibration.windows import check_ids, encode, load_tokenizer, tokenize
from edgeq.errors import BadInput
from edgeq.protocols import TextModel

PIECES = 8
PIECE = 512
"""Characters of a piece: with the others about a thousand tokens, from all over a text."""
MOST_CHARACTERS = 16
"""Of a token on average, in any of the kinds: a text of more is long enough unseen."""


@dataclass(frozen=True, slots=True)
class Usable:
    """What the default has for a model: texts by kind, and why other kinds are left out."""

    contents: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def read_usable(kinds: Sequence[str], model: TextModel | None, fewest_tokens: int) -> Usable:
    """Read kinds of the mix that a model can be calibrated on: those that give so many tokens.

    All of them where there is no tokenizer to try them on, which a plan can do without.

    Raises: BadInput where that leaves nothing of the mix, and for a damaged tokenizer.
    """
    has_tokenizer = model is not None and "tokenizer.json" in model.companions()
    tokenizer = load_tokenizer(model) if model is not None and has_tokenizer else None
    fails = model is not None and tokenizer is not None and may_fail(model, tokenizer)
    found = Usable()
    for kind in kinds:
        try:
            content = read_kind(kind, model)
            if model is not None and tokenizer is not None:
                check_usable(model, tokenizer, content, fewest_tokens, whole=fails)
        except (BadChat, BadInput) as error:
            found.left_out[kind] = str(error)
        else:
            found.contents[kind] = content
    if not found.contents and len(kinds) == len(KINDS):
        kind, reason = next(iter(found.left_out.items()))
        raise BadInput(
            f"--calibration {DEFAULT}: the model can use none of its {len(kinds)} kinds of text, "
            f"such as {kind!r}: {reason}"
        )
    return found


def may_fail(model: TextModel, tokenizer: Tokenizer) -> bool:
    """Say whether a tokenizer that writes pieces of a text may still fail on all of it.

    It does on what is unknown where it has no token for that, and on a token that the model's
    embedding has no row for.
    """
    kind, rows = type(tokenizer.model).__name__, model.record.vocabulary
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    is_beyond = rows is not None and largest >= rows
    return is_beyond or (kind != "BPE" and not unknown_ids(model, tokenizer))


def check_usable(
    model: TextModel, tokenizer: Tokenizer, content: str, fewest_tokens: int, *, whole: bool
) -> None:
    """Refuse a text that a tokenizer cannot write, or that gives too few tokens.

    whole has all of it written, and not only pieces.

    Raises: BadInput.
    """
    starts = range(0, len(content), max(PIECE, len(content) // PIECES))
    pieces = (content[start : start + PIECE] for start in starts)
    ids = [encode(model, tokenizer, piece).ids for piece in pieces]
    tokens = np.concatenate([np.asarray(each, np.int64) for each in ids])
    check_ids(model, tokens)
    check_variety(model, tokenizer, tokens[None])
    if not whole and len(content) >= MOST_CHARACTERS * fewest_tokens:
        return
    count = len(tokenize(model, content, tokenizer))
    if count < fewest_tokens:
        raise BadInput(
            f"its {count} tokens are too few for the sequences; "
            "give more text, or choose smaller --samples or --sequence-length"
        )
