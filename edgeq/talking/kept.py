"""Read a text that grows: what a speaker holds of it already is not read again."""

from collections.abc import Sequence

from edgeq.talking.speakers import Speaker
from edgeq.types import NumpyArray

LEAST_ROOM = 256  # tokens; so that short answers never start over


class KeptText:
    """Predicts behind any text; it goes on from what that shares with the text before."""

    def __init__(self, speaker: Speaker, context: int | None) -> None:
        self._speaker, self._context = speaker, context
        self._ids: list[int] = []
        self._room = 0

    def predict(self, ids: Sequence[int], *, room: int) -> NumpyArray:
        """Predict the token behind a text, which is expected to grow to `room` tokens.

        Shapes: gives (vocabulary,) logits.
        """
        ids = list(ids)
        shared = self._shared(ids)
        if len(ids) > self._room:
            self._begin(max(room, len(ids), 2 * self._room, LEAST_ROOM))
            shared = 0
        elif shared < len(self._ids) and not (shared and self._speaker.cut(shared)):
            self._begin(self._room)
            shared = 0
        self._ids = self._ids[:shared]
        try:
            logits = self._speaker.read(ids[shared:])
        except BaseException:  # also Ctrl-C: how far it came is not known
            self._ids, self._room = [], 0
            raise
        self._ids = ids
        return logits

    def _begin(self, room: int) -> None:
        self._room = room if self._context is None else min(room, self._context)
        self._ids = []
        self._speaker.begin(self._room)

    def _shared(self, ids: list[int]) -> int:
        """Count the first tokens that are held already; the last one is read in any case."""
        most = min(len(self._ids), len(ids) - 1)
        if ids[:most] == self._ids[:most]:
            return most
        return next(place for place in range(most) if ids[place] != self._ids[place])
