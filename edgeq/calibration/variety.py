"""Refuse windows that no model can be calibrated on: one token over and over, and the like."""

import re

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edgeq.errors import BadInput
from edgeq.protocols import TextModel

FEWEST_DIFFERENT = 8  # tokens in windows of 32 and more; text has hundreds, a byte at a time too
MOST_SPECIAL = 0.75  # of the tokens; conversations of single words reach half
MOST_UNKNOWN = 0.4  # of the tokens; where each word is unknown, spaces are the other half
RUN = 8  # tokens: text hardly repeats so many
FEWEST_RUNS = 0.25  # of all runs that are different; less is worth a note
SHOWN = 3  # tokens that a refusal names
UNKNOWN_ID = re.compile(rb'"unk_id"\s*:\s*(\d+)')

Windows = npt.NDArray[np.int64]


def check_variety(source: TextModel, tokenizer: Tokenizer, windows: Windows) -> None:
    """Refuse windows of very few different tokens, and those of mostly special or unknown ones.

    Shapes: windows (count, tokens).
    Raises: BadInput with what was found.
    """
    ids, counts = np.unique(windows, return_counts=True)
    most_common = ids[np.argsort(-counts, kind="stable")].tolist()

    def check_share(kind: str, tokens: list[int], most: float) -> None:
        share = float(counts[np.isin(ids, tokens)].sum() / max(1, windows.size))
        if share > most:
            raise BadInput(
                f"{share:.0%} of the tokens in its sequences are {kind} "
                f"({_name(tokenizer, tokens)}); give text that this model is made for"
            )

    unknown = [token for token in most_common if token in unknown_ids(source, tokenizer)]
    check_share("unknown to the tokenizer", unknown, MOST_UNKNOWN)
    if len(ids) < min(FEWEST_DIFFERENT, max(2, windows.size // 4)):
        found = _name(tokenizer, most_common)
        what = "one token over and over" if len(ids) == 1 else f"only {len(ids)} different tokens"
        raise BadInput(f"its sequences hold {what} ({found}); give text that varies")
    added = tokenizer.get_added_tokens_decoder()
    special = [token for token in most_common if token in added and added[token].special]
    check_share("special ones", special, MOST_SPECIAL)


def unknown_ids(source: TextModel, tokenizer: Tokenizer) -> set[int]:
    """Find the id that a tokenizer gives for what it does not know; empty where it knows all."""
    name = getattr(tokenizer.model, "unk_token", None)
    found = None if name is None else tokenizer.token_to_id(name)
    if found is None and type(tokenizer.model).__name__ == "Unigram":
        stated = UNKNOWN_ID.search(source.companions()["tokenizer.json"])
        found = None if stated is None else int(stated[1])
    return set() if found is None else {found}


def count_runs(windows: Windows) -> tuple[int, int]:
    """Count the different runs of RUN tokens in windows, and all of them.

    Shapes: windows (count, tokens), RUN tokens or more.
    """
    # odd numbers at random: two different runs have the same sum about once in 2^63
    factors = 2 * np.random.default_rng(0).integers(0, 2**63, RUN, np.uint64) + np.uint64(1)
    count = windows.shape[1] - RUN + 1
    sums = np.zeros((len(windows), count), np.uint64)
    for position, factor in enumerate(factors):
        sums += windows[:, position : position + count].astype(np.uint64) * factor
    return len(np.unique(sums)), sums.size


def repeated_runs(windows: Windows) -> int | None:
    """Count the different runs of tokens in windows that repeat themselves; None where few do.

    Shapes: windows (count, tokens).
    """
    different, runs = count_runs(windows)
    return different if different < FEWEST_RUNS * runs else None


def _name(tokenizer: Tokenizer, ids: list[int]) -> str:
    names = [repr(tokenizer.id_to_token(token)) for token in ids[:SHOWN]]
    return ", ".join(names) + (", ..." if len(ids) > SHOWN else "")
