"""The seams of talking: what predicts one token after the other, and what makes text of tokens.

Backends contribute speakers (`edgeq.registry.SPEAKERS`); which token is taken, where an answer
ends and how text is put together is the same for all of them, and lies beside this module.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from edgeq.protocols import TextSizes
from edgeq.types import NumpyArray


class Speaker(Protocol):
    """A model in its runtime with a cache: it holds the tokens that it has read."""

    library: str
    """What computes, with its version."""
    longest: int | None
    """How many tokens it computes as the model does, where that is fewer than the model reads."""

    def begin(self, room: int) -> None:
        """Start an empty text with room for so many tokens."""

    def cut(self, length: int) -> bool:
        """Forget all tokens but the first ones; False where only `begin` can."""

    def read(self, ids: Sequence[int]) -> NumpyArray:
        """Go on with tokens, at least one.

        Shapes: gives (vocabulary,) float32, the logits of the token behind the last.
        """

    def close(self) -> None:
        """Let go of the model."""


class Texts(TextSizes, Protocol):
    """Text of one model: its tokenizer, its template, where it ends, how much the model reads."""

    def is_end(self, token: int) -> bool:
        """Say whether a token ends a text or a turn."""

    def encode(self, text: str, *, begin: bool) -> list[int]:
        """Turn a text into tokens; begin puts those before it that the tokenizer begins with.

        Raises: BadInput.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Turn tokens into text without special ones; half a character becomes U+FFFD.

        Raises: BadInput.
        """

    def companions(self) -> Mapping[str, bytes]:
        """Give the model's files that name special tokens, for its template."""
