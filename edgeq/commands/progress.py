"""What people see while a run goes on: a bar in a terminal, plain lines elsewhere, a log file."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from io import FileIO
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from edgeq.commands.plain_text import visible_line
from edgeq.commands.screen import print_line
from edgeq.errors import BadInput, lower_first, reason_of
from edgeq.files.plain_files import append_to_file, inside
from edgeq.planning.process_memory import resident_bytes
from edgeq.run.pipeline import Observer
from edgeq.solving.report import LayerReport, Stage


class Silent:
    """An observer that shows nothing, for runs that nobody watches."""

    def wrote(self, tokens: int, total: int) -> None:
        pass

    def measured(self, blocks: int, total: int) -> None:
        pass

    def begin(self, blocks: int, done: int) -> None:
        pass

    def solved(self, report: LayerReport) -> None:
        pass

    def finished_block(self, index: int) -> None:
        pass


class Lines:
    """One plain line per block, with the time left and the memory in use, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._blocks = 0
        self._before = 0
        self._start = 0.0
        self._layers: list[LayerReport] = []
        self._written = 0

    def wrote(self, tokens: int, total: int) -> None:
        """Print a line for every tenth of the text."""
        tenths = 10 * tokens // total
        if tenths > self._written:
            self._print(f"writing text, {tokens} of {total} tokens")
        self._written = tenths

    def measured(self, blocks: int, total: int) -> None:
        self._print(f"measuring types, block {blocks}/{total}")

    def begin(self, blocks: int, done: int) -> None:
        self._blocks = blocks
        self._before = done
        self._start = time.monotonic()
        if done:
            self._print(f"{done} of {blocks} blocks are there")

    def solved(self, report: LayerReport) -> None:
        self._layers.append(report)

    def finished_block(self, index: int) -> None:
        done = index + 1
        left = (time.monotonic() - self._start) / (done - self._before) * (self._blocks - done)
        parts = [
            f"block {done}/{self._blocks}, about {left:.0f} s left",
            *against_rounding(self._layers),
            *memory(),
        ]
        self._print(", ".join(parts))
        self._layers = []

    def _print(self, text: str) -> None:
        print_line(self._console, text)


class Bar:
    """A progress bar with an estimate, for terminals."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.fields[what]}"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, what="block")

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def wrote(self, tokens: int, total: int) -> None:
        self._bar.update(self._task, completed=tokens, total=total, what="writing text, token")

    def measured(self, blocks: int, total: int) -> None:
        self._bar.update(self._task, completed=blocks, total=total, what="measuring types, block")

    def begin(self, blocks: int, done: int) -> None:
        self._bar.reset(self._task, total=blocks, completed=done, what="block")

    def solved(self, report: LayerReport) -> None:
        parts = [report.name, *against_rounding([report]), *memory()]
        self._bar.update(self._task, description=visible_line(", ".join(parts)))

    def finished_block(self, index: int) -> None:
        self._bar.update(self._task, completed=index + 1)


class Log:
    """Every layer and block with the time of day, one line each, written through at once."""

    def __init__(self, file: FileIO, path: Path) -> None:
        self._file, self._path = file, path

    def wrote(self, tokens: int, total: int) -> None:
        self._write(f"writing text, {tokens} of {total} tokens")

    def measured(self, blocks: int, total: int) -> None:
        self._write(f"measuring types, block {blocks}/{total}")

    def begin(self, blocks: int, done: int) -> None:
        self._write(f"{blocks} blocks, {done} of them there already")

    def solved(self, report: LayerReport) -> None:
        error = f"error {report.final_loss:.3g}"
        self._write(", ".join([report.name, error, *against_rounding([report]), *memory()]))

    def finished_block(self, index: int) -> None:
        self._write(f"block {index + 1} is done")

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

    def wrote(self, tokens: int, total: int) -> None:
        for observer in self._watching:
            observer.wrote(tokens, total)

    def measured(self, blocks: int, total: int) -> None:
        for observer in self._watching:
            observer.measured(blocks, total)

    def begin(self, blocks: int, done: int) -> None:
        for observer in self._watching:
            observer.begin(blocks, done)

    def solved(self, report: LayerReport) -> None:
        for observer in self._watching:
            observer.solved(report)

    def finished_block(self, index: int) -> None:
        for observer in self._watching:
            observer.finished_block(index)


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
        shown: Observer = Lines(console)
        if console.is_terminal and not plain:
            shown = stack.enter_context(Bar(console))
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
