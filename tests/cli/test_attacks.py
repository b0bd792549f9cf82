"""What an attacker can plant beside and inside of an output: links, forged heads, forged runs.

Each attack is refused in one line, and everything of the user's stays as it is.
"""

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from command_line import finished as run_to_the_end
from command_line import run_edgeq
from exported_files import gguf_in
from safetensors.numpy import load_file, save_file

from edgeq.files.ownership import MARKER_FILE, TIMED_FILES, foreign_entry
from edgeq.files.storage import new_directory, write_bytes
from edgeq.run import pipeline
from edgeq.run.resume import hash_of_content

PLAIN = ["--solver", "rtn", "--scales", "none", "--propagation-strength", "0", "--backend", "cpu"]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and FIFOs as POSIX has them")


def snapshot(folder):
    """Every entry below a directory: where a link leads, the hash of a file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = oct(path.stat().st_mode)
    return found


def refused(result):
    """The one line that a command was refused with."""
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1), result.err
    assert "unexpected" not in result.err and "report it" not in result.err
    return result.err


def stop_behind_the_first_block(patched):
    """Let the next run end by a signal when its first of two blocks is written."""
    write_part, calls = pipeline.write_part, []

    def stopping(*arguments):
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        write_part(*arguments)

    patched.setattr(pipeline, "write_part", stopping)


@pytest.fixture(scope="module")
def stopped(saved_model, tmp_path_factory):
    """The directory around an output whose run was stopped behind the first of two blocks."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patched:
        stop_behind_the_first_block(patched)
        result = run_edgeq("quantize", saved_model, "-o", folder / "out", *PLAIN)
    assert "1 of 2 blocks are kept" in result.err
    return folder


@pytest.fixture
def partial(stopped, tmp_path):
    """A copy of the unfinished run, beside the user's photos."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("meow")
    return shutil.copytree(stopped / ".out.edgeq-partial", tmp_path / ".out.edgeq-partial")


@pytest.fixture(scope="module")
def finished(saved_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "out"
    run_to_the_end(
        "quantize", saved_model, "-o", folder, *PLAIN, "--export", "gguf", "--export", "mlx"
    )
    return folder


@pytest.fixture
def output(finished, tmp_path):
    """A copy of a finished output with two exports that a test may change."""
    return shutil.copytree(finished, tmp_path / "out")


def as_link(path, photos):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(photos)


def as_link_to_a_file(path, photos):
    as_link(path, photos / "cat.png")


def as_fifo(path, photos):
    as_link(path, photos)
    path.unlink()
    os.mkfifo(path)


def as_dangling_link(path, photos):
    as_link(path, photos / "not-there")


PLANTS = (as_link, as_link_to_a_file, as_fifo, as_dangling_link)
PLACES = (
    "",
    "new",
    "new/blocks",
    "new/blocks/0000.safetensors",
    "new/blocks/0007.safetensors",
    "new/.tokenizer.json.partial",
    "new/x/y/z",
    "states",
    "states/0001",
    "states/0001/quantized-00000.npy",
    "replaced",
    "replaced/edgeq.json",
    "run.json",
    ".run.json.partial",
    MARKER_FILE,
    "thesis",
)


@pytest.mark.parametrize("place", PLACES)
def test_links_in_an_unfinished_run_are_refused_before_anything_is_touched(
    edgeq, saved_model, partial, tmp_path, place
):
    for plant in PLANTS:
        shutil.copytree(partial, tmp_path / "kept", symlinks=True)
        target = partial / place
        target.parent.mkdir(parents=True, exist_ok=True)
        plant(target, tmp_path / "photos")
        before = snapshot(tmp_path)
        for flags in (["--resume"], ["--force"], ["--resume", "--force"], []):
            result = edgeq("quantize", saved_model, "-o", tmp_path / "out", *PLAIN, *flags)
            line = refused(result)
            assert "move" in line and "choose another name" in line
            assert snapshot(tmp_path) == before, flags
        if partial.is_symlink() or partial.is_fifo():
            partial.unlink()
        else:
            shutil.rmtree(partial)
        (tmp_path / "kept").rename(partial)


@pytest.mark.parametrize("place", ["", "new", "new/rest", "states", MARKER_FILE, "replaced"])
def test_links_in_the_temporary_directory_of_an_export_are_refused(output, tmp_path, place, edgeq):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("meow")
    temporary = output / ".onnx.edgeq-partial"
    (temporary / "new").mkdir(parents=True)
    (temporary / MARKER_FILE).touch()
    as_link(temporary / place, tmp_path / "photos")
    before = snapshot(tmp_path)
    for flags in ([], ["--force"]):
        refused(edgeq("export", output, "--format", "onnx", *flags))
        assert snapshot(tmp_path) == before


def test_a_hard_link_to_a_file_of_the_users_is_not_written_through(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / ".run.json.partial").hardlink_to(tmp_path / "thesis.txt")
    write_bytes(tmp_path / "run.json", b"{}")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("resolved", [False, True])
def test_a_planted_replaced_directory_is_neither_brought_back_nor_cleared_away(
    edgeq, saved_model, partial, tmp_path, resolved
):
    (tmp_path / "photos").rename(partial / "replaced")
    if resolved:
        head = {"format_version": 1, "edgeq": "1", "model": "m", "source": {}, "recipe": {}}
        head |= {"files": ["cat.png"], "companions": []}
        (partial / "replaced" / "edgeq.json").write_text(json.dumps(head))
    before = snapshot(tmp_path)
    for flags in (["--resume"], ["--force"], []):
        line = refused(edgeq("quantize", saved_model, "-o", tmp_path / "out", *PLAIN, *flags))
        assert "'replaced" in line
        assert snapshot(tmp_path) == before


def test_an_output_that_a_killed_run_had_moved_comes_back(edgeq, output, saved_model, tmp_path):
    before = snapshot(output)
    temporary = tmp_path / ".out.edgeq-partial"
    temporary.mkdir()
    (temporary / MARKER_FILE).touch()
    output.rename(temporary / "replaced")
    result = edgeq("quantize", saved_model, "-o", output, *PLAIN, "--resume")
    assert result.status == 0, result.err
    after = snapshot(output)
    for name in TIMED_FILES:  # what was measured of the run is written again
        assert name in before and name in after
        del before[name], after[name]
    assert after == before and not temporary.exists()


HEAD = {"format_version": 1, "edgeq": "1", "model": "m", "source": {}, "recipe": {}}


def forged_head(folder, files, companions=()):
    content = HEAD | {"files": list(files), "companions": list(companions)}
    (folder / "edgeq.json").write_text(json.dumps(content))


ENTRY = {
    "name": "a",
    "source": "a",
    "type": "Q4_0",
    "status": "exact",
    "largest_deviation": 0.0,
    "sha256": "0" * 64,
}


def forged_manifest(folder, files, digest=None, tensors=(ENTRY,)):
    hashes = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() if digest is None else digest
        for name in files
    }
    content = {"format": "gguf", "file": next(iter(files)), "files": hashes}
    (folder / "manifest.json").write_text(json.dumps(content | {"tensors": tensors}))


@pytest.mark.parametrize("name", ["thesis.txt", "outer.safetensors", "blocks/0000.safetensors"])
@pytest.mark.parametrize("weights", [False, True])
def test_a_forged_edgeq_json_does_not_make_files_edgeqs(
    edgeq, saved_model, tmp_path, name, weights
):
    folder = tmp_path / "out"
    (folder / name).parent.mkdir(parents=True)
    if weights:
        save_file({"mine": np.ones(5, np.float32)}, folder / name, metadata={"format": "pt"})
    else:
        (folder / name).write_text("years of work")
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    forged_head(folder, [name], ["tokenizer.json"])
    before = snapshot(tmp_path)
    for flags in (["--force"], ["--force", "--resume"]):
        refused(edgeq("quantize", saved_model, "-o", folder, *PLAIN, *flags))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("files", "companions"),
    [
        ([], ["tokenizer.json"]),
        (["../cat.png"], []),
        (["outer.safetensors"], ["notes.txt"]),
        ([7], []),
        (["outer.safetensors", "blocks/0000.safetensors/../../x.safetensors"], []),
    ],
)
def test_a_head_that_lists_what_edgeq_does_not_write_is_none(tmp_path, files, companions):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    forged_head(tmp_path, files, companions)
    assert foreign_entry(tmp_path) == "."


@pytest.mark.parametrize(
    ("name", "digest"),
    [("thesis.txt", None), ("photos.zip", None), ("model.gguf", "0" * 64), ("mine.gguf", "")],
)
@pytest.mark.parametrize("tensors", [[ENTRY], [], [5], "a"])
def test_a_forged_manifest_does_not_make_files_edgeqs(
    edgeq, output, tmp_path, name, digest, tensors
):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text("years of work")
    forged_manifest(folder, [name], digest, tensors)
    before = snapshot(folder)
    refused(edgeq("export", output, "--format", "gguf", "-o", folder, "--force"))
    assert snapshot(folder) == before


def test_an_export_that_was_changed_is_replaced_where_its_own_checkpoint_is_given(edgeq, output):
    file = gguf_in(output / "gguf")
    file.write_bytes(b"damaged")
    assert foreign_entry(output) == f"gguf/{file.name}"
    assert edgeq("export", output, "--format", "gguf", "--force").status == 0
    assert foreign_entry(output) is None


def test_what_shows_that_an_output_is_edgeqs_is_removed_last(output, tmp_path, monkeypatch):
    """Cut short anywhere, the removal of a replaced output can be gone on with."""
    unlink, steps = Path.unlink, []

    def counted(path, *arguments, **options):
        steps.append(path)
        kept = next((each for each in path.parents if each.name == "replaced"), None)
        if kept is not None:
            assert foreign_entry(kept) is None, path
        unlink(path, *arguments, **options)

    monkeypatch.setattr(Path, "unlink", counted)
    with new_directory(output, force=True) as folder:
        (folder / "edgeq.json").write_text("{}")
    assert sum("replaced" in path.parts for path in steps) > 10


def restated(partial, change):
    """Change run.json, and state the right hash of what it then holds."""
    stored = json.loads((partial / "run.json").read_text())
    del stored["sha256"]
    change(stored, stored["progress"])
    stored = json.loads(json.dumps(stored))
    text = json.dumps(stored | {"sha256": hash_of_content(stored)})
    (partial / "run.json").write_text(text)


def with_content(key, value):
    return lambda stored, progress: stored.update({key: value})


def with_progress(key, value):
    return lambda stored, progress: progress.update({key: value})


def with_layer(**values):
    layer = {
        "name": "model.layers.0.self_attn.q_proj",
        "shape": [64, 64],
        "bits": 4,
        "group_size": 32,
        "losses": {"solved": 0.1},
    }

    def change(stored, progress):
        progress["layers"] = [layer | values]

    return change


NAME = "blocks/0000.safetensors"
FORGED = {
    "done": [10**9, -1, 0, 2, True, 1.0, "1", None, [1]],
    "files": [[], ["../x"], ["blocks/0001.safetensors"] * 2, "blocks", 5, [None, None]],
    "backends": [[5], 5, None],
    "hashes": [
        {},
        {"../../photos/cat.png": "0" * 64},
        {"new/blocks/0000.safetensors": 5},
        {"states/0001/../../../photos/cat.png": "0" * 64},
        [],
        None,
    ],
    "clamped": [{"no.such.weight": 1}, {"model.norm.weight": 1}, {"x": -1}, {"x": 1e400}, 5, None],
    "calibration_tokens": [-5, "many", 1.5, [], True],
    "bits_per_weight": [{"model": float("nan")}, {"model": "x"}, 5],
    "layers": [5, [5], [{}], {"a": 1}],
    "version": [2, True, "1", None],
}
LAYERS = [
    {"name": "model.layers.9.mlp.up_proj"},
    {"name": "\x1b[31mevil"},
    {"name": 5},
    {"name": ["a"]},
    {"bits": 3},
    {"bits": 10**400},
    {"group_size": 7},
    {"losses": {"solved": float("nan")}},
    {"losses": {"solved": float("inf")}},
    {"losses": {"solved": 10**400}},
    {"losses": {"solved": "x"}},
    {"losses": {"evil": 1.0}},
    {"losses": 5},
    {"shape": 5},
    {"shape": [1]},
    {"shape": ["a", "b"]},
    {"damping": float("nan")},
    {"unknown": 1},
]


def test_forged_values_in_run_json_are_refused_and_nothing_is_touched(
    edgeq, saved_model, partial, tmp_path
):
    changes = [with_progress(key, value) for key, values in FORGED.items() for value in values]
    changes += [with_layer(**values) for values in LAYERS]
    changes += [with_content("run", 5), with_content("progress", [])]
    whole = (partial / "run.json").read_text()
    for change in changes:
        (partial / "run.json").write_text(whole)
        restated(partial, change)
        before = snapshot(tmp_path)
        line = refused(edgeq("quantize", saved_model, "-o", tmp_path / "out", *PLAIN, "--resume"))
        assert "start over with --force" in line or "is another one" in line, line
        assert snapshot(tmp_path) == before
    (partial / "run.json").write_text(whole)
    restated(partial, with_layer())  # the same values as the model has
    assert edgeq("quantize", saved_model, "-o", tmp_path / "out", *PLAIN, "--resume").status == 0


def of_another_shape(tensors):
    return {name: array[:1] for name, array in tensors.items()}


def of_another_name(tensors):
    return {f"x{name}": array for name, array in tensors.items()}


@pytest.mark.parametrize("change", [of_another_shape, of_another_name, dict])
def test_a_forged_block_with_its_right_hash_is_refused_before_the_next_is_solved(
    edgeq, saved_model, partial, tmp_path, change
):
    """Also the weights of a block as they were, with nothing that says how they were solved."""
    block = partial / "new" / "blocks" / "0000.safetensors"
    save_file(change(load_file(block)), block, metadata={"format": "pt"})
    digest = hashlib.sha256(block.read_bytes()).hexdigest()
    restated(partial, lambda _, progress: progress["hashes"].update({f"new/{NAME}": digest}))
    before = snapshot(tmp_path)
    line = refused(edgeq("quantize", saved_model, "-o", tmp_path / "out", *PLAIN, "--resume"))
    assert NAME.rpartition("/")[2] in line and "start over with --force" in line
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("dtype", ["U5", "i8", "c8", "O"])
def test_forged_hidden_states_with_their_right_hash_are_refused(
    edgeq, saved_model, quick, tmp_path, dtype, monkeypatch
):
    with monkeypatch.context() as patched:
        stop_behind_the_first_block(patched)
        edgeq("quantize", saved_model, "-o", tmp_path / "out", *quick)
    partial = tmp_path / ".out.edgeq-partial"
    states = partial / "states" / "0001" / "quantized-00000.npy"
    np.save(states, np.load(states).astype(dtype), allow_pickle=True)
    digest = hashlib.sha256(states.read_bytes()).hexdigest()
    name = states.relative_to(partial).as_posix()
    restated(partial, lambda _, progress: progress["hashes"].update({name: digest}))
    result = edgeq("quantize", saved_model, "-o", tmp_path / "out", *quick, "--resume")
    assert "its hidden states cannot be read" in refused(result)


def test_a_run_json_that_is_a_directory_is_refused(edgeq, saved_model, partial, tmp_path):
    (partial / "run.json").unlink()
    (partial / "run.json").mkdir()
    before = snapshot(tmp_path)
    for flags in (["--resume"], ["--force"], []):
        line = refused(edgeq("quantize", saved_model, "-o", tmp_path / "out", *PLAIN, *flags))
        assert "'run.json', a directory that edgeq did not put there" in line
    assert snapshot(tmp_path) == before


def of_report(output, **values):
    stored = json.loads((output / "report.json").read_text())
    (output / "report.json").write_text(json.dumps(stored | values))


def test_a_damaged_report_of_a_finished_output_is_refused_before_an_export(
    edgeq, saved_model, output, tmp_path
):
    whole = (output / "report.json").read_bytes()
    arguments = ["quantize", saved_model, "-o", output, *PLAIN, "--resume", "--export", "onnx"]

    def check(words):
        before = snapshot(tmp_path)
        line = refused(edgeq(*arguments))
        assert words in line and "report.json" in line
        assert snapshot(tmp_path) == before

    for values in (
        {"clamped": {"no.such": 1}},
        {"layers": [{"name": "x"}]},
        {"bits_per_weight": {"model": float("nan")}},
        {"calibration_tokens": -1},
        {"version": 7},
    ):
        of_report(output, **values)
        check("report")
        (output / "report.json").write_bytes(whole)
    for content in (b"", b"{", b"[]", b"\xff", b"null"):
        (output / "report.json").write_bytes(content)
        check("damaged")
    (output / "report.json").unlink()
    check("no such file")
    os.mkfifo(output / "report.json")
    assert "'report.json', which edgeq did not write" in refused(edgeq(*arguments))
