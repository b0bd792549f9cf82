"""A run that can be stopped at any moment and continued: what it has on disk until it is done.

In the output's temporary directory lie new/ (what becomes the checkpoint), states/NNNN/ (both
streams' hidden states behind NNNN blocks) and run.json. A run that tunes also has tuning/ (how far
that has come, see `edgeq.run.tuning`) and tuned/, which then becomes the checkpoint. run.json says
what the run is, how far it came, and the hash of every file that it goes on with. Whatever run.json
does not know of is removed. When a block comes to count is `edgeq.run.commits`.

What lies there may be forged: links are refused by `edgeq.files.ownership` before a run is opened,
and what run.json states is compared with the model before anything is touched.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput, DamagedModel
from edgeq.files.hashes import hash_of_content
from edgeq.files.json_files import read_json
from edgeq.files.ownership import (
    ALLOCATION_FILE,
    MADE,
    MARKER_FILE,
    RUN_FILE,
    STATES,
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
)
from edgeq.run.commits import Damaged, Run
from edgeq.run.identity import Identity, check_identity, differences, identity_of
from edgeq.run.report import report_from

SHA256 = re.compile(r"[0-9a-f]{64}")
STATE_NAME = re.compile(r"[\w-]+\.npy")


@dataclass(frozen=True, slots=True)
class Ask:
    """The caller's choice between refusing, replacing and continuing what is there.

    force replaces it, resume continues it. again says how to continue, for the error of a run that
    stops.
    """

    force: bool = False
    resume: bool = False
    again: str = "the same call with resume=True"


@contextmanager
def working_on(
    destination: Path,
    identity: Identity,
    files: Sequence[str],
    ask: Ask,
    check: Callable[[Run], None],
) -> Iterator[Run | None]:
    """Open a run that becomes the output when the context ends well; None where it is that already.

    `check` refuses, by a BadInput, a run to continue that is none of this model. When the context
    fails, the blocks that are finished are committed, and those that are stay, unless the model
    itself is damaged. Those that are committed stay too where the process ends.

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
                run.settle()
                put_in_place(run.output, destination)
        except BaseException as error:
            bring_back(destination)
            if isinstance(error, DamagedModel):
                run.abandon()
            else:
                run.keep()
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
