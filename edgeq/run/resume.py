"""A run that can be stopped at any moment and continued: what it has on disk until it is done.

In the output's temporary directory lie new/ (what becomes the checkpoint), states/NNNN/ (both
streams' hidden states behind NNNN blocks) and run.json. A run that tunes also has tuning/ (how far
that has come, see `edgeq.run.tuning`) and tuned/, which then becomes the checkpoint. run.json says
what the run is, how far it came, and the hash of every file that it goes on with. It is replaced
after a block's file and states are on disk; only then the block counts, and whatever run.json does
not know of is removed.

What lies there may be forged: links are refused by `edgeq.files.ownership` before a run is opened,
and what run.json states is compared with the model before anything is touched.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput, DamagedModel, reason_of
from edgeq.files.hashes import hash_of_content, hash_of_file
from edgeq.files.json_files import read_json, write_json
from edgeq.files.ownership import (
    ALLOCATION_FILE,
    MADE,
    MARKER_FILE,
    RUN_FILE,
    STATES,
    TUNED,
    TUNING,
    clear_contents,
    remove_entry,
)
from edgeq.files.storage import (
    bring_back,
    check_destination,
    claimed,
    explaining,
    put_in_place,
    sync_directory,
)
from edgeq.protocols import ActivationSource
from edgeq.run.identity import Identity, check_identity, differences, identity_of
from edgeq.run.report import RunReport, report_from

BLOCKS = "blocks"
SHA256 = re.compile(r"[0-9a-f]{64}")
STATE_NAME = re.compile(r"[\w-]+\.npy")


class Damaged(BadInput):
    """Raised for an unfinished run that cannot be continued: part of it is lost or damaged."""

    def __init__(self, folder: Path, what: str) -> None:
        super().__init__(
            f"unfinished run {str(folder)!r}: {what}; start over with --force and without --resume"
        )


@dataclass(frozen=True, slots=True)
class Ask:
    """The caller's choice between refusing, replacing and continuing what is there.

    force replaces it, resume continues it. again says how to continue, for the error of a run that
    stops.
    """

    force: bool = False
    resume: bool = False
    again: str = "the same call with resume=True"


@dataclass(slots=True)
class Run:
    """A run in its temporary directory.

    files are those of its blocks inside of `made`, in execution order. hashes are those of the
    files that a continued run goes on with, by their place in the folder.
    """

    folder: Path
    identity: Identity
    files: Sequence[str]
    done: int = 0
    report: RunReport = field(default_factory=RunReport)
    backends: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)

    @property
    def made(self) -> Path:
        return self.folder / MADE

    @property
    def tuned(self) -> Path:
        return self.folder / TUNED

    @property
    def finished(self) -> Path:
        """Return what becomes the output."""
        return self.tuned if self.tuned.is_dir() else self.made

    def record(self, backend: str) -> None:
        """Note that a backend works on the run."""
        if backend not in self.backends:
            self.backends.append(backend)

    def commit(self, activations: ActivationSource | None) -> None:
        """Count the next block, whose file is written, with the hidden states behind it."""
        sync_directory(self.made / BLOCKS)
        done = self.done + 1
        if activations is not None and done < len(self.files):
            partial = self.folder / STATES / f".{done:04d}.partial"
            partial.mkdir()
            activations.save(partial)
            sync_directory(partial)
            partial.rename(self._states(done))
            sync_directory(self.folder / STATES)
        self._hash(done)
        progress = {
            "done": done,
            "files": list(self.files),
            "backends": self.backends,
            "hashes": self.hashes,
        }
        content = {"run": self.identity, "progress": progress | self.report.plain()}
        write_json(self.folder / RUN_FILE, content | {"sha256": hash_of_content(content)})
        sync_directory(self.folder)
        self.done = done
        if self._states(done - 1).is_dir():
            shutil.rmtree(self._states(done - 1))

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

    def _hash(self, done: int) -> None:
        """Hash the file of the block done last, and of hidden states those behind it alone."""
        states = [file for file in sorted(self._states(done).glob("*")) if file.is_file()]
        hashes = {}
        for name, digest in self.hashes.items():
            if not name.startswith(f"{STATES}/"):
                hashes[name] = digest
        for file in (self.made / self.files[done - 1], *states):
            hashes[file.relative_to(self.folder).as_posix()] = hash_of_file(file)
        self.hashes = hashes

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

    def trim(self) -> None:
        """Remove whatever `run.json`, as it lies on disk, does not count."""
        path = self.folder / RUN_FILE
        self.done = int(read_json(path)["progress"]["done"]) if path.is_file() else 0
        kept = {path, self.made, self.made / BLOCKS, self.folder / STATES, self._states(self.done)}
        kept |= {self.made / file for file in self.files[: self.done]}
        for folder in (self.made / BLOCKS, self.made, self.folder / STATES):
            for entry in folder.iterdir():
                if entry not in kept:
                    remove_entry(entry)
        if self.tuned.is_dir():
            remove_entry(self.tuned)
        path.with_name(f".{RUN_FILE}.partial").unlink(missing_ok=True)

    def _states(self, done: int) -> Path:
        return self.folder / STATES / f"{done:04d}"


@contextmanager
def working_on(
    destination: Path,
    identity: Identity,
    files: Sequence[str],
    ask: Ask,
    check: Callable[[Run], None],
) -> Iterator[Run | None]:
    """Open a run that becomes the output when the context ends well; None where it is that already.

    `check` refuses, by a BadInput, a run to continue that is none of this model. When it fails, or
    the process ends, the blocks that were committed stay, unless the model itself is damaged.

    Raises: BadInput when nothing may be continued, started over or replaced.
    """
    with claimed(destination) as folder:
        run = open_run(destination, Run(folder, identity, files), ask, check)
        if run is None:
            yield None
            return
        try:
            with explaining(destination, folder):
                run.prepare()
                yield run
                put_in_place(run.finished, destination)
        except BaseException as error:
            bring_back(destination)
            if isinstance(error, Damaged):
                raise
            if is_unfinished(folder) and not isinstance(error, DamagedModel):
                run.trim()
                error.add_note(
                    f"{run.done} of {len(files)} blocks are kept; to continue: {ask.again}"
                )
            elif (folder / ALLOCATION_FILE).is_file() and not isinstance(error, DamagedModel):
                keep_allocation(folder)
                error.add_note(f"the types of the budget are kept; to continue: {ask.again}")
            else:
                discard(folder)
            raise
        discard(folder)


def discard(folder: Path) -> None:
    """Remove a run, first the file that makes it one."""
    (folder / RUN_FILE).unlink(missing_ok=True)
    clear_contents(folder)


def keep_allocation(folder: Path) -> None:
    """Remove all of a run without a block but how its budget is spent, which took long to find."""
    for entry in folder.iterdir():
        if entry.name not in {MARKER_FILE, ALLOCATION_FILE}:
            remove_entry(entry)


def open_run(destination: Path, fresh: Run, ask: Ask, check: Callable[[Run], None]) -> Run | None:
    """Return the run that is there, or a fresh one; None when its output is complete."""
    folder = fresh.folder
    if is_unfinished(folder) and ask.resume:
        check_destination(destination, force=ask.force)
        run = stored_run(folder)
        check_same(destination, run.identity, fresh.identity)
        check_stated(run, fresh, check)
        return run
    refuse_unfinished(destination, folder, ask)
    discard(folder)
    if ask.resume and is_complete(destination, fresh.identity, force=ask.force):
        return None
    check_destination(destination, force=ask.force)
    return fresh


def refuse_other(destination: Path, ask: Ask) -> None:
    """Raise BadInput for an unfinished run that is there and is not to be continued or given up.

    It is for what takes long before a run starts; the run itself looks once more.
    """
    with claimed(destination) as folder:
        refuse_unfinished(destination, folder, ask)


def is_unfinished(folder: Path) -> bool:
    """Say whether a run with at least one block lies in a temporary directory."""
    return (folder / RUN_FILE).is_file() and (folder / MADE).is_dir()


def refuse_unfinished(destination: Path, folder: Path, ask: Ask) -> None:
    """Raise BadInput for an unfinished run that is neither to be continued nor given up."""
    if (folder / TUNING).is_dir() and not is_unfinished(folder) and not ask.force:
        raise BadInput(
            f"output {str(destination)!r}: an unfinished tuning is there; continue it with "
            "edgeq tune --resume, or add --force to start over"
        )
    if is_unfinished(folder) and not ask.resume and not ask.force:
        found = stored_run(folder)
        raise BadInput(
            f"output {str(destination)!r}: "
            f"an unfinished run ({found.done} of {len(found.files)} blocks) is there; "
            "add --resume to continue it or --force to start over"
        )


def stored_run(folder: Path) -> Run:
    """Read the run that is there, with the identity it was started with.

    Raises: BadInput when its file is damaged.
    """
    try:
        content = read_json(folder / RUN_FILE)
        progress = content["progress"]
        identity = content["run"]
        if content["sha256"] != hash_of_content({"run": identity, "progress": progress}):
            raise ValueError("it was changed")
        run = Run(
            folder,
            identity,
            list(progress["files"]),
            progress["done"],
            report_from(progress, RUN_FILE),
            list(progress["backends"]),
            dict(progress["hashes"]),
        )
        check_progress(run)
        return run
    except (BadInput, KeyError, TypeError, ValueError) as error:
        raise Damaged(folder, f"its {RUN_FILE} cannot be read, or was changed") from error


def check_progress(run: Run) -> None:
    """Refuse progress that no run makes. Raises: ValueError, TypeError saying what is wrong."""
    names = (*run.files, *run.backends)
    if not all(isinstance(name, str) for name in names):
        raise TypeError("its names are no texts")
    check_identity(run.identity)
    if isinstance(run.done, bool) or not isinstance(run.done, int):
        raise TypeError("the number of its blocks is none")
    if not 0 < run.done <= len(run.files):
        raise ValueError("it counts blocks that it has not")
    states = f"{STATES}/{run.done:04d}/"
    blocks = {f"{MADE}/{file}" for file in run.files[: run.done]}
    others = {*run.hashes} - blocks
    if not blocks <= {*run.hashes} or not all(map(SHA256.fullmatch, run.hashes.values())):
        raise ValueError("it lacks the hash of a block")
    for name in others:
        if not name.startswith(states) or not STATE_NAME.fullmatch(name.removeprefix(states)):
            raise ValueError("it goes on with a file that is none of its own")


def check_stated(run: Run, fresh: Run, check: Callable[[Run], None]) -> None:
    """Raise BadInput where a run is not as it was written, or has what the model has not.

    `check` raises BadInput for the latter; nothing is touched.
    """
    try:
        if list(run.files) != list(fresh.files):
            raise BadInput("it has other blocks than the model")
        run.check_files()
        check(run)
    except Damaged:
        raise
    except BadInput as error:
        raise Damaged(run.folder, f"it was changed ({error})") from error


def check_same(destination: Path, before: Identity, now: Identity) -> None:
    """Raise BadInput naming what differs between the run that is there and the one asked for."""
    found = differences(before, now)
    if found:
        raise BadInput(
            f"output {str(destination)!r}: "
            f"its unfinished run is another one ({'; '.join(found)}); "
            "continue it with what it was started with, "
            "or start over with --force and without --resume"
        )


def is_complete(destination: Path, identity: Identity, *, force: bool) -> bool:
    """Say whether an output is what this run would write; with force another may be replaced.

    Raises: BadInput for the output of another run that may not be replaced.
    """
    if not destination.exists():
        return False
    try:
        found = differences(identity_of(Checkpoint(destination)), identity)
    except BadInput:
        if force:
            return False
        raise
    if found and not force:
        raise BadInput(
            f"output {str(destination)!r} is complete, "
            f"but of another run ({'; '.join(found)}); "
            "choose another name or pass --force to replace it"
        )
    return not found
