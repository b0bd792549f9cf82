"""Add up seconds per stage of a run."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Stopwatch:
    """A clock that adds up seconds under names: `with clock("solve"): ...`.

    They are wall-clock seconds unless another timer counts.
    """

    def __init__(self, timer: Callable[[], float] = time.perf_counter) -> None:
        self._timer = timer
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str, *, within: str | None = None) -> Iterator[None]:
        """Time what is done in a context; it is not counted in a stage that it falls into."""
        start = self._timer()
        try:
            yield
        finally:
            seconds = self._timer() - start
            self.seconds[stage] += seconds
            if within is not None:
                self.seconds[within] -= seconds


def timed(iterator: Iterator[T], clock: Stopwatch, stage: str) -> Iterator[T]:
    """Yield the same items and book the time it takes to get each to a stage."""
    while True:
        with clock(stage):
            item = next(iterator, None)
        if item is None:
            return
        yield item
