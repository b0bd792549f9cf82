"""Choose the texts that models are measured on, and cut the windows that all of them read.

Texts of several kinds ship with edgeq; a file is named by its path.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeq.calibration.long_windows import first_tokens
from edgeq.calibration.reading import LongText, open_text, read_text
from edgeq.calibration.variety import check_variety
from edgeq.calibration.windows import (
    begin_ids,
    check_ids,
    check_length,
    first_windows,
    load_tokenizer,
    tokenize,
)
from edgeq.errors import BadInput
from edgeq.measuring.text_kinds import ALL_KINDS, DEFAULT_KIND, KINDS
from edgeq.protocols import TextModel
from edgeq.types import NumpyArray

EVALUATION_TEXT = KINDS[DEFAULT_KIND]
SEQUENCE_LENGTH = 512  # tokens per window, unless a model reads fewer
SHORTEST = 8  # tokens: of shorter windows most predictions would have next to no context
WINDOWS = 16  # of each text, a short measurement; more windows make it steadier


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows that models are measured on, and the text that each comes from.

    Shapes: ids (windows, tokens); texts one name per window.
    """

    ids: NumpyArray
    texts: tuple[str, ...]


def chosen_texts(asked: str | Sequence[str] | None) -> list[str]:
    """List texts by the names that were asked for, each once; none stands for the default.

    Raises: BadInput for a name that is neither a kind that ships with edgeq nor a file.
    """
    names = [asked] if isinstance(asked, str) else list(asked or [DEFAULT_KIND])
    found = dict.fromkeys(
        kind for name in names for kind in (KINDS if name == ALL_KINDS else [name])
    )
    for name in found:
        if name not in KINDS and not Path(name).expanduser().exists() and Path(name).name == name:
            kinds = ", ".join((*KINDS, ALL_KINDS))
            raise BadInput(
                f"text {name!r}: no such file, and no kind of text that ships with edgeq; "
                f"give a file or one of {kinds}"
            )
    return list(found)


def cut_windows(
    models: Sequence[TextModel],
    texts: Sequence[str],
    *,
    windows: int = WINDOWS,
    sequence_length: int | None = None,
) -> Windows:
    """Cut the windows that all models are evaluated on, in tokens of the first one.

    They are as long as all models read, unless told otherwise. windows is how many of each text.

    Raises: BadInput when a text is too short or a model cannot read such windows.
    """
    length = length_of_windows(models, sequence_length)
    begin = begin_ids(models[0])
    cut = []
    for text in texts:
        tokens = evaluation_tokens(models[0], text, windows * length)
        check_ids(models[0], tokens)
        for model in models[1:]:
            check_vocabularies(model, models[0], int(tokens.max(initial=0)))
        found = first_windows(tokens, windows=windows, sequence_length=length, begin=begin)
        try:
            check_variety(models[0], load_tokenizer(models[0]), found)
        except BadInput as error:
            raise BadInput(f"evaluation text: {error}") from error
        cut.append(found)
    names = tuple(name for name, found in zip(texts, cut, strict=True) for _ in found)
    return Windows(np.concatenate(cut), names)


def check_vocabularies(model: TextModel, first: TextModel, largest: int) -> None:
    """Refuse to measure a model on tokens of another one that it has no row for.

    Raises: BadInput.
    """
    rows = model.record.vocabulary
    if rows is not None and largest >= rows:
        raise BadInput(
            f"{model.record.name!r} knows {rows} tokens and {first.record.name!r} has token "
            f"{largest}: they have other tokenizers; compare models of one tokenizer"
        )


def length_of_windows(models: Sequence[TextModel], sequence_length: int | None) -> int:
    """Find how long windows are: as long as all models read, unless told otherwise.

    Raises: BadInput when a model cannot read such windows.
    """
    contexts = [model.record.context for model in models]
    longest = min([SEQUENCE_LENGTH, *(size for size in contexts if size is not None)])
    length = sequence_length or longest
    if length < SHORTEST:
        raise BadInput(
            f"the model reads at most {length} tokens; "
            f"evaluation needs windows of {SHORTEST} or more"
        )
    for model in models:
        check_length(model, length)
    return length


def evaluation_tokens(model: TextModel, text: str, count: int) -> NumpyArray:
    """Tokenize a text for evaluation; of a long one only as much as gives so many tokens."""
    content: str | LongText
    if text in KINDS:
        content = read_text(None, default=KINDS[text])
    else:
        content = open_text(text, model)
    if isinstance(content, LongText):
        return first_tokens(model, content, count)
    return tokenize(model, content)
