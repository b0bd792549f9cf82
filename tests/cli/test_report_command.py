"""`edgeq report`: pages of runs on disk, and what is refused in one line."""

import json
import os
import shutil

import pytest
from checkpoints import tiny_checkpoint

from edgeq.checkpoint.reader import Checkpoint
from edgeq.files.json_files import write_json
from edgeq.files.ownership import is_page
from edgeq.run.measured import Measured, read_measured, write_measured


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("reported")).path


@pytest.fixture
def run(made, tmp_path):
    """A checkpoint that a test may change."""
    return shutil.copytree(made, tmp_path / "run")


def refused(result, *words):
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1), result.err
    for each in words:
        assert each in result.err


def test_one_run_has_its_page_beside_its_report_and_it_is_written_anew(edgeq, run):
    result = edgeq("report", run)
    assert (result.status, result.out, result.err) == (0, f"{run / 'report.html'}\n", "")
    first = (run / "report.html").read_bytes()
    assert first.startswith(b"<!doctype html>") and b"edgeq report run --reference MODEL" in first
    write_measured(Checkpoint(run), Measured(seconds={"solve": 1.0}))
    told = json.loads(edgeq("report", run, "--json").out)
    second = (run / "report.html").read_bytes()
    assert told == {"runs": [str(run)], "page": str(run / "report.html"), "bytes": len(second)}
    assert second != first


def test_several_runs_come_on_one_page_of_a_name(edgeq, run, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert edgeq("report", run, made).out == "report.html\n"
    assert b"2 runs of" in (tmp_path / "report.html").read_bytes()
    assert not (run / "report.html").exists()
    assert edgeq("report", run, made).status == 0
    (tmp_path / "report.html").write_text("mine", encoding="utf-8")
    refused(edgeq("report", run, made), "no file of the kind")
    (tmp_path / "report.html").unlink()
    other = tmp_path / "deep" / "two.html"
    assert edgeq("report", run, made, "--output", other).out == f"{other}\n"
    assert edgeq("report", run, "--output", tmp_path / "one.html").status == 0
    assert b"<h1><bdi>model</bdi>" in (tmp_path / "one.html").read_bytes()


def test_no_file_of_somebody_else_is_replaced(edgeq, run, tmp_path):
    page = tmp_path / "thesis.html"
    page.write_text("<title>My thesis</title>")
    refused(edgeq("report", run, "--output", page), "exists", "--force")
    refused(edgeq("report", run, "--output", page, "--force"), "no file of the kind")
    refused(edgeq("report", run, "--output", tmp_path, "--force"), "is no name of a page")
    (tmp_path / "folder.html").mkdir()
    refused(edgeq("report", run, "-o", tmp_path / "folder.html", "--force"), "no file of the kind")
    refused(edgeq("report", run, "-o", tmp_path / "page"), "give one that ends in .html")
    shutil.copy(page, run / "report.html")
    refused(edgeq("report", run), "is no page that edgeq wrote; move it away")
    refused(edgeq("report", run, "--force"), "is no page that edgeq wrote; move it away")
    assert page.read_text() == (run / "report.html").read_text() == "<title>My thesis</title>"


def test_what_is_no_run_is_refused(edgeq, run, tmp_path):
    (tmp_path / "photos").mkdir()
    refused(edgeq("report", tmp_path / "photos"), "a quantized checkpoint is a directory with")
    refused(edgeq("report", tmp_path / "nowhere"), "no such file")
    refused(edgeq("report", run / "edgeq.json"), "edgeq.json")
    refused(edgeq("report", run, tmp_path / "photos", "-o", tmp_path / "x.html"), "photos")
    assert not (tmp_path / "x.html").exists()
    assert edgeq("report").status == 2


@pytest.mark.parametrize("name", ["report.json", "measured.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 9}', b"\xff\xfe", None])
def test_damaged_files_are_refused_and_no_page_is_written(edgeq, run, name, content):
    path = run / name
    path.unlink(missing_ok=True)
    if content is None and name == "measured.json":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    refused(edgeq("report", run), name)
    assert not (run / "report.html").exists()
    assert not list(run.glob(".*"))


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="root may write anywhere")
def test_a_run_that_cannot_be_written_to_is_refused(edgeq, run):
    run.chmod(0o500)
    try:
        refused(edgeq("report", run), "cannot be written")
    finally:
        run.chmod(0o700)


def test_a_run_is_measured_against_the_original_and_keeps_what_was_known(edgeq, run, made):
    write_measured(Checkpoint(run), Measured(seconds={"solve": 1.5}))
    original = made.parent / "model"
    result = edgeq("report", run, "--reference", original, "--backend", "cpu")
    assert (result.status, result.out) == (0, f"{run / 'report.html'}\n"), result.err
    found = read_measured(Checkpoint(run))
    evaluated = json.loads(
        edgeq("evaluate", run, "--reference", original, "--backend", "cpu", "--json").out
    )
    assert found.quality["kl"] == pytest.approx(evaluated["kl"], rel=1e-6) and evaluated["kl"] > 0
    assert found.seconds == {"solve": 1.5}
    assert f"{found.quality['kl']:.1e}" in (page := (run / "report.html").read_text()) or (
        f"{found.quality['kl']:.4f}" in page
    )


def test_an_original_that_does_not_open_is_refused_before_anything_is_written(edgeq, run, tmp_path):
    refused(edgeq("report", run, "--reference", tmp_path / "nowhere"), "nowhere")
    assert not (run / "measured.json").exists() and not (run / "report.html").exists()


def test_a_report_of_another_version_is_refused_with_both(edgeq, run):
    write_json(run / "report.json", {"version": 2})
    refused(edgeq("report", run), "a report of version 2, where this edgeq reads 1")


def test_evaluate_writes_a_comparison_as_a_page(edgeq, run, made, tmp_path):
    original, page = made.parent / "model", tmp_path / "compared.html"
    words = ["--reference", original, "--windows", 2, "--backend", "cpu", "--html", page]
    result = edgeq("evaluate", run, original, *words)
    assert result.status == 0, result.err
    assert is_page(page)
    text = page.read_text(encoding="utf-8")
    assert "2 models compared" in text and "Which is closer" in text
    before = page.read_bytes()
    refused(edgeq("evaluate", run, original, *words), "exists", "--force")
    refused(edgeq("evaluate", run, *words[:-1], tmp_path / "page.pdf"), "ends in .html")
    (tmp_path / "mine.html").write_text("Made by edgeq, I say")
    refused(edgeq("evaluate", run, *words[:-1], tmp_path / "mine.html", "--force"), "of the kind")
    assert page.read_bytes() == before
