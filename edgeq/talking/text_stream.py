"""Turn tokens into pieces of text as they come: none of them ends inside of a character."""

from collections.abc import Callable, Sequence

BROKEN = "\N{REPLACEMENT CHARACTER}"
LONGEST_CHARACTER = 4  # bytes of UTF-8, and so tokens at most
TAIL = 8  # tokens of a prompt, the last ones; a few may be special ones, which have no text


class TextStream:
    """Gives the text of tokens behind a prompt as soon as it is whole.

    Tokenizers write a blank before a word, or none, by what stands before it: a piece is what the
    text of the last tokens grew by. A character of several tokens comes with the last of them.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._given = ""  # the beginning of their text that was there or is given
        self._new = 0  # tokens since all text was given
        self._waiting = 0  # tokens since some text was given
        for length in range(1, min(TAIL, len(prompt)) + 1):
            if self._keep(list(prompt[-length:])):
                break

    def push(self, token: int) -> str:
        """Take the next token; gives the text that is whole by now, which may be empty."""
        self._ids.append(token)
        self._new += 1
        self._waiting += 1
        is_stuck = self._waiting >= LONGEST_CHARACTER  # on bytes that are no character
        text = self._decode(self._ids)
        if is_stuck and not text.startswith(self._given):
            self._ids, self._given = self._ids[-self._new :], ""
            text = self._decode(self._ids)
        whole = text if is_stuck else text.rstrip(BROKEN)
        piece = ""
        if len(whole) > len(self._given) and whole.startswith(self._given):
            piece, self._given = whole[len(self._given) :], whole
        if piece or text == self._given:
            self._waiting = 0
        if piece.endswith(BROKEN):
            self._ids, self._given, self._new = [], "", 0
        elif text == self._given and self._keep(self._ids[-self._new :]):
            self._new = 0
        return piece

    def rest(self) -> str:
        """Give what is left at the end, with U+FFFD for a character that was not finished."""
        text = self._decode(self._ids)
        return text[len(self._given) :] if text.startswith(self._given) else BROKEN

    def _keep(self, ids: list[int]) -> bool:
        """Go on from tokens alone, if they have text that does not begin inside of a character."""
        text = self._decode(ids)
        if not text or text.startswith(BROKEN):
            return False
        self._ids, self._given = ids, text
        return True
