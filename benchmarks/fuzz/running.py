"""Run mutants in forked children with limits of time and memory, and say what became of each.

A child takes many mutants, one after the other, and tells of each before and after it. Where it
dies or hangs, the mutant is known, and a new child goes on behind it.
"""

import os
import random
import resource
import select
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fuzz.inputs import Files, read_files
from benchmarks.fuzz.mutations import BY_ENDING, mutate_bytes
from benchmarks.fuzz.readers import READERS, Case, Escape, Refused, says_the_same, sealed
from edgeq.errors import EdgeqError

SECONDS = 20  # beyond which a mutant hangs
MEMORY = 3 << 30  # bytes that a reader may take beside what the process holds at its start
PER_CHILD = 2000  # mutants, so that what libraries leak does not add up
ACCEPTED, REFUSED = "accepted", "refused"
SEALED_FILES = ("manifest.json", "run.json")
SEALED_SHARE = 0.5
PLANTED_SHARE = 0.04  # of mutants by default: a file is replaced by something that is none
CANARY = "kept.txt"
# What an event of Python's audit writes to: paths, each with the folder it is relative to or -1.
WRITING: Mapping[str, Callable[..., list[tuple[Any, int]]]] = {
    "os.remove": lambda path, folder: [(path, folder)],
    "os.rmdir": lambda path, folder: [(path, folder)],
    "os.mkdir": lambda path, mode, folder: [(path, folder)],
    "os.rename": lambda old, new, here, there: [(old, here), (new, there)],
    "os.link": lambda old, new, here, there: [(new, there)],
    "os.symlink": lambda old, new, folder: [(new, folder)],
    "os.truncate": lambda path, length: [(path, -1)],
    "os.chmod": lambda path, mode, folder: [(path, folder)],
    "shutil.move": lambda old, new: [(old, -1), (new, -1)],
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutant: accepted, refused, or how it escaped."""

    reader: str
    index: int
    kind: str
    detail: str = ""

    @property
    def escaped(self) -> bool:
        return self.kind not in (ACCEPTED, REFUSED)


class Mutants:
    """Makes and reads the mutants of one input, in a work folder of its own.

    A mutant depends on seed, reader, index and the share of planted ones alone.
    """

    planted_share = PLANTED_SHARE

    def __init__(self, reader: str, inputs: Path, work: Path, seed: int) -> None:
        self.reader, self.inputs, self.work, self.seed = reader, inputs, work, seed
        self.folder, self.outputs = work / reader, work / "outputs"
        self.files: Files = read_files(inputs / reader)
        weights = READERS[reader].weights or {"": 1}
        weighted = {name: weight_of(name, weights) for name in self.files}
        self.names = [name for name, weight in weighted.items() if weight]
        self.weights = [weighted[name] for name in self.names]
        self.canary = work / "canary"
        self.start()

    def start(self) -> None:
        """Make the work folder: the input, a place for outputs, and what nothing may touch."""
        shutil.rmtree(self.work, ignore_errors=True)
        (self.canary / "new").mkdir(parents=True)
        for folder in (self.canary, self.canary / "new"):
            (folder / CANARY).write_text("kept", encoding="utf-8")
        self.outputs.mkdir()
        self.restore()

    def restore(self) -> None:
        """Bring the input back to what it was."""
        if self.folder.is_symlink():  # a planted one that stood in the folder's place
            self.folder.unlink()
        elif self.folder.exists():
            shutil.rmtree(self.folder)
        for name, content in self.files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def run(self, index: int) -> Outcome:
        """Make a mutant, read it, and bring everything back."""
        chance = random.Random(f"{self.seed}/{self.reader}/{index}")
        case = self.make(chance)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                READERS[self.reader].read(case)
            kind, detail = ACCEPTED, ""
        except (EdgeqError, Refused):
            kind, detail = REFUSED, ""
        except BaseException as error:
            kind, detail = kind_of(error), f"{case.changed}: {described(error)}"
        finally:
            self.put_back(case)
        if not self.is_untouched():
            kind, detail = "wrote outside", f"{case.changed}: the canary was changed"
            self.start()
        return Outcome(self.reader, index, kind, detail)

    def make(self, chance: random.Random) -> Case:
        """Change one file of the input on disk."""
        [name] = chance.choices(self.names, self.weights)
        path, before = self.folder / name, self.files[name]
        same = is_sealed = False
        if chance.random() < self.planted_share:
            plant(chance, path, self.canary)
        else:
            mutate = BY_ENDING.get(path.suffix, mutate_bytes)
            after = mutate(chance, before)
            if path.name in SEALED_FILES and chance.random() < SEALED_SHARE:
                is_sealed, after = True, sealed(name, after)
            same = says_the_same(name, before, after)
            path.write_bytes(after)
        output = self.outputs / "out"
        return Case(self.folder, output, self.inputs, name, chance, same, is_sealed)

    def put_back(self, case: Case) -> None:
        if os.listdir(self.outputs):
            shutil.rmtree(self.outputs)
            self.outputs.mkdir()
        if self.reader == "run" or not self.is_plain(case.changed):
            self.restore()
            return
        (self.folder / case.changed).write_bytes(self.files[case.changed])

    def is_plain(self, name: str) -> bool:
        path = self.folder / name
        return path.is_file() and not path.is_symlink() and path.parent.is_dir()

    def is_untouched(self) -> bool:
        """Say whether canary and work folder hold what they held."""
        kept = (self.canary / CANARY, self.canary / "new" / CANARY)
        alive = all(path.is_file() and path.stat().st_size == len("kept") for path in kept)
        return alive and set(os.listdir(self.work)) == {"canary", "outputs", self.reader}


def weight_of(name: str, weights: Any) -> int:
    """Find how often a file is changed: by the longest start of its path that has a weight."""
    starts = [start for start in weights if name.startswith(start)]
    return weights[max(starts, key=len)] if starts else 0


def plant(chance: random.Random, path: Path, canary: Path) -> None:
    """Replace a file, or the folder it lies in, by something that edgeq did not write."""
    kind = chance.randrange(7)
    if kind == 0 and path.parent.name in ("new", "blocks", "0001", "states"):
        folder = chance.choice((path.parent, path.parent.parent))
        shutil.rmtree(folder)
        folder.symlink_to(canary)
        return
    path.unlink()
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(canary / CANARY)
    elif kind == 3:
        path.symlink_to(canary / "absent")
    elif kind == 4:
        path.symlink_to(path.name)
    elif kind == 5:
        path.symlink_to("/dev/zero")
    elif kind == 6:
        os.mkfifo(path)


def kind_of(error: BaseException) -> str:
    """Name an escape in a word or two, with the place in edgeq that it passed last."""
    if isinstance(error, Escape):
        return str(error)
    if isinstance(error, Outside):
        return "wrote outside"
    frames = traceback.extract_tb(error.__traceback__)
    places = [frame for frame in frames if "edgeq" in Path(frame.filename).parts[-3:-1][0:]]
    inside = places or [frame for frame in frames if "edgeq" in frame.filename] or frames
    last = inside[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.name}"


def described(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


class Outside(Exception):
    """A write outside of the folders that a reader may write to."""


def watch(allowed: Path) -> None:
    """Raise Outside wherever this process opens for writing, moves or removes something else.

    It holds until the process ends.
    """
    inside = str(allowed.resolve()) + os.sep

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if not writes or isinstance(path, int):
                return
            written = [(path, -1)]
        elif event in WRITING:
            written = WRITING[event](*arguments)
        else:
            return
        for path, folder in written:
            whole = place_of(path, folder)
            if not (whole + os.sep).startswith((inside, "/dev/")):
                raise Outside(f"{event} {whole}")

    sys.addaudithook(check)


def place_of(path: Any, folder: int) -> str:
    """Find where a path leads, itself not followed where it is a link."""
    if isinstance(path, int):
        return os.path.realpath(f"/proc/self/fd/{path}")
    name = os.fsdecode(path)
    if folder != -1:
        name = os.path.join(os.path.realpath(f"/proc/self/fd/{folder}"), name)
    above, last = os.path.split(os.path.abspath(name))
    return os.path.join(os.path.realpath(above), last)


def run_child(reader: str, indices: Sequence[int], places: tuple[Path, Path], seed: int) -> int:
    """Fork a child that runs mutants and writes its outcomes; return the end to read them from."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        CHILDREN[reading] = child
        return reading
    status = 1
    try:
        os.close(reading)
        silence()
        inputs, work = places
        mutants = Mutants(reader, inputs, work, seed)
        limit()
        watch(work)
        for index in indices:
            tell(writing, f"begin {index}")
            outcome = mutants.run(index)
            tell(writing, "\t".join(("end", str(index), outcome.kind, outcome.detail)))
        status = 0
    except BaseException as error:
        tell(writing, f"broken\t{type(error).__name__}: {described(error)}")
    finally:
        os._exit(status)


CHILDREN: dict[int, int] = {}


def tell(writing: int, line: str) -> None:
    os.write(writing, (" ".join(line.split("\n")) + "\n").encode("utf-8", "replace"))


def silence() -> None:
    """Give the child nothing to print to, and let it write no more than readers do.

    Libraries in C write to the terminal themselves.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(nothing, handle)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.dont_write_bytecode = True  # of modules that are imported late
    os.fsync = os.fstat  # type: ignore[assignment]


def limit() -> None:
    """Bound the memory of this process, and let it leave no core file."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def outcomes(
    reader: str, indices: Sequence[int], places: tuple[Path, Path], seed: int
) -> Iterator[Outcome]:
    """Run mutants in children, one child at a time, and yield what became of each."""
    left = list(indices)
    while left:
        batch = left[:PER_CHILD]
        done = 0
        for outcome in child_outcomes(reader, batch, places, seed):
            done += 1
            yield outcome
        assert done, f"no mutant of {reader!r} could be run"
        left = left[done:]


def child_outcomes(
    reader: str, indices: Sequence[int], places: tuple[Path, Path], seed: int
) -> Iterator[Outcome]:
    """Run one child; where it dies or hangs, its last outcome says so."""
    reading = run_child(reader, indices, places, seed)
    child = CHILDREN.pop(reading)
    begun: int | None = None
    ended = False
    rest = b""
    try:
        while True:
            ready, _, _ = select.select([reading], [], [], SECONDS)
            if not ready:
                os.kill(child, signal.SIGKILL)
                if begun is not None:
                    yield Outcome(reader, begun, "hang", f"over {SECONDS} s")
                return
            data = os.read(reading, 1 << 16)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                word, *fields = line.decode().split("\t")
                if word == "end":
                    begun = None
                    yield Outcome(reader, int(fields[0]), fields[1], fields[2])
                elif word == "broken":
                    raise RuntimeError(f"the fuzzer itself failed on {reader}: {fields[0]}")
                else:
                    begun = int(word.split()[1])
            if not data:
                ended = True
                break
    finally:
        os.close(reading)
        if not ended:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if begun is not None:
        code = os.waitstatus_to_exitcode(status)
        kind = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        yield Outcome(reader, begun, kind)
