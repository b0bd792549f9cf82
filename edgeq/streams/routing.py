"""Say which pass through a block is running, and pair the tokens of both streams at experts.

A mixture of experts sends every token to a few of its experts. The router of the original decides
whose moments a token belongs to, in both streams: else the two would be compared on different
tokens. How a framework computes experts is up to it.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeq.types import Array, NumpyArray, Tokens

# for each input: moments of twice as many would be little better, and every expert runs on them
SAMPLE_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Pass:
    """One batch's pass through a block: its stream, its number, and its place among all tokens.

    first is the number of its first token, in the order in which windows run, total how many there
    are, whatever batches they run in. length is the tokens of a window, order the windows by their
    numbers, where they do not run in the order that they were drawn in.
    """

    quantized: bool
    batch: int
    first: int
    length: int
    total: int
    order: NumpyArray | None = None

    def tokens(self, rows: NumpyArray) -> Tokens:
        """Say which tokens some rows of the batch are."""
        numbers = self.first + rows
        if self.order is not None:
            windows = self.order[numbers // self.length]
            numbers = windows * self.length + numbers % self.length
        return Tokens(numbers, self.length)

    def sample(self, count: int, columns: int) -> NumpyArray:
        """Choose tokens of a batch of `count`, evenly, that suffice for so many columns in all.

        The choice does not depend on how many windows run together.
        """
        every = max(1, self.total // (SAMPLE_TOKENS * columns))
        return np.arange(-self.first % every, count, every)


_running: ContextVar[Pass] = ContextVar("running pass")
"""Each greenlet has its own, as greenlets have contexts."""


def start_pass(now: Pass) -> None:
    """Note which pass runs from here on in this greenlet."""
    _running.set(now)


def running_pass() -> Pass:
    """Find out which pass runs in this greenlet. Raises: LookupError outside of any."""
    return _running.get()


def tokens_in_order(rows: int) -> Tokens | None:
    """Say which tokens the rows of a batch's input are, that has all of them; None outside."""
    now = _running.get(None)
    return None if now is None else now.tokens(np.arange(rows))


@dataclass(slots=True)
class Choices:
    """The experts that routers chose for the tokens of each batch of one block.

    Shapes: an array has a row for each token, with the numbers of its experts.
    """

    _original: dict[int, Any] = field(default_factory=dict)
    _own: dict[int, Any] = field(default_factory=dict)

    def note(self, now: Pass, chosen: Array) -> None:
        """Note what the router of a pass chose."""
        (self._own if now.quantized else self._original)[now.batch] = chosen

    def own(self, now: Pass) -> Any:
        """Give the choice of a pass's own router."""
        return (self._own if now.quantized else self._original)[now.batch]

    def of_moments(self, now: Pass) -> Any:
        """Give the choice that decides whose moments a batch's tokens belong to.

        It is the original's, or the stream's own where the original does not run.
        """
        return self._original.get(now.batch, self._own.get(now.batch))
