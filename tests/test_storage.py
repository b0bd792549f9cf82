import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from edgeq.errors import BadInput
from edgeq.files.ownership import MARKER_FILE, foreign_entry
from edgeq.files.storage import check_destination, new_directory, sync_directory, write_bytes

pytestmark = pytest.mark.disk


def names(folder):
    return sorted(path.name for path in folder.iterdir())


HEAD: dict[str, Any] = {
    "format_version": 1,
    "edgeq": "0.1.0",
    "model": "tiny",
    "source": {},
    "recipe": {},
    "files": ["blocks/0000.safetensors", "outer.safetensors"],
    "companions": ["tokenizer.json"],
}
WRITTEN = hashlib.sha256(b"written").hexdigest()
MANIFEST = {
    "format": "gguf",
    "file": "model.gguf",
    "files": {"model.gguf": WRITTEN},
    "tensors": [
        {
            "name": "a",
            "source": "a",
            "type": "Q4_0",
            "status": "exact",
            "largest_deviation": 0.0,
            "sha256": WRITTEN,
        }
    ],
}
OWN = {"edgeq.json": json.dumps(HEAD), "manifest.json": json.dumps(MANIFEST)}


def own_output(path, marker="edgeq.json"):
    path.mkdir()
    (path / marker).write_text(OWN[marker])
    return path


def write_tensor_file(path, metadata=("edgeq",)):
    path.parent.mkdir(exist_ok=True)
    save_file({"x": np.zeros(3, np.float32)}, path, metadata=dict.fromkeys(metadata, "{}"))


def own_checkpoint(path):
    """All that edgeq writes: a checkpoint with an export in it, and the remains of another
    export.
    """
    own_output(path)
    for name in HEAD["files"]:
        write_tensor_file(path / name)
    for name in (*HEAD["companions"], "config.json", "report.json"):
        (path / name).write_text("written")
    own_output(path / "gguf", "manifest.json")
    (path / "gguf" / "model.gguf").write_text("written")
    (path / ".mlx.edgeq-partial").mkdir()
    (path / ".mlx.edgeq-partial" / MARKER_FILE).touch()
    return path


def test_a_directory_appears_complete_under_its_name(tmp_path):
    with new_directory(tmp_path / "deep" / "out") as folder:
        (folder / "edgeq.json").write_text("new")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    assert (tmp_path / "deep" / "out" / "edgeq.json").read_text() == "new"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_behind(tmp_path, failure):
    with pytest.raises(failure), new_directory(tmp_path / "out") as folder:
        (folder / "half").write_text("written")
        raise failure
    assert names(tmp_path) == []


def test_a_failed_replacement_leaves_the_old_output(tmp_path):
    old = own_output(tmp_path / "out")
    with pytest.raises(RuntimeError), new_directory(old, force=True) as folder:
        (folder / "edgeq.json").write_text("new")
        raise RuntimeError
    assert names(tmp_path) == ["out"]
    assert (old / "edgeq.json").read_text() == OWN["edgeq.json"]


def test_an_existing_output_is_refused_without_force(tmp_path):
    old = own_output(tmp_path / "out")
    with pytest.raises(BadInput, match="--force"), new_directory(old):
        pytest.fail("the body must not run")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("marker", ["edgeq.json", "manifest.json"])
def test_force_replaces_what_edgeq_wrote(tmp_path, marker):
    old = own_output(tmp_path / "out", marker)
    with new_directory(old, force=True) as folder:
        (folder / marker).write_text("new")
        assert (old / marker).read_text() == OWN[marker]
    assert names(tmp_path) == ["out"]
    assert names(old) == [marker]
    assert (old / marker).read_text() == "new"


def test_force_never_replaces_what_edgeq_did_not_write(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.png").write_text("meow")
    application = tmp_path / "web"
    application.mkdir()
    (application / "manifest.json").write_text('{"name": "web", "icons": []}')
    file = tmp_path / "file"
    file.write_text("text")
    for path in (photos, application, file):
        with pytest.raises(BadInput, match="not written by edgeq"):
            check_destination(path, force=True)
    assert (photos / "cat.png").read_text() == "meow"
    assert file.read_text() == "text"


def test_all_that_edgeq_writes_is_its_own(tmp_path):
    assert foreign_entry(own_checkpoint(tmp_path / "out")) is None
    with new_directory(tmp_path / "out", force=True) as folder:
        (folder / "edgeq.json").write_text("new")
    assert names(tmp_path / "out") == ["edgeq.json"]


@pytest.mark.parametrize(
    "name", ["thesis.txt", "blocks/thesis.txt", "gguf/notes.txt", "photos/cat.png", "a/b/c"]
)
def test_force_stops_at_the_first_file_that_edgeq_did_not_write(tmp_path, name):
    old = own_checkpoint(tmp_path / "out")
    (old / name).parent.mkdir(parents=True, exist_ok=True)
    (old / name).write_text("years of work")
    with pytest.raises(
        BadInput, match=f"holds '{name.removesuffix('/cat.png').removesuffix('/b/c')}"
    ):
        check_destination(old, force=True)
    assert (old / name).read_text() == "years of work"


def test_a_link_inside_of_an_output_is_not_edgeqs_own(tmp_path):
    old = own_checkpoint(tmp_path / "out")
    (old / "outer.safetensors").unlink()
    (old / "outer.safetensors").symlink_to(tmp_path / "elsewhere")
    assert foreign_entry(old) == "outer.safetensors"


@pytest.mark.parametrize(
    "content",
    [
        '{"format_version": 1, "recipe": {}}',
        "[1]",
        "{",
        '{"files": 5}',
        json.dumps(HEAD | {"files": 5}),
    ],
)
def test_a_directory_with_an_edgeq_json_of_another_form_is_not_edgeqs_own(tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "edgeq.json").write_text(content)
    (tmp_path / "out" / "outer.safetensors").write_text("the user's")
    with pytest.raises(BadInput, match="edgeq"):
        check_destination(tmp_path / "out", force=True)


def test_force_never_replaces_the_current_directory_or_the_source(tmp_path, monkeypatch):
    old = own_output(tmp_path / "out")
    (old / "gguf").mkdir()
    with pytest.raises(BadInput, match="what it is made from"):
        check_destination(old, force=True, source=old / "gguf")
    monkeypatch.chdir(old)
    with pytest.raises(BadInput, match="current directory"):
        check_destination(Path("."), force=True)


def test_a_link_to_an_output_stays_a_link(tmp_path):
    own_output(tmp_path / "large_disk")
    (tmp_path / "out").symlink_to(tmp_path / "large_disk")
    for content in ("one", "two"):
        with new_directory(tmp_path / "out", force=True) as folder:
            (folder / "edgeq.json").write_text(OWN["edgeq.json"])
            (folder / "tokenizer.json").write_text(content)
            write_tensor_file(folder / "outer.safetensors")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "large_disk" / "tokenizer.json").read_text() == "two"
    assert names(tmp_path) == ["large_disk", "out"]


def test_remains_of_a_killed_run_do_not_matter(tmp_path):
    remains = tmp_path / ".out.edgeq-partial"
    remains.mkdir()
    (remains / MARKER_FILE).touch()
    (remains / "new").mkdir()
    (remains / "new" / "rest").write_text("rest")
    with new_directory(tmp_path / "out") as folder:
        assert names(folder) == []
    assert names(tmp_path) == ["out"]


def test_what_a_killed_run_was_about_to_replace_comes_back(tmp_path):
    remains = tmp_path / ".out.edgeq-partial"
    remains.mkdir()
    (remains / MARKER_FILE).touch()
    own_output(remains / "replaced")
    with pytest.raises(BadInput, match="--force"), new_directory(tmp_path / "out"):
        pytest.fail("the body must not run")
    assert (tmp_path / "out" / "edgeq.json").read_text() == OWN["edgeq.json"]


@pytest.mark.parametrize("name", [".out.edgeq-partial", ".out.partial", ".out.old"])
def test_directories_of_the_user_with_temporary_names_stay(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years of work")
    if name == ".out.edgeq-partial":
        with pytest.raises(BadInput, match="is not edgeq's"):
            check_destination(tmp_path / "out", force=False)
    else:
        with new_directory(tmp_path / "out"):
            pass
    assert (tmp_path / name / "thesis.txt").read_text() == "years of work"


def test_a_name_that_is_too_long_is_refused_in_one_line(tmp_path):
    for name in ("x" * 300, "x" * 250):  # the second leaves no room for the temporary name
        with pytest.raises(BadInput, match=r"cannot be written \(File name too long\)"):
            check_destination(tmp_path / name, force=False)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
def test_a_place_where_the_system_makes_no_directories_is_refused():
    with pytest.raises(BadInput, match="cannot be"), new_directory(Path("/proc/edgeq")):
        pytest.fail("the body must not run")


def test_one_output_is_made_by_one_process_at_a_time(tmp_path):
    with new_directory(tmp_path / "out") as folder:
        (folder / "edgeq.json").write_text("the first")
        with (
            pytest.raises(BadInput, match="by another edgeq process"),
            new_directory(tmp_path / "out"),
        ):
            pytest.fail("the body must not run")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["edgeq.json"]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EFBIG, "File too large"), "size limit"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (
            SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
            "size limit",
        ),
    ],
)
def test_a_full_disk_is_reported_and_nothing_stays(tmp_path, failure, reason):
    with pytest.raises(BadInput, match=reason), new_directory(tmp_path / "out") as folder:
        (folder / "half").write_text("written")
        raise failure
    assert names(tmp_path) == []


def test_errors_about_other_files_are_not_blamed_on_the_output(tmp_path):
    with pytest.raises(FileNotFoundError), new_directory(tmp_path / "out"):
        (tmp_path / "weights").read_bytes()


def test_files_get_the_mode_that_new_files_have(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"one")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="not a directory"):
        check_destination(tmp_path / "file" / "out", force=False)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_directory_without_write_permission_is_refused(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(BadInput, match="can be written to"):
        check_destination(locked / "out", force=False)


def test_a_file_gets_its_name_when_it_is_complete(tmp_path, monkeypatch):
    write_bytes(tmp_path / "a", b"one")
    write_bytes(tmp_path / "a", b"two")
    sync_directory(tmp_path)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"two"
