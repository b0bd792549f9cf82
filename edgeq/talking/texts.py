"""Text of models whose tokenizer is tokenizer.json: sources, and directories of other libraries.

Both go by all files beside the weights, as `edgeq.architectures` reads them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.architectures.chat_template import read_template
from edgeq.architectures.families import with_common_keys
from edgeq.architectures.special_tokens import read_tokens
from edgeq.architectures.tokenizer_file import unite
from edgeq.architectures.tokenizer_library import tamed
from edgeq.calibration.windows import begin_ids, encode, load_tokenizer
from edgeq.decoder import TokenIds
from edgeq.errors import BadInput, reason_of
from edgeq.files.ownership import COMPANION_FILES
from edgeq.files.plain_files import read_file, what_to_do
from edgeq.measuring.targets import is_size, stated_sizes
from edgeq.protocols import ModelDescription, TextModel

ANY_VOCABULARY = 2**31  # rows, where a config states none


@dataclass(frozen=True, slots=True)
class Described:
    """What a directory says of its model, beside the weights."""

    name: str
    vocabulary: int | None
    context: int | None
    template: str | None
    tokens: TokenIds


class DirectoryModel:
    """The directory of a model that another library runs, as far as its texts go.

    Raises: BadInput for damaged files.
    """

    def __init__(self, path: Path) -> None:
        config = dict(stated_sizes(path))
        text_part = config.get("text_config")
        config = {**config, **text_part} if isinstance(text_part, dict) else config
        stated = with_common_keys(config)
        sizes = [stated.get(key) for key in ("vocab_size", "max_position_embeddings")]
        vocabulary, context = (size if is_size(size) else None for size in sizes)
        self._files, tokenizer, _ = unite(companions_in(path), vocabulary or ANY_VOCABULARY)
        id_of = (lambda token: None) if tokenizer is None else tokenizer.token_to_id
        tokens = read_tokens(config, self._files, id_of)
        template = read_template(self._files)
        self.record = Described(path.name, vocabulary, context, template, tokens)

    def companions(self) -> Mapping[str, bytes]:
        return self._files


def companions_in(folder: Path) -> dict[str, bytes]:
    """Read the files beside the weights that belong to a model.

    Raises: BadInput.
    """
    found = {}
    for name in COMPANION_FILES:
        if (folder / name).exists():
            try:
                found[name] = read_file(folder / name)
            except OSError as error:
                raise BadInput(
                    f"{str(folder / name)!r} cannot be read ({reason_of(error)}); "
                    f"{what_to_do(error)}"
                ) from error
    return found


class TokenizerTexts:
    """Text of a model by its tokenizer.json; see `edgeq.talking.speakers.Texts`.

    Raises: BadInput for a model without one.
    """

    def __init__(self, model: ModelDescription | DirectoryModel) -> None:
        self._model: TextModel = model
        self._tokenizer: Any = load_tokenizer(model)
        self._first = begin_ids(model)
        self._ends = frozenset(model.record.tokens.end)
        self.name, self.template = model.record.name, model.record.template
        self.vocabulary, self.context = model.record.vocabulary, model.record.context

    def is_end(self, token: int) -> bool:
        """Say whether a token ends a text or a turn."""
        return token in self._ends

    def encode(self, text: str, *, begin: bool) -> list[int]:
        """Turn a text into tokens; begin puts those before it that the tokenizer begins with.

        Raises: BadInput.
        """
        found = encode(self._model, self._tokenizer, text).ids
        return [*(self._first if begin else ()), *found]

    def decode(self, ids: Sequence[int]) -> str:
        """Turn tokens into text without special ones; half a character becomes U+FFFD.

        Raises: BadInput.
        """
        try:
            with tamed():
                return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
        except ValueError as error:
            raise BadInput(
                f"model {self.name!r}: its tokenizer fails on tokens ({reason_of(error)}); "
                "fetch tokenizer.json again"
            ) from error

    def companions(self) -> Mapping[str, bytes]:
        """Give the model's files, for its template."""
        return self._model.companions()
