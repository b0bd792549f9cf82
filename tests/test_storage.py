import os
from pathlib import Path

import pytest

from edgeq.errors import BadInput
from edgeq.storage import check_destination, new_directory, sync_directory, write_bytes


def names(folder):
    return sorted(path.name for path in folder.iterdir())


OWN = {
    "edgeq.json": '{"format_version": 1, "recipe": {}}',
    "manifest.json": '{"format": "gguf", "file": "model.gguf", "tensors": []}',
}


def own_output(path, marker="edgeq.json"):
    path.mkdir()
    (path / marker).write_text(OWN[marker])
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
    (old / "stale").write_text("old")
    with new_directory(old, force=True) as folder:
        (folder / marker).write_text("new")
        assert (old / "stale").exists()
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
            (folder / "content").write_text(content)
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "large_disk" / "content").read_text() == "two"
    assert names(tmp_path) == ["large_disk", "out"]


def test_remains_of_a_killed_run_do_not_matter(tmp_path):
    for name in (".out.partial", ".out.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rest").write_text("rest")
    with new_directory(tmp_path / "out") as folder:
        assert names(folder) == []
    assert names(tmp_path) == ["out"]


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="not a directory"):
        check_destination(tmp_path / "file" / "out", force=False)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
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
