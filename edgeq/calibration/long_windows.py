"""Cut windows from a text that is too long to be held: only pieces around them are tokenized."""

import itertools
import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from edgeq.calibration.reading import LONGEST_WHOLE, LongText
from edgeq.calibration.windows import (
    begin_ids,
    begun,
    check_ids,
    encode,
    length_of_text,
    load_tokenizer,
)
from edgeq.errors import BadInput
from edgeq.protocols import TextModel

LEAD = 256
"""Characters that are tokenized before a place: behind some words, tokens are those of the whole
text, wherever a piece begins."""
TRAIL = 64  # tokens behind a window that must be there, since the end of a piece cuts a word
CHARACTERS_PER_TOKEN = 6  # that are read at first; text has about 4 and a half
MOST_CHARACTERS_PER_TOKEN = 64  # fewer tokens are no text
SPACE = re.compile(r"\s")
WORD_START = re.compile(r"(?<=\s)\S")
LONGEST_WORD = 256  # characters; where no word begins within them, any place will do

Windows = npt.NDArray[np.int64]


def sample_long(
    source: TextModel,
    text: LongText,
    *,
    samples: int,
    sequence_length: int,
    seed: int,
    apart: bool = False,
) -> tuple[Windows, int]:
    """Cut windows that start at random words, one in each of `samples` equal stretches of a text.

    Each begins as the model's tokenizer begins a text. Also counts the tokens of the text in them,
    those of overlapping windows once. apart: windows share no token, and a text that is short for
    so many gives fewer.

    Shapes: (samples or fewer, sequence_length).
    Raises: BadInput when the text has too few tokens, or fewer places to start at than samples.
    """
    begin = begin_ids(source)
    length = length_of_text(sequence_length, begin)
    cutter = _Cutter(source, length)
    last_start, last = cutter.last_window(text)
    if apart:
        samples = min(samples, 1 + text.characters // length)  # more find no place
    if samples > last_start + 1:
        raise BadInput(
            f"calibration text: {last_start + 1} places to start at, but {samples} sequences; "
            "choose fewer --samples, or give more text"
        )
    edges = np.linspace(0, last_start + 1, samples + 1)
    places = np.random.default_rng(seed).uniform(edges[:-1], edges[1:]).astype(np.int64)
    reader = _Reader(text.read())
    cuts: list[tuple[Windows, Windows]] = []
    before = -1  # the place of the last token that was taken, where none may be taken twice
    for place in places.tolist():
        found = cutter.window_behind(reader, place, before) or last
        if found[1][0] <= before:
            break
        cuts.append(found)
        before = int(found[1][-1]) if apart else -1
    windows, starts = (np.stack(each) for each in zip(*cuts, strict=True))
    check_ids(source, windows)
    overlapping = sum(
        int((one >= next_one[0]).sum()) for one, next_one in itertools.pairwise(starts)
    )
    return begun(windows, begin), windows.size - overlapping


def first_tokens(source: TextModel, text: LongText, count: int) -> Windows:
    """Tokenize the beginning of a text, as far as so many tokens need it.

    Shapes: (count,), or fewer where the text has no more.
    """
    tokenizer = load_tokenizer(source)
    reader = _Reader(text.read())
    characters = CHARACTERS_PER_TOKEN * (count + TRAIL)
    while True:
        piece = reader.ahead(characters)
        ids = encode(source, tokenizer, piece).ids
        is_enough = len(ids) >= count + TRAIL or len(piece) < characters
        if is_enough or characters > most_characters(count):
            return np.asarray(ids[:count], dtype=np.int64)
        characters *= 2


def most_characters(tokens: int) -> int:
    """Say in how many characters so many tokens of any text must be found."""
    return max(LONGEST_WHOLE, MOST_CHARACTERS_PER_TOKEN * tokens)


class _Cutter:
    """Cuts windows of one length by a model's tokenizer, with the place of each token."""

    def __init__(self, source: TextModel, length: int) -> None:
        self._source = source
        self._tokenizer: Tokenizer = load_tokenizer(source)
        self._length = length
        self._characters = LEAD + CHARACTERS_PER_TOKEN * (length + TRAIL)

    def last_window(self, text: LongText) -> tuple[int, tuple[Windows, Windows]]:
        """Find the last window of a text, and the place where it starts.

        Raises: BadInput when there is none.
        """
        characters = self._characters
        while True:
            piece = text.last(min(characters, text.characters))
            encoded = encode(self._source, self._tokenizer, piece)
            if len(encoded.ids) >= self._length + TRAIL or len(piece) == text.characters:
                break
            if characters > most_characters(self._length):
                break
            characters *= 2
        if len(encoded.ids) < self._length:
            raise BadInput(
                f"calibration text: its last {len(piece)} characters are {len(encoded.ids)} "
                f"tokens; at least one sequence of {self._length} is needed, "
                "give other text or a smaller --sequence-length"
            )
        found = self._take(encoded, len(encoded.ids) - self._length)
        begin = text.characters - len(piece)
        return begin + int(found[1][0]), (found[0], found[1] + begin)

    def window_behind(
        self, reader: "_Reader", place: int, before: int
    ) -> tuple[Windows, Windows] | None:
        """Cut the window at a place, or at the next where its first token is behind another one."""
        place = max(place, before + 1)
        while (found := self.window_at(reader, place)) is not None and found[1][0] <= before:
            place += 1  # it is within that token, which a word begins in
        return found

    def window_at(self, reader: "_Reader", place: int) -> tuple[Windows, Windows] | None:
        """Cut the window that starts at the first word behind a place; None at the text's end.

        Raises: BadInput where characters without end give no tokens.
        """
        begin = max(0, place - LEAD)
        reader.move(begin)
        characters = self._characters
        while True:
            piece = reader.ahead(characters)
            encoded = encode(self._source, self._tokenizer, piece)
            start = first_token(encoded, word_start(piece, place - begin, is_first=begin == 0))
            left = len(encoded.ids) - start
            if len(piece) < characters:
                break
            if left >= self._length + TRAIL:
                break
            if characters > most_characters(self._length):
                raise BadInput(
                    f"calibration text: {len(piece)} characters from place {begin} on are "
                    f"{len(encoded.ids)} tokens; give text without such stretches"
                )
            characters *= 2
        if left < self._length:
            return None
        ids, starts = self._take(encoded, start)
        return ids, starts + begin

    def _take(self, encoded: Encoding, start: int) -> tuple[Windows, Windows]:
        end = start + self._length
        starts = [offset for offset, _ in encoded.offsets[start:end]]
        return np.asarray(encoded.ids[start:end], np.int64), np.asarray(starts, np.int64)


def word_start(piece: str, place: int, *, is_first: bool) -> int:
    """Find the first word that starts at a place or behind it; the place itself without spaces.

    In the first word of the first piece that is where the text begins.
    """
    found = WORD_START.search(piece, place, place + LONGEST_WORD)
    if found is None:
        return place
    begins_text = is_first and SPACE.search(piece, 0, place) is None
    return 0 if begins_text else found.start()


def first_token(encoded: Encoding, place: int) -> int:
    """Find the first token that reaches beyond a place of the text."""
    return next(
        (position for position, (_, end) in enumerate(encoded.offsets) if end > place),
        len(encoded.ids),
    )


class _Reader:
    """Reads a text forwards, and holds only what lies behind the last place it was moved to."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._held = ""
        self._begin = 0  # of what is held, in the text
        self._at = 0  # in what is held

    def move(self, place: int) -> None:
        """Go forwards to a place of the text."""
        while place > self._begin + len(self._held) and (piece := next(self._pieces, "")):
            self._begin += len(self._held)
            self._held = piece
        self._at = place - self._begin

    def ahead(self, count: int) -> str:
        """Read so many characters from here, or what the text has left, and stay."""
        missing = count - (len(self._held) - self._at)
        pieces = []
        while missing > 0 and (piece := next(self._pieces, "")):
            pieces.append(piece)
            missing -= len(piece)
        if pieces:
            self._held = "".join([self._held[self._at :], *pieces])
            self._begin += self._at
            self._at = 0
        return self._held[self._at : self._at + count]
