"""The directory of a run: which of its blocks count, and when and how one comes to count.

A block counts once its file, the hidden states behind it and run.json, which says so, are on disk.
All of that is written by a thread while the next block is solved. Hidden states are large, so where
blocks are quick they are written only so often (`RESUME_SECONDS`): blocks that do not count yet
when a run is killed are solved again. Whoever stops a run otherwise loses none of them, unless the
hidden states behind them are just being overwritten: they lie on disk, or are computed in parts.

How a run is opened, continued and ended is `edgeq.run.resume`.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from edgeq.errors import BadInput, reason_of
from edgeq.files.background import Background
from edgeq.files.hashes import hash_of_content, hash_of_file
from edgeq.files.json_files import read_json, write_json
from edgeq.files.ownership import MADE, RUN_FILE, STATES, TUNED, remove_entry
from edgeq.files.storage import sync_directory, sync_file
from edgeq.protocols import ActivationSource, HeldStates
from edgeq.run.identity import Identity
from edgeq.run.report import RunReport
from edgeq.stopwatch import Stopwatch

BLOCKS = "blocks"
RESUME_SECONDS = 45.0
"""From one commit to the next: a kill loses no more of quick blocks, and hidden states of a large
model (6 GB for 128 x 2048 tokens of width 4096) are written in less."""
FORWARD = "forward passes"
"""The stage that a wait for hidden states falls into, and is not counted in."""


class Damaged(BadInput):
    """Raised for an unfinished run that cannot be continued: part of it is lost or damaged."""

    def __init__(self, folder: Path, what: str) -> None:
        super().__init__(
            f"unfinished run {str(folder)!r}: {what}; start over with --force and without --resume"
        )


@dataclass(frozen=True, slots=True)
class Finished:
    """What run.json says once so many blocks count, and the hidden states behind them, if any."""

    blocks: int
    progress: Mapping[str, Any]
    states: HeldStates | None


@dataclass(slots=True)
class Run:
    """A run in its temporary directory.

    files are those of its blocks inside of `made`, in execution order; the first `done` count.
    hashes are those of the files that a continued run goes on with, by their place in the folder.
    timer tells seconds, and clock is told those spent here.
    """

    folder: Path
    identity: Identity
    files: Sequence[str]
    done: int = 0
    report: RunReport = field(default_factory=RunReport)
    backends: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    timer: Callable[[], float] = time.monotonic
    clock: Stopwatch = field(default_factory=Stopwatch)
    _background: Background = field(default_factory=Background)
    _finished: Finished | None = None  # that is not being committed yet
    _has_copies: bool = True  # of the hidden states that are being committed
    _since: float = 0.0

    @property
    def made(self) -> Path:
        return self.folder / MADE

    @property
    def tuned(self) -> Path:
        return self.folder / TUNED

    @property
    def output(self) -> Path:
        """Return what becomes the output."""
        return self.tuned if self.tuned.is_dir() else self.made

    def record(self, backend: str) -> None:
        """Note that a backend works on the run."""
        if backend not in self.backends:
            self.backends.append(backend)

    def finish(self, blocks: int, activations: ActivationSource | None) -> None:
        """Note that so many blocks are solved, whose files are written.

        Where it is time for it they are committed in the background, with the hidden states behind
        them, and so are all blocks of the model.

        Raises: what the commit before this one raised.
        """
        if not self._has_copies:  # else the states behind three blocks would be in memory
            self._background.wait()
        progress = {"done": blocks, "files": list(self.files), "backends": list(self.backends)}
        is_last = blocks == len(self.files)
        states = None if activations is None or is_last else activations.hold(self._let_go)
        self._finished = Finished(blocks, progress | self.report.plain(), states)
        if not self._background.is_busy:
            self._background.check()
        if is_last or (self._is_due() and not self._background.is_busy):
            self._begin()

    def settle(self) -> None:
        """Commit what is finished, and wait for it. Raises: what a commit raised."""
        if self._finished is not None:
            self._begin()
        self._background.wait()
        self._background.check()

    def keep(self) -> None:
        """Commit what is finished as far as that is possible, for a run that stops by an error.

        Nothing is raised for what cannot be written: the blocks before it are kept.
        """
        try:
            self._background.wait()
            with suppress(Exception):
                self._background.check()
            with suppress(Exception):
                self.settle()
        except BaseException as error:
            if isinstance(error, Exception):
                raise
            self.abandon()  # asked to stop once more: do not wait

    def abandon(self) -> None:
        """Give up what is being committed, and what is not."""
        self._finished = None
        self._background.abandon()

    def _is_due(self) -> bool:
        return self.timer() - self._since >= RESUME_SECONDS

    def _begin(self) -> None:
        """Start to commit the blocks that are finished."""
        finished = self._finished
        assert finished is not None
        self._background.wait()
        self._background.check()
        self._has_copies = finished.states is None or finished.states.begin()
        self._finished, self._since = None, self.timer()
        self._background.begin(partial(self._commit, finished))

    def _let_go(self) -> None:
        """Let hidden states be overwritten, when they have been written as far as they have to."""
        self._finished = None
        if not self._has_copies:
            with self.clock("write", within=FORWARD):
                self._background.wait()

    def _commit(self, finished: Finished) -> None:
        """Write all that makes blocks count, in the background."""
        hashes = self._store_blocks(finished.blocks)
        if finished.states is not None:
            place = self._states(finished.blocks)
            digests = self._store_states(finished.states, place)
            named = {(place / name).relative_to(self.folder): digests[name] for name in digests}
            hashes |= {name.as_posix(): digest for name, digest in named.items()}
        self._background.go_on()
        progress = {**finished.progress, "hashes": hashes}
        content = {"run": self.identity, "progress": progress}
        write_json(self.folder / RUN_FILE, content | {"sha256": hash_of_content(content)})
        sync_directory(self.folder)
        before, self.done, self.hashes = self._states(self.done), finished.blocks, hashes
        if before != self._states(self.done) and before.is_dir():
            shutil.rmtree(before)

    def _store_blocks(self, blocks: int) -> dict[str, str]:
        """Flush the files of blocks that do not count yet; give the hashes of all blocks."""
        hashes = {}
        for file in self.files[:blocks]:
            name = f"{MADE}/{file}"
            known = self.hashes.get(name)
            if known is None:
                sync_file(self.made / file)
                known = hash_of_file(self.made / file)
            hashes[name] = known
        sync_directory(self.made / BLOCKS)
        return hashes

    def _store_states(self, states: HeldStates, place: Path) -> dict[str, str]:
        """Write hidden states to a new directory, whole or not at all; give the hash of each file.

        What was written of them goes where that fails, so that there is room to try again.
        """
        written = place.with_name(f".{place.name}.partial")
        for folder in (written, place):
            if folder.exists():
                shutil.rmtree(folder)
        try:
            written.mkdir()
            digests = {}
            for name, digest in states.save(written):
                digests[name] = digest
                self._background.go_on()
            sync_directory(written)
        except BaseException:
            shutil.rmtree(written, ignore_errors=True)
            raise
        written.rename(place)
        sync_directory(place.parent)
        return digests

    def restore(self, activations: ActivationSource) -> None:
        """Let streams go on behind the blocks that are done.

        Raises: BadInput when their hidden states cannot be read.
        """
        if not self.done:
            return
        try:
            activations.restore(self._states(self.done))
        except (OSError, ValueError, EOFError) as error:
            what = f"its hidden states cannot be read ({reason_of(error)})"
            raise Damaged(self.folder, what) from error

    def check_files(self) -> None:
        """Raise BadInput when a file to go on with is not as it was written; touch nothing."""
        for name, digest in self.hashes.items():
            if not (self.folder / name).is_file():
                raise Damaged(self.folder, f"{name} is missing")
            if hash_of_file(self.folder / name) != digest:
                raise Damaged(self.folder, f"{name} was changed or damaged")

    def prepare(self) -> None:
        """Make the folders that the next block needs, and remove what no committed block has."""
        for folder in (self.made / BLOCKS, self.folder / STATES):
            folder.mkdir(parents=True, exist_ok=True)
        self.trim()
        self._since = self.timer()

    def trim(self) -> None:
        """Remove whatever `run.json`, as it lies on disk, does not count."""
        path = self.folder / RUN_FILE
        self.done = int(read_json(path)["progress"]["done"]) if path.is_file() else 0
        kept = {path, self.made, self.made / BLOCKS, self.folder / STATES, self._states(self.done)}
        kept |= {self.made / file for file in self.files[: self.done]}
        for folder in (self.made / BLOCKS, self.made, self.folder / STATES):
            for entry in folder.iterdir() if folder.is_dir() else ():  # someone may have removed it
                if entry not in kept:
                    remove_entry(entry)
        if self.tuned.is_dir():
            remove_entry(self.tuned)
        path.with_name(f".{RUN_FILE}.partial").unlink(missing_ok=True)

    def _states(self, done: int) -> Path:
        return self.folder / STATES / f"{done:04d}"
