"""Count windows while models run over them, so that a progress bar can say what is left."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from edgeq.types import NumpyArray

Progress = Callable[[str, int, int], None]
"""Is told what runs, how many windows are done, and how many there are in all models."""


class Predicting(Protocol):
    """Predicts windows: a runtime, a framework, or a reference."""

    def logits(self, windows: NumpyArray) -> Iterator[NumpyArray]:
        """Predict every token of each window, as `LogitSource` does."""


WINDOWS_AT_ONCE = 32  # whose hidden states a model that runs block by block holds


class Count:
    """The windows that are done, of all that several models run over."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress = total, progress
        self._done = 0.0
        self._shown = -1

    def add(self, what: str, windows: float) -> None:
        """Add windows, or a share of one, that something ran over."""
        self._done += windows
        done = min(self._total, int(self._done + 1e-6))
        if self._progress is not None and done != self._shown:
            self._shown = done
            self._progress(what, done, self._total)

    def logits(self, what: str, source: Predicting, windows: NumpyArray) -> Iterator[NumpyArray]:
        """Predict windows and count them: as they come, or block by block where a model runs so."""
        if not hasattr(source, "watch"):
            for found in source.logits(windows):
                self.add(what, 1)
                yield found
            return
        blockwise: Any = source
        for start in range(0, len(windows), WINDOWS_AT_ONCE):
            part = windows[start : start + WINDOWS_AT_ONCE]
            blockwise.watch = self._counted_by_block(what, len(part))
            yield from source.logits(part)

    def _counted_by_block(self, what: str, windows: int) -> Callable[[int, int], None]:
        return lambda _done, blocks: self.add(what, windows / blocks)
