"""What a function says while it works: events for whoever gave it a callback."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgeq.solving.report import LayerReport

Activity = Literal["writing text", "measuring types", "quantizing", "evaluating"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a function has come, as its `progress` callback is told.

    what is done at the moment: "writing text" (calibration text that the model writes, in tokens),
    "measuring types" (for a budget, in blocks), "quantizing" (in blocks) or "evaluating" (in
    windows). done of total units are ready; a run that is continued starts above 0. layer is the
    report of a layer that has just been solved, None in all other events.
    """

    what: Activity
    done: int
    total: int
    unit: Literal["tokens", "blocks", "windows"]
    layer: LayerReport | None = None

    @property
    def share(self) -> float:
        """Return what is done of the total, 0 to 1."""
        return self.done / self.total if self.total else 1.0

    def __str__(self) -> str:
        """Write one line, such as "quantizing: 3 of 30 blocks"."""
        layer = "" if self.layer is None else f", {self.layer.name}"
        return f"{self.what}: {self.done} of {self.total} {self.unit}{layer}"


ProgressCallback = Callable[[Progress], None]


class Teller:
    """An observer of a run that tells a callback; without one it is silent.

    What the callback raises stops the run as Ctrl-C does: finished blocks stay, and resume=True
    continues behind them.
    """

    def __init__(self, progress: ProgressCallback | None) -> None:
        self._progress = progress
        self._blocks = 0
        self._done = 0

    def wrote(self, tokens: int, total: int) -> None:
        self._tell(Progress("writing text", tokens, total, "tokens"))

    def measured(self, blocks: int, total: int) -> None:
        self._tell(Progress("measuring types", blocks, total, "blocks"))

    def begin(self, blocks: int, done: int) -> None:
        self._blocks, self._done = blocks, done
        self._tell(Progress("quantizing", done, blocks, "blocks"))

    def solved(self, report: LayerReport) -> None:
        self._tell(Progress("quantizing", self._done, self._blocks, "blocks", report))

    def finished_block(self, index: int) -> None:
        self._done = index + 1
        self._tell(Progress("quantizing", self._done, self._blocks, "blocks"))

    def evaluated(self, windows: int, total: int) -> None:
        self._tell(Progress("evaluating", windows, total, "windows"))

    def _tell(self, event: Progress) -> None:
        if self._progress is not None:
            self._progress(event)
