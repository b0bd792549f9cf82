"""`edgeq quantize --resume`: after any stop the output has the bytes of a run that was never
stopped.
"""

import hashlib
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings

import models
import pytest
import torch
from command_line import finished
from exported_files import gguf_in
from safetensors.torch import load_file, save_file

import edgeq.run.identity as run_identity
from edgeq.checkpoint.reader import Checkpoint
from edgeq.commands.failures import describe
from edgeq.commands.options import with_flag
from edgeq.files.locking import acquire
from edgeq.files.ownership import MARKER_FILE, TIMED_FILES
from edgeq.recipe.settings import defaults
from edgeq.run import commits, pipeline
from edgeq.run.measured import MEASURED_FILE, PAGE_FILE
from edgeq.run.report import read_report

SHORT = ["--samples", "64", "--sequence-length", "128", "--backend", "cpu"]
SHORT += ["--calibration", "speeches"]
GLASS_WIDTH = 128
ROUNDING = [
    "--solver",
    "rtn",
    "--scales",
    "none",
    "--propagation-strength",
    "0",
    "--backend",
    "cpu",
]
KEPT = re.compile(r"1 of 2 blocks are kept; to continue: (edgeq quantize .* --resume)\n")

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.disk]


def contents(folder):
    """A hash of every file of a directory that equal runs write equally."""
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name not in TIMED_FILES
    )
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def at_call(number, action, function):
    """The function, with something that happens just before its call of that number."""
    calls = iter(range(1, 1_000_000))

    def wrapped(*arguments, **options):
        if next(calls) == number:
            action()
        return function(*arguments, **options)

    return wrapped


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def stop(edgeq, saved_model, quick, tmp_path, monkeypatch):
    """Run until something happens behind the first of two blocks; gives the result."""

    def run(action, *options, model=saved_model):
        with monkeypatch.context() as patched:
            patched.setattr(pipeline, "write_part", at_call(2, action, pipeline.write_part))
            return edgeq("quantize", model, "-o", tmp_path / "out", *quick, *options)

    return run


@pytest.fixture(scope="module")
def undisturbed(run_once, saved_model, quick):
    return contents(run_once("tiny", saved_model, quick))


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    """The output of a run that nothing stops."""

    def run(name, model, options):
        folder = tmp_path_factory.mktemp(name) / "out"
        finished("quantize", model, "-o", folder, *options)
        return folder

    return run


EVERY_BLOCK = (
    "import edgeq.run.commits as commits; commits.RESUME_SECONDS = 0; "
    "from edgeq.commands.main import main; main()"
)
"""What `python -m edgeq` runs, but that every block is committed at once."""


def command(model, output, options):
    return [sys.executable, "-c", EVERY_BLOCK, "quantize", str(model), "-o", str(output), *options]


@pytest.fixture
def every_block(monkeypatch):
    """Every block is committed while the next one is solved, however quick it is."""
    monkeypatch.setattr(commits, "RESUME_SECONDS", 0.0)


def one_thread_each():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def glass(tmp_path_factory):
    """glassllm as a directory of safetensors with its tokenizer."""
    return models.save_glass(tmp_path_factory.mktemp("model") / "glassllm")


@pytest.fixture(scope="module")
def glass_undisturbed(run_once, glass):
    return contents(run_once("glass", glass, SHORT))


def kill_after(process, blocks, part):
    """Let a process finish so many blocks, kill it in the next one; gives its exit status.

    The next one takes about as long as the last, on a fast machine and on a busy one.
    """
    shown = [time.monotonic()]
    for line in process.stderr:
        if line.startswith("block "):
            shown.append(time.monotonic())
        if line.startswith(f"block {blocks}/"):
            break
    time.sleep(part * min(shown[-1] - shown[-2], 0.3))  # before the first lie all imports
    process.kill()
    return process.wait()


@pytest.mark.slow  # a kill at every step on disk, below, is tried by default
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_killed_run_continues_to_the_same_bytes(
    edgeq, glass, glass_undisturbed, tmp_path, blocks
):
    part = random.Random(blocks).uniform(0, 0.5)
    arguments = command(glass, tmp_path / "out", SHORT)
    with subprocess.Popen(
        arguments, stderr=subprocess.PIPE, text=True, env=one_thread_each()
    ) as process:
        assert kill_after(process, blocks, part) == -signal.SIGKILL
    assert names(tmp_path) == [".out.edgeq-partial"]
    result = edgeq("quantize", glass, "-o", tmp_path / "out", *SHORT, "--resume")
    kept = re.match(r"(\d) of 4 blocks are there\n", result.err)
    # the last one was perhaps still on its way to the disk
    assert (result.status, int(kept[1] if kept else 0) >= blocks - 1) == (0, True), result.err
    assert names(tmp_path) == ["out"]
    assert contents(tmp_path / "out") == glass_undisturbed


DISK_STEPS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")


def killed_at_step(number, run):
    """Run in a child that dies just before its disk step of that number; whether it came that
    far.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of forks beside threads, which one_thread keeps idle
        child = os.fork()
    if child == 0:
        steps = iter(range(1_000_000))
        for name in DISK_STEPS:
            setattr(os, name, dying_at(number, steps, getattr(os, name)))
        try:
            run()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def dying_at(number, steps, function):
    def step(*arguments, **options):
        if next(steps) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return step


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.usefixtures("every_block")
def test_a_kill_at_any_step_on_disk_leaves_what_can_be_continued(
    edgeq, saved_model, quick, undisturbed, tmp_path
):
    """Every seventh step of a run, from making its directory to giving the output its name and
    cleaning up.
    """
    arguments, reached = ["quantize", saved_model, "-o", tmp_path / "out", *quick], []
    for number in range(0, 1000, 7):
        if not killed_at_step(number, lambda: edgeq(*arguments)):
            break
        reached.append(number)
        result = edgeq(*arguments, "--resume")
        assert result.status == 0, result.err
        assert names(tmp_path) == ["out"]
        assert contents(tmp_path / "out") == undisturbed, number
        shutil.rmtree(tmp_path / "out")
    assert len(reached) >= 6


def test_blocks_that_do_not_count_yet_are_solved_again_to_the_same_bytes(
    edgeq, save_model, quick, tmp_path, monkeypatch
):
    """Killed in the fourth block, where only the second was committed."""
    model = save_model("llama", num_hidden_layers=4)
    finished("quantize", model, "-o", tmp_path / "whole", *quick)
    with monkeypatch.context() as patched:
        patched.setattr(commits.Run, "_is_due", lambda run: run._finished.blocks == 2)
        patched.setattr(commits.Run, "keep", commits.Run.abandon)
        patched.setattr(pipeline, "write_part", at_call(4, interrupt, pipeline.write_part))
        stopped = edgeq("quantize", model, "-o", tmp_path / "out", *quick)
    assert "2 of 4 blocks are kept" in stopped.err
    again = edgeq("quantize", model, "-o", tmp_path / "out", *quick, "--resume")
    assert again.err.startswith("2 of 4 blocks are there\n")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_ctrl_c_names_the_command_that_continues(edgeq, stop, undisturbed, tmp_path):
    result = stop(interrupt)
    assert result.status == 130
    line = result.err.splitlines()[-1]
    assert line.startswith("edgeq: stopped; ")
    again = KEPT.search(result.err)[1]
    assert edgeq(*shlex.split(again)[1:]).status == 0
    assert contents(tmp_path / "out") == undisturbed
    assert names(tmp_path) == ["out"]


def test_a_run_that_is_stopped_twice_continues(edgeq, stop, undisturbed, tmp_path, monkeypatch):
    again = shlex.split(KEPT.search(stop(interrupt).err)[1])[1:]
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "write_head", at_call(1, interrupt, pipeline.write_head))
        assert "2 of 2 blocks are kept" in edgeq(*again).err
    assert edgeq(*again).status == 0
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("other", ["reference", "mlx"])
def test_another_backend_continues_and_both_are_recorded(edgeq, stop, tmp_path, other):
    if other == "mlx":
        pytest.importorskip("mlx_lm", reason="MLX has no build for this system")
    again = shlex.split(KEPT.search(stop(interrupt).err)[1])[1:]
    result = edgeq(*again, "--backend", other)
    assert (result.status, result.err.splitlines()[0]) == (0, "1 of 2 blocks are there")
    assert Checkpoint(tmp_path / "out").head["backend"] == f"cpu, {other}"
    assert len(read_report(Checkpoint(tmp_path / "out")).layers) == 14


def test_plain_rounding_continues_without_running_the_model(
    edgeq, stop, tmp_path, saved_model, quick
):
    assert KEPT.search(stop(interrupt, *ROUNDING).err)
    arguments = [saved_model, *quick, *ROUNDING]
    result = edgeq("quantize", *arguments, "-o", tmp_path / "out", "--resume", "--json")
    assert not {"tokenize", "load model"} & set(json.loads(result.out)["seconds"])
    assert edgeq("quantize", *arguments, "-o", tmp_path / "other").status == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def of_other_weights(model):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    return []


def of_another_tokenizer(model):
    (model / "tokenizer.json").write_text((model / "tokenizer.json").read_text() + "\n")
    return []


def of_another_text(model):
    (model.parent / "other.txt").write_text("another text of a hundred words " * 100)
    return ["--calibration", model.parent / "other.txt"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: ["--bits", "3"], "recipe setting bits: was 4, now 3"),
        (lambda _: ["--keep-dense", "*.o_proj"], "recipe setting overrides: was [], now [{"),
        (of_another_text, "calibration text: was some.txt=1, now some.txt=1, other.txt=1"),
        (of_other_weights, "model: its weights or config are others"),
        (of_another_tokenizer, "model: its file tokenizer.json is another"),
    ],
)
def test_another_run_is_not_continued_and_the_line_says_what_differs(
    edgeq, stop, model, quick, tmp_path, change, words
):
    stop(interrupt, model=model)
    before = contents(tmp_path / ".out.edgeq-partial")
    result = edgeq("quantize", model, "-o", tmp_path / "out", *quick, *change(model), "--resume")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert words in result.err
    assert contents(tmp_path / ".out.edgeq-partial") == before


@pytest.mark.parametrize(
    ("name", "reason"), [("book.txt", ""), ("self", "writes other text on another framework")]
)
def test_another_text_of_the_same_name_is_told_apart(name, reason):
    calibration = {"sha256": "1", "texts": [{"name": name, "share": 1.0}]}
    before = {
        **dict.fromkeys(run_identity.KEYS),
        "recipe": {},
        "companions": {},
        "calibration": calibration,
    }
    (found,) = run_identity.differences(
        before, before | {"calibration": calibration | {"sha256": "2"}}
    )
    assert found.startswith("calibration text: it is another") and reason in found
    assert ("framework" in found) == bool(reason)


def test_another_version_does_not_continue(edgeq, stop, saved_model, quick, tmp_path, monkeypatch):
    stop(interrupt)
    monkeypatch.setattr(run_identity, "__version__", "99.0")
    result = edgeq("quantize", saved_model, "-o", tmp_path / "out", *quick, "--resume")
    assert 'edgeq version: was "' in result.err and 'now "99.0"' in result.err


def test_an_unfinished_run_is_neither_continued_nor_lost_unasked(
    edgeq, stop, undisturbed, saved_model, quick, tmp_path
):
    stop(interrupt)
    before = contents(tmp_path / ".out.edgeq-partial")
    arguments = ["quantize", saved_model, "-o", tmp_path / "out", *quick]
    refused = edgeq(*arguments)
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert "an unfinished run (1 of 2 blocks) is there; add --resume" in refused.err
    assert contents(tmp_path / ".out.edgeq-partial") == before
    assert edgeq(*arguments, "--force").err.startswith("block 1/2")
    assert contents(tmp_path / "out") == undisturbed


def test_a_damaged_unfinished_run_is_refused_in_one_line(edgeq, stop, saved_model, quick, tmp_path):
    stop(interrupt)
    partial = tmp_path / ".out.edgeq-partial"
    arguments = ["quantize", saved_model, "-o", tmp_path / "out", *quick, "--resume"]

    def refused(words):
        before = contents(partial)
        result = edgeq(*arguments)
        assert (result.status, result.err.count("\n")) == (1, 1)
        assert f"{words}; start over with --force" in result.err and "to continue" not in result.err
        assert contents(partial) == before

    states = partial / "states" / "0001" / "quantized-00000.npy"
    block = partial / "new" / "blocks" / "0000.safetensors"
    for file in (states, block):
        whole = file.read_bytes()
        changed = bytearray(whole)
        changed[-9] ^= 1
        for damaged in (whole[:-1], bytes(changed)):
            file.write_bytes(damaged)
            refused(f"{file.relative_to(partial)} was changed or damaged")
        file.write_bytes(whole)
    block.rename(tmp_path / "elsewhere")
    refused("new/blocks/0000.safetensors is missing")
    (tmp_path / "elsewhere").rename(block)
    stated = (partial / "run.json").read_text()
    for text in (stated.replace('"done": 1', '"done": 2'), '{"run": {}}', "{"):
        (partial / "run.json").write_text(text)
        refused("its run.json cannot be read, or was changed")
    assert edgeq(*arguments[:-1], "--force").status == 0
    assert names(tmp_path) == ["out"]


def test_weights_that_cannot_be_right_end_a_run_without_advice_to_continue(
    edgeq, model, quick, tmp_path
):
    """Those outside of the blocks before any work, those of a block when it is reached."""
    weights = load_file(model / "model.safetensors")
    for name, blocks in (
        ("model.norm.weight", []),
        ("model.layers.1.mlp.up_proj.weight", ["block 1/2"]),
    ):
        broken = {key: tensor.clone() for key, tensor in weights.items()}
        broken[name].view(-1)[3] = torch.nan
        save_file(broken, model / "model.safetensors")
        result = edgeq("quantize", model, "-o", tmp_path / "out", *quick, "--force")
        *shown, line = result.err.splitlines()
        assert result.status == 1
        assert [text.partition(",")[0] for text in shown] == blocks
        assert f"tensor '{name}'" in line and line.endswith(
            "holds NaN or infinity; fetch the checkpoint again"
        )
        assert not (tmp_path / ".out.edgeq-partial").exists()


def test_a_log_file_has_no_place_in_the_output(refuse, saved_model, tmp_path):
    line = refuse(saved_model, "--log-file", tmp_path / "out" / "run.log")
    assert "run.log' lies in the output; choose a place outside of" in line


def test_two_processes_do_not_write_one_output(edgeq, saved_model, quick, tmp_path):
    lock = acquire(tmp_path / ".out.edgeq-partial", MARKER_FILE)
    try:
        result = edgeq("quantize", saved_model, "-o", tmp_path / "out", *quick)
    finally:
        os.close(lock)
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "is being written by another edgeq process" in result.err
    assert edgeq("quantize", saved_model, "-o", tmp_path / "out", *quick).status == 0
    assert names(tmp_path) == ["out"]


def test_a_complete_output_gets_what_is_missing_and_stays_as_it_is(
    edgeq, saved_model, quick, tmp_path
):
    """Exports that are there are kept, also in what the last screen names."""
    arguments = ["quantize", saved_model, "-o", tmp_path / "out", *quick]
    assert (
        edgeq(*arguments, "--export", "gguf", "--resume").status == 0
    )  # nothing to continue: a run as any other
    before = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "out").rglob("*")
        if path.is_file() and path.name not in {MEASURED_FILE, PAGE_FILE}  # which are renewed
    }
    result = edgeq(*arguments, "--export", "gguf", "--export", "onnx", "--resume")
    assert (result.status, result.err) == (0, "")
    assert "format 'gguf' was there already" in " ".join(result.out.split())
    assert f"llama-cli -m {gguf_in(tmp_path / 'out' / 'gguf')}" in result.out
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert (tmp_path / "out" / "onnx" / "model.onnx").is_file()
    changed = edgeq(*arguments, "--export", "onnx", "--qdq", "--resume")
    assert (changed.status, changed.err.count("\n")) == (1, 1)
    assert (
        "is there already, but it was made with other options (accuracy_level 4, qdq false)"
        in changed.err
    )
    (tmp_path / "out" / "onnx" / "model.onnx.data").write_bytes(b"")
    damaged = edgeq(*arguments, "--export", "onnx", "--resume")
    assert (damaged.status, damaged.err.count("\n")) == (1, 1)
    replacing = re.search(
        r"its file model.onnx.data was changed or damaged; replace it: edgeq (.*);", damaged.err
    )[1]
    assert edgeq(*shlex.split(replacing)).status == 0
    assert edgeq(*arguments, "--export", "onnx", "--resume").status == 0
    refused = edgeq(*arguments, "--bits", "3", "--resume")
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert "is complete, but of another run (recipe setting bits: was 4, now 3)" in refused.err


def test_a_stopped_replacement_leaves_the_old_output_until_it_is_continued(
    edgeq, stop, undisturbed, saved_model, quick, tmp_path
):
    assert edgeq("quantize", saved_model, "-o", tmp_path / "out", *quick, *ROUNDING).status == 0
    old = contents(tmp_path / "out")
    again = shlex.split(KEPT.search(stop(interrupt, "--force").err)[1])[1:]
    assert contents(tmp_path / "out") == old
    assert "--force" in edgeq(*[word for word in again if word != "--force"]).err
    assert edgeq(*again).status == 0
    assert contents(tmp_path / "out") == undisturbed


def test_a_limit_on_files_ends_with_one_line_and_a_run_that_continues(
    edgeq, stop, undisturbed, tmp_path, monkeypatch
):
    def commit_at_once(run, *arguments):  # the limit is one of the whole process
        finish(run, *arguments)
        run.settle()

    finish = commits.Run.finish
    monkeypatch.setattr(commits.Run, "finish", commit_at_once)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        result = stop(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1])))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.status == 1
    assert "cannot be written: a file grew to the size limit" in result.err.splitlines()[-1]
    assert edgeq(*shlex.split(KEPT.search(result.err)[1])[1:]).status == 0
    assert contents(tmp_path / "out") == undisturbed


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for the states behind one block, not for those behind two at a
    time.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    full_precision = defaults("balanced")["propagation_share"]
    states = 64 * 128 * GLASS_WIDTH * 4 * (1 + full_precision)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(1.5 * states)}", "tmpfs", str(folder)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("this user may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.usefixtures("every_block")
def test_a_full_disk_ends_with_one_line_and_a_run_that_continues(
    edgeq, glass, glass_undisturbed, small_disk
):
    result = edgeq("quantize", glass, "-o", small_disk / "out", *SHORT)
    assert result.status == 1
    line = result.err.splitlines()[-1]
    assert "cannot be written: the disk is full" in line
    assert names(small_disk) == [".out.edgeq-partial"]
    assert names(small_disk / ".out.edgeq-partial" / "states") == ["0001"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    again = re.search(r"1 of 4 blocks are kept; to continue: (.*)", line)[1]
    assert edgeq(*shlex.split(again)[1:]).status == 0
    assert contents(small_disk / "out") == glass_undisturbed
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused = edgeq("quantize", glass, "-o", small_disk / "other", *SHORT)
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert "is not a directory that can be written to" in refused.err


def test_a_source_that_vanishes_leaves_a_run_that_continues(edgeq, stop, model, quick, tmp_path):
    weights, hidden = model / "model.safetensors", model / "elsewhere"
    result = stop(lambda: weights.rename(hidden), model=model)
    assert result.status == 1
    assert result.err.splitlines()[-1].startswith(
        f"edgeq: '{weights}' cannot be read or written (No such file"
    )
    hidden.rename(weights)
    assert edgeq(*shlex.split(KEPT.search(result.err)[1])[1:]).status == 0
    assert edgeq("quantize", model, "-o", tmp_path / "other", *quick).status == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_memory_that_runs_out_leaves_a_run_that_continues(stop):
    result = stop(lambda: torch.empty(10**15))
    assert result.status == 1
    assert result.err.splitlines()[-1].startswith("edgeq: memory ran out (")
    assert KEPT.search(result.err)


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        (
            "CUDA error: unspecified launch failure\nCUDA "
            "kernel errors might be asynchronously reported",
            "device failed",
        ),
        ("[METAL] Command buffer execution failed: Internal Error (0000000e)", "device failed"),
        ("CUDA out of memory. Tried to allocate 20.00 MiB.", "give less of it with --max-vram"),
        ("MPS backend out of memory (MPS allocated: 9.06 GB)", "memory ran out"),
        ("shape '[2, 3]' is invalid for input of size 5", "unexpected RuntimeError"),
    ],
)
def test_what_frameworks_say_of_devices_is_understood(stated, words):
    assert words in describe(RuntimeError(stated))
    assert "\n" not in describe(RuntimeError(stated))


def test_the_flag_that_continues_stands_in_front_of_two_dashes():
    assert with_flag(["quantize", "-o", "out", "--", "-odd"], "--resume") == [
        "quantize",
        "-o",
        "out",
        "--resume",
        "--",
        "-odd",
    ]
    assert with_flag(["quantize", "--resume", "demo"], "--resume") == [
        "quantize",
        "--resume",
        "demo",
    ]
