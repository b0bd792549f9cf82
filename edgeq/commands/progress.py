"""What people see while a run goes on: a bar in a terminal, plain lines elsewhere, a log file."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from io import FileIO
from pathlib import Path
from threading import Timer

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from edgeq.commands.plain_text import visible_line
from edgeq.commands.screen import print_line
from edgeq.commands.work import Work, against_rounding, layer_in_block, memory
from edgeq.errors import BadInput, lower_first, reason_of
from edgeq.files.plain_files import append_to_file, inside
from edgeq.run.observing import EVALUATING, SOLVING, Observer
from edgeq.solving.report import LayerReport
from edgeq.words import without_brackets

Clock = Callable[[], float]
PATIENCE = 5.0
"""Seconds after which plain lines name work beside the blocks: most of it takes less."""
GAP = 2  # columns between the parts of a line
BAR_SHARE = 5  # the bar has a fifth of the line
SHORTEST_BAR, LONGEST_BAR = 6, 40
LONGEST_NAME = 24  # of a model


class Silent:
    """An observer that shows nothing, for runs that nobody watches."""

    def progressed(self, what: str, done: int = 0, total: int = 0) -> None:
        pass

    def begin(self, blocks: int, done: int) -> None:
        pass

    def solved(self, report: LayerReport) -> None:
        pass

    def finished_block(self, index: int) -> None:
        pass

    def evaluated(self, model: str, done: int, total: int) -> None:
        pass


class Lines:
    """Plain lines for logs and pipes: one per block, and what else takes long.

    Each has the time left; those of blocks have the memory in use. Work beside the blocks is named
    once it has taken so many seconds of patience, and then at every tenth of what is counted.
    """

    def __init__(
        self, console: Console, clock: Clock = time.monotonic, patience: float | None = None
    ) -> None:
        self._console = console
        self._work = Work(clock)
        self._clock = clock
        self._patience = PATIENCE if patience is None else patience
        self._layers: list[LayerReport] = []
        self._said = -1  # tenths of this work
        self._is_continued = False
        self._timer: Timer | None = None

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_waiting()

    def progressed(self, what: str, done: int = 0, total: int = 0) -> None:
        """Name work that takes long, and every tenth of what is counted; the end always."""
        if without_brackets(what) != without_brackets(self._work.what):
            self._stop_waiting()
            self._said = -1
        self._work.goes_on(what, done, total)
        if what == SOLVING:
            self._say_what_is_there()
        elif done and done == total:
            self._say()
        elif self._patience == 0 or self._work.passed >= self._patience:
            self._say()
        elif self._timer is None:
            self._timer = Timer(self._patience, self._say)
            self._timer.daemon = True
            self._timer.start()

    def begin(self, blocks: int, done: int) -> None:
        self._work.begin(blocks, done)
        self._is_continued = done > 0

    def solved(self, report: LayerReport) -> None:
        self._layers.append(report)

    def finished_block(self, index: int) -> None:
        self._work.finish_block(index)
        parts = [self._work.head(), self._work.time(), *against_rounding(self._layers), *memory()]
        self._print(", ".join(parts))
        self._layers = []

    def evaluated(self, model: str, done: int, total: int) -> None:
        self.progressed(EVALUATING, done, total)

    def _say(self) -> None:
        """Print a line of the work of this moment, unless that has been said."""
        work = self._work
        tenths = 10 * work.done // work.total if work.total else 0
        if tenths > self._said:
            self._said = tenths
            known = work.done and work.done < work.total
            self._print(f"{work.head()}, {work.time()}" if known else work.head())

    def _say_what_is_there(self) -> None:
        """Say once how many blocks were there: not at once, as the run may yet be refused."""
        if self._is_continued:
            self._is_continued = False
            done, blocks = self._work.blocks
            self._print(f"{done} of {blocks} blocks are there")

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _print(self, text: str) -> None:
        print_line(self._console, text)


class Bar:
    """One line at the foot of a terminal: what is worked on, a bar, the time left, details.

    Details give way where the line is short, then the bar.
    """

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._work = Work(clock)
        self._live = Live(self, console=console, transient=True, refresh_per_second=4)

    def __enter__(self) -> "Bar":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield status_line(self._work, options.max_width)

    def progressed(self, what: str, done: int = 0, total: int = 0) -> None:
        self._work.goes_on(what, done, total)

    def begin(self, blocks: int, done: int) -> None:
        self._work.begin(blocks, done)

    def solved(self, report: LayerReport) -> None:
        name = layer_in_block(report.name, self._work.blocks[1])
        self._work.detail = [name, *memory(), *against_rounding([report])]

    def finished_block(self, index: int) -> None:
        self._work.finish_block(index)

    def evaluated(self, model: str, done: int, total: int) -> None:
        self._work.goes_on(EVALUATING, done, total)
        self._work.detail = [last_letters(model)]


def last_letters(name: str) -> str:
    """Give the end of a name: of a path, that says most."""
    shown = visible_line(name)
    return shown if len(shown) <= LONGEST_NAME else f"...{shown[3 - LONGEST_NAME :]}"


def status_line(work: Work, width: int) -> Table:
    """Lay out what is known of the work in one line of so many columns."""
    left = work.time()
    head = set_cell_size(work.head(), min(cell_len(work.head()), max(0, width - len(left) - GAP)))
    rest = width - cell_len(head) - GAP - len(left)
    bar = max(SHORTEST_BAR, min(LONGEST_BAR, width // BAR_SHARE))
    done, total = work.counts
    has_bar = total > 0 and rest >= SHORTEST_BAR + GAP
    if has_bar:
        bar = min(bar, rest - GAP)
        rest -= bar + GAP
    line = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    parts: list[Text | ProgressBar] = [Text(head), Text(left, style="bold")]
    if has_bar:
        parts.insert(1, ProgressBar(total=total, completed=done, width=bar))
    if detail := fitting(work.detail, rest - GAP):
        parts.append(Text(detail, style="dim"))
    for _ in parts:
        line.add_column(no_wrap=True)
    line.add_row(*parts)
    return line


def fitting(parts: Iterable[str], width: int) -> str:
    """Join those first parts that fit into so many columns."""
    found = ""
    for part in parts:
        longer = f"{found}, {part}" if found else part
        if cell_len(longer) > width:
            break
        found = longer
    return found


class Log:
    """Every layer and block with the time of day, one line each, written through at once."""

    def __init__(self, file: FileIO, path: Path) -> None:
        self._file, self._path = file, path

    def progressed(self, what: str, done: int = 0, total: int = 0) -> None:
        if what != SOLVING:
            self._write(f"{what} {done}/{total}" if total else what)

    def begin(self, blocks: int, done: int) -> None:
        self._write(f"{blocks} blocks, {done} of them there already")

    def solved(self, report: LayerReport) -> None:
        error = f"error {report.final_loss:.3g}"
        self._write(", ".join([report.name, error, *against_rounding([report]), *memory()]))

    def finished_block(self, index: int) -> None:
        self._write(f"block {index + 1} is done")

    def evaluated(self, model: str, done: int, total: int) -> None:
        self._write(f"{EVALUATING} {done}/{total}, {model}")

    def _write(self, text: str) -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        left = f"{now} {visible_line(text)}\n".encode()
        try:
            while left:  # a disk that is nearly full takes a part before it refuses
                left = left[self._file.write(left) :]
        except OSError as error:
            raise unwritable(self._path, error) from error


class Both:
    """Two observers that watch the same run."""

    def __init__(self, one: Observer, other: Observer) -> None:
        self._watching = (one, other)

    def progressed(self, what: str, done: int = 0, total: int = 0) -> None:
        for observer in self._watching:
            observer.progressed(what, done, total)

    def begin(self, blocks: int, done: int) -> None:
        for observer in self._watching:
            observer.begin(blocks, done)

    def solved(self, report: LayerReport) -> None:
        for observer in self._watching:
            observer.solved(report)

    def finished_block(self, index: int) -> None:
        for observer in self._watching:
            observer.finished_block(index)

    def evaluated(self, model: str, done: int, total: int) -> None:
        for observer in self._watching:
            observer.evaluated(model, done, total)


@contextmanager
def following(console: Console, *, plain: bool) -> Iterator[Observer]:
    """Show how far work has come: a line at the foot of a terminal, or plain lines."""
    if plain or not console.is_terminal:
        with Lines(console) as lines:
            yield lines
    else:
        with Bar(console) as bar:
            yield bar


@contextmanager
def watching(
    console: Console, *, plain: bool, log_file: Path | None, output: Path
) -> Iterator[Observer]:
    """Watch a run: a bar in a terminal unless plain lines are wanted, beside it a log file.

    The log file is appended to.

    Raises: BadInput when the log file cannot be written, or lies among what the run itself writes.
    """
    check_log_file(log_file, output)
    with ExitStack() as stack:
        shown = stack.enter_context(following(console, plain=plain))
        if log_file is not None:
            file = stack.enter_context(open_log(log_file))
            shown = Both(shown, Log(file, log_file))
        yield shown


@contextmanager
def open_log(path: Path) -> Iterator[FileIO]:
    """Open a log file to append to; one that was made and that nothing was written to goes again.

    Raises: BadInput when it cannot be written.
    """
    is_new = not os.path.lexists(path)
    try:
        file = append_to_file(path)
    except OSError as error:
        raise unwritable(path, error) from error
    with file:
        try:
            yield file
        finally:
            if is_new and not os.fstat(file.fileno()).st_size:
                path.unlink(missing_ok=True)


def check_log_file(log_file: Path | None, output: Path) -> None:
    """Raise BadInput for a log file among what the run itself writes."""
    if log_file is not None and inside(log_file, output):
        raise BadInput(
            f"--log-file {str(log_file)!r} lies in the output; "
            f"choose a place outside of {str(output)!r}"
        )


def unwritable(log_file: Path, error: OSError) -> BadInput:
    """Make the error for a log file that cannot be written."""
    return BadInput(
        f"--log-file {str(log_file)!r}: {lower_first(reason_of(error))}; "
        "choose a file that can be written"
    )
