"""What a function says while it works: events for whoever gave it a callback."""

from collections.abc import Callable
from dataclasses import dataclass

from edgeq.run.observing import SOLVING
from edgeq.solving.report import LayerReport
from edgeq.words import without_brackets

QUANTIZING = "quantizing"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a function has come, as its `progress` callback is told.

    what is being done: "quantizing" (counted in blocks), "writing text" (calibration text that the
    model writes, in tokens), "measuring types" (for a budget, in blocks), "evaluating" (in windows
    of all models), or a step that is not counted, such as "loading the model", whose total is 0.
    done of total units are ready; a run that is continued starts above 0. layer is the report of a
    layer that has just been solved, None in all other events. model says which model is evaluated,
    and is empty elsewhere. detail has numbers that are known on the way: of "tuning" (in steps) the
    loss and the KL divergence on windows that are held out.
    """

    what: str
    done: int = 0
    total: int = 0
    unit: str = ""
    layer: LayerReport | None = None
    model: str = ""
    detail: str = ""

    @property
    def share(self) -> float:
        """Return what is done of the total, 0 to 1; 0 for what is not counted."""
        return self.done / self.total if self.total else 0.0

    def __str__(self) -> str:
        """Write one line, such as "quantizing: 3 of 30 blocks"."""
        counted = f": {self.done} of {self.total} {self.unit}" if self.total else ""
        about = self.model if self.layer is None else self.layer.name
        parts = [f"{self.what}{counted}", *filter(None, (about, self.detail))]
        return ", ".join(parts)


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

    def progressed(self, what: str, done: int = 0, total: int = 0) -> None:
        """Tell of a step, whose words end with the unit that it is counted in, if any."""
        if what == SOLVING:
            self._tell(Progress(QUANTIZING, done, total, "blocks"))
        elif total:
            step, _, unit = without_brackets(what).partition(", ")
            detail = what.partition(" (")[2].partition(")")[0]
            self._tell(Progress(step, done, total, f"{unit}s" if unit else "", detail=detail))
        else:
            self._tell(Progress(what))

    def begin(self, blocks: int, done: int) -> None:
        self._blocks, self._done = blocks, done

    def solved(self, report: LayerReport) -> None:
        self._tell(Progress(QUANTIZING, self._done, self._blocks, "blocks", report))

    def finished_block(self, index: int) -> None:
        self._done = index + 1
        self._tell(Progress(QUANTIZING, self._done, self._blocks, "blocks"))

    def evaluated(self, model: str, done: int, total: int) -> None:
        """Tell of windows that a model has run over."""
        self._tell(Progress("evaluating", done, total, "windows", model=model))

    def _tell(self, event: Progress) -> None:
        if self._progress is not None:
            self._progress(event)
