"""Check that every target reads the tokens that windows are made of as the original does.

Models of other makers may come with another tokenizer, and then predict something else at the same
ids. Only tokens that occur in the windows are looked at, by the text that each side has for them.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tokenizers import Tokenizer

from edgeq.calibration.windows import load_tokenizer
from edgeq.errors import BadInput
from edgeq.protocols import LogitSource, TextModel
from edgeq.types import NumpyArray

TOKENIZER_FILE = "tokenizer.json"

TextOfToken = Callable[[int], str | None]


def check_same_tokens(
    ids: NumpyArray, expected: TextModel, targets: Mapping[str, tuple[TextModel, LogitSource]]
) -> list[str]:
    """Refuse a target whose tokenizer differs in a token of the windows; name those not compared.

    targets have, by name, what they bring of files and what runs them.

    Raises: BadInput with the first token that differs.
    """
    file = expected.companions().get(TOKENIZER_FILE)
    used = [int(each) for each in np.unique(ids)]
    own = load_tokenizer(expected)
    unknown = []
    for name, (model, logits) in targets.items():
        theirs = model.companions().get(TOKENIZER_FILE)
        if theirs is not None and theirs == file:
            continue
        read = text_of_tokens(model, logits)
        if read is None:
            unknown.append(name)
            continue
        differing = first_difference(used, own, read)
        if differing is not None:
            here, there = own.id_to_token(differing), read(differing)
            raise BadInput(
                f"target {name!r} has another tokenizer: token {differing} is {there!r:.40} in it "
                f"and {here!r:.40} in {expected.record.name!r}; compare models of one tokenizer"
            )
    return unknown


def text_of_tokens(model: TextModel, logits: LogitSource) -> TextOfToken | None:
    """Find what says which text a token of a target has: its runtime, else its tokenizer.json."""
    of_runtime: TextOfToken | None = getattr(logits, "token_text", None)
    if of_runtime is not None:
        return of_runtime
    if TOKENIZER_FILE not in model.companions():
        return None
    found: TextOfToken = load_tokenizer(model).id_to_token
    return found


def first_difference(used: Sequence[int], own: Tokenizer, read: TextOfToken) -> int | None:
    """Find the first token that has another text, among those that the original's names."""
    for token in used:
        text = own.id_to_token(token)
        if text is not None and read(token) != text:
            return token
    return None
