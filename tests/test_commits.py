"""When blocks of a run come to count: how often they are committed, beside what, and what an error
or a kill leaves of them.
"""

import errno
import json
import threading
from functools import partial

import ml_dtypes
import numpy as np
import pytest

from edgeq.files.background import Abandoned, Background
from edgeq.files.hashes import hash_of_file
from edgeq.run import commits
from edgeq.run.commits import RESUME_SECONDS, Run
from edgeq.run.resume import stored_run
from edgeq.stopwatch import Stopwatch
from edgeq.streams.hidden_states import StatesInMemory, StatesOnDisk
from edgeq.streams.saved_states import HeldBatches, SavedStream

IDENTITY = {
    "format_version": 1,
    "edgeq": "1",
    "model": "tiny",
    "source": {"fingerprint": "0", "dtype": "float32"},
    "recipe": {},
    "calibration": None,
    "companions": {},
}
FILES = [f"blocks/{index:04d}.safetensors" for index in range(5)]


class Timer:
    """A clock that stands until it is moved on."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Gate:
    """Hidden states, all equal to how many blocks they are behind, that are written when told."""

    def __init__(self, *, copies=False):
        self.blocks, self.copies, self.let_go = 0, copies, None
        self.opened = threading.Event()
        self.opened.set()
        self.error = None

    def hold(self, let_go):
        self.let_go = let_go
        values = np.full((2, 3, 4), self.blocks, np.float32)
        return HeldBatches(
            [("full-00000", lambda: partial(self.fetch, values))], copies=self.copies
        )

    def fetch(self, values):
        assert self.opened.wait(60)
        if self.error is not None:
            raise self.error
        return values


@pytest.fixture
def timer():
    return Timer()


@pytest.fixture
def run(tmp_path, timer):
    """A run whose blocks' files are what `solve` writes."""
    run = Run(tmp_path, IDENTITY, FILES, timer=timer)
    run.prepare()
    return run


def solve(run, gate, blocks=1):
    """Write the files of the next blocks, and let each be finished."""
    for _ in range(blocks):
        (run.made / FILES[gate.blocks]).write_text(f"block {gate.blocks}")
        gate.blocks += 1
        run.finish(gate.blocks, gate)


def committed(run):
    """How many blocks run.json counts, and whether all files that it names are as it says."""
    if not (run.folder / "run.json").exists():
        return 0
    found = stored_run(run.folder)
    found.check_files()
    assert len(found.hashes) == found.done + (found.done < len(FILES))
    states = [path.name for path in (run.folder / "states").iterdir()]
    assert states in ([], [f"{found.done:04d}"])
    if found.done < len(FILES):
        values = np.load(run.folder / "states" / f"{found.done:04d}" / "full-00000.npy")
        assert (values == found.done).all()
    return found.done


def test_quick_blocks_are_committed_once_in_a_while_and_at_the_end(run, timer):
    gate = Gate()
    solve(run, gate)
    timer.now += RESUME_SECONDS - 1
    solve(run, gate)
    assert not run._background.is_busy and committed(run) == 0
    timer.now += 1
    solve(run, gate)
    run._background.wait()
    assert committed(run) == 3
    timer.now += RESUME_SECONDS - 1
    solve(run, gate)
    assert committed(run) == 3
    solve(run, gate)
    run.settle()
    assert committed(run) == 5


def test_a_long_block_is_committed_at_once(run, timer):
    gate = Gate()
    for blocks in (1, 2):
        timer.now += 10 * RESUME_SECONDS
        solve(run, gate)
        run._background.wait()
        assert committed(run) == blocks


def test_blocks_are_solved_while_copied_states_are_written(run, timer, monkeypatch):
    """The writer of the first commit is held back; nothing waits for it but the last commit."""
    monkeypatch.setattr(commits, "RESUME_SECONDS", 0.0)
    gate = Gate(copies=True)
    gate.opened.clear()
    solve(run, gate, 3)
    gate.let_go()
    assert run._background.is_busy and committed(run) == 0
    gate.opened.set()
    run._background.wait()
    assert committed(run) == 1
    solve(run, gate)
    run._background.wait()
    assert committed(run) == 4


def test_states_that_are_no_copies_are_waited_for_before_they_are_overwritten(run, monkeypatch):
    """Such a wait is counted as writing, and not as the forward pass in which it falls."""
    monkeypatch.setattr(commits, "RESUME_SECONDS", 0.0)
    ticks = iter(range(100))
    run.clock = Stopwatch(lambda: float(next(ticks)))
    gate = Gate()
    gate.opened.clear()
    solve(run, gate)
    opener = threading.Timer(0.02, gate.opened.set)
    opener.start()
    gate.let_go()
    assert committed(run) == 1
    assert run.clock.seconds == {"write": 1.0, "forward passes": -1.0}


def test_a_run_that_stops_keeps_what_is_finished_unless_it_is_overwritten(run):
    gate = Gate()
    solve(run, gate, 2)
    assert committed(run) == 0
    run.keep()
    assert committed(run) == 2
    solve(run, gate)
    gate.let_go()  # the states behind it are gone
    run.keep()
    run.trim()
    assert committed(run) == 2
    files = sorted(path.name for path in (run.made / "blocks").iterdir())
    assert files == ["0000.safetensors", "0001.safetensors"]


def test_a_failed_commit_is_raised_by_the_next_and_leaves_the_one_before(run, monkeypatch):
    monkeypatch.setattr(commits, "RESUME_SECONDS", 0.0)
    gate = Gate()
    solve(run, gate)
    run._background.wait()
    gate.error = OSError(errno.ENOSPC, "No space left on device")
    solve(run, gate)
    with pytest.raises(OSError, match="No space left"):
        solve(run, gate)
    run.keep()  # tries once more
    assert committed(run) == 1
    gate.error = None
    solve(run, gate)
    run.settle()
    assert committed(run) == 4


def test_what_is_given_up_is_not_counted(run, monkeypatch):
    monkeypatch.setattr(commits, "RESUME_SECONDS", 0.0)
    gate = Gate()
    gate.opened.clear()
    solve(run, gate)
    opener = threading.Timer(0.02, gate.opened.set)
    opener.start()
    run.abandon()
    assert committed(run) == 0 and list((run.folder / "states").iterdir()) == []


def test_blocks_without_streams_are_committed_too(run):
    (run.made / FILES[0]).write_text("a block")
    run.finish(1, None)
    run.settle()
    assert json.loads((run.folder / "run.json").read_text())["progress"]["done"] == 1
    assert set(stored_run(run.folder).hashes) == {f"new/{FILES[0]}"}


def test_one_piece_of_work_runs_at_a_time_and_its_error_is_given_once():
    background, opened = Background(), threading.Event()

    def work():
        assert opened.wait(60)
        background.go_on()
        raise ValueError("in the thread")

    background.begin(work)
    assert background.is_busy
    with pytest.raises(AssertionError, match="one piece of work"):
        background.begin(work)
    opened.set()
    background.wait()
    with pytest.raises(ValueError, match="in the thread"):
        background.check()
    background.check()
    background.begin(work)
    background.abandon()
    background.check()
    with pytest.raises(Abandoned):
        background.go_on()


NUMBERS = [[[1.0, -2.5, 3e-3]], [[0.0, 1e30, -7.0]]]


@pytest.mark.parametrize("stored", ["<f4", "<f2", ml_dtypes.bfloat16, "bits of bfloat16"])
@pytest.mark.parametrize("read_as", ["<f4", ml_dtypes.bfloat16, np.uint16])
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_states_keep_their_type_and_come_back_in_another(tmp_path, stored, read_as, place):
    with np.errstate(over="ignore"):
        numbers = np.array(NUMBERS).astype("<f4" if stored == "bits of bfloat16" else stored)
    if stored == "bits of bfloat16":
        numbers = numbers.astype(ml_dtypes.bfloat16)
    given = numbers.view(np.uint16) if stored == "bits of bfloat16" else numbers
    on_disk = place == "disk"
    states = StatesOnDisk(tmp_path, np.asarray, np.asarray) if on_disk else StatesInMemory()
    states.append(given)
    held = HeldBatches(
        [("full-00000", partial(states.lend, 0, lambda hidden: lambda: hidden))], copies=False
    )
    folder = tmp_path / "states"
    folder.mkdir()
    held.begin()
    [(name, digest)] = held.save(folder)
    assert [path.name for path in folder.iterdir()] == [name]
    assert digest == hash_of_file(folder / name)
    assert np.load(folder / name, allow_pickle=False).nbytes == numbers.nbytes
    found = SavedStream(folder, "full").read(numbers.shape, np.dtype(read_as))
    assert found.dtype == read_as
    expected = numbers.astype("<f4") if read_as == "<f4" else numbers.astype(ml_dtypes.bfloat16)
    got = found.view(ml_dtypes.bfloat16) if read_as == np.uint16 else found
    np.testing.assert_array_equal(got, expected)


def test_what_is_no_states_is_refused(tmp_path):
    np.save(tmp_path / "full-00000.npy", np.ones((2, 3, 4), np.uint16))
    with pytest.raises(ValueError, match="uint16 instead of numbers"):
        SavedStream(tmp_path, "full").read((2, 3, 4), np.dtype("<f4"))
    np.save(tmp_path / "quantized-00000-bfloat16.npy", np.ones((2, 3, 4), np.float32))
    with pytest.raises(ValueError, match="float32 instead of numbers"):
        SavedStream(tmp_path, "quantized").read((2, 3, 4), np.dtype("<f4"))
    np.save(tmp_path / "quantized-00000-bfloat16.npy", np.ones((2, 3, 4), np.uint16))
    for shape in [(2, 3, 5), (3, 3, 4)]:
        with pytest.raises(ValueError, match="instead of"):
            SavedStream(tmp_path, "quantized").read(shape, np.dtype("<f4"))
