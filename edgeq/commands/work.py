"""What is being worked on, how far it has come and how long it still takes, as one line says it.

Who draws the line, and where, is `edgeq.commands.progress`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgeq.commands.plain_text import visible_line
from edgeq.planning.process_memory import resident_bytes
from edgeq.run.observing import SOLVING
from edgeq.solving.report import LayerReport, Stage
from edgeq.words import show_time, without_brackets


@dataclass(slots=True)
class Work:
    """The work of this moment: blocks that are solved, or something else beside them.

    what is said before the count "done/total"; total is 0 where nothing is counted. blocks are
    those of the run as (done, total), which is known before the first of them is begun. detail is
    what is said last: layer, error, memory, the first the most important.

    Units: seconds of the clock.
    """

    clock: Callable[[], float] = time.monotonic
    what: str = "starting"
    done: int = 0
    total: int = 0
    blocks: tuple[int, int] = (0, 0)
    detail: Sequence[str] = ()
    _since: float = field(init=False)
    _before: int = field(default=0, init=False)
    _counted: float = field(init=False)

    def __post_init__(self) -> None:
        self._since = self._counted = self.clock()

    def goes_on(self, what: str, done: int, total: int) -> None:
        """Note how far work of a kind has come; another kind starts its clock anew."""
        now = self.clock()
        if without_brackets(what) != without_brackets(self.what) or done < self.done:
            self._since, self._before = now, done
            self.detail = ()
        self.what = what
        self.done, self.total, self._counted = done, total, now

    def begin(self, blocks: int, done: int) -> None:
        """Note how many blocks the run has, and how many were there already."""
        self.blocks = (done, blocks)

    def finish_block(self, index: int) -> None:
        """Note that a block is done."""
        self.blocks = (index + 1, self.blocks[1])
        self.goes_on(SOLVING, *self.blocks)

    @property
    def passed(self) -> float:
        """Return the seconds since work of this kind began."""
        return self.clock() - self._since

    @property
    def left(self) -> float | None:
        """Estimate the seconds that are left, by what has been done; None before anything is."""
        fresh = self.done - self._before
        if fresh <= 0 or not self.total:
            return None
        each = (self._counted - self._since) / fresh
        return max(0.0, each * (self.total - self.done) - (self.clock() - self._counted))

    @property
    def counts(self) -> tuple[int, int]:
        """Return what a bar shows: the count of this work, or else that of a run under way."""
        if self.total:
            return self.done, self.total
        done, blocks = self.blocks
        return self.blocks if 0 < done < blocks else (0, 0)

    def head(self) -> str:
        """Say what is worked on, with its count."""
        if self.total:
            return f"{self.what} {self.done}/{self.total}"
        done, blocks = self.blocks
        return f"block {done}/{blocks}, {self.what}" if 0 < done < blocks else self.what

    def time(self) -> str:
        """Say how long it still takes, or how long it has taken where that is not known."""
        if not self.total:
            return f"{show_time(self.passed)} so far"
        left = self.left
        if left is None:
            return f"estimating, {show_time(self.passed)} so far"
        return f"about {show_time(left)} left"


def against_rounding(layers: Sequence[LayerReport]) -> list[str]:
    """Compare the loss of layers with that of plain rounding, in words, where there is one."""
    plain = sum(report.losses.get(Stage.NEAREST, 0.0) for report in layers)
    if not plain:
        return []
    share = sum(report.final_loss for report in layers) / plain
    return [f"layer error {share:.0%} of plain rounding"]


def memory() -> list[str]:
    """Say how much memory is in use, where the system says it."""
    resident = resident_bytes()
    return [] if resident is None else [f"{resident / 1e9:.1f} GB in use"]


def layer_in_block(name: str, blocks: int) -> str:
    """Name a layer inside of its block: what stands behind the number of the block."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit() and int(part) < blocks]
    inside = parts[numbers[0] + 1 :] if numbers else parts
    return visible_line(".".join(inside or parts))
