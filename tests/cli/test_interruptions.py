"""What stops a run, and what is left then: nothing before the checkpoint is complete, the
checkpoint after it.
"""

import os
import re
import shlex
import signal

import pytest
from exported_files import gguf_in

from edgeq.commands.signals import Stopped, stopping_on_signals
from edgeq.errors import BadInput
from edgeq.run import pipeline
from edgeq_backends.llama_cpp import LlamaCppLogits
from edgeq_exporters.gguf.exporter import GgufExporter

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
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


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def sending(number, then):
    """A function that sends this process a signal first."""

    def send(*arguments, **options):
        os.kill(os.getpid(), number)
        return then(*arguments, **options)

    return send


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_signal_during_the_run_leaves_nothing(
    edgeq, saved_model, quick, tmp_path, monkeypatch, number, status
):
    monkeypatch.setattr(pipeline, "write_part", sending(number, pipeline.write_part))
    before = signal.signal(
        number, signal.SIG_DFL
    )  # jobs that a shell started in the background ignore SIGINT
    try:
        result = edgeq("quantize", saved_model, "-o", tmp_path / "out", *quick)
    finally:
        signal.signal(number, before)
    assert result.status == status
    assert result.err == "edgeq: stopped\n"
    assert entries(tmp_path) == []


def test_a_signal_that_was_ignored_before_stays_ignored(
    edgeq, saved_model, quick, tmp_path, monkeypatch
):
    monkeypatch.setattr(pipeline, "write_part", sending(signal.SIGHUP, pipeline.write_part))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert edgeq("quantize", saved_model, "-o", tmp_path / "out", *quick, *ROUNDING).status == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_does_not_cut_the_clean_up_short():
    cleaned, handler = [], signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped, stopping_on_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)
    assert stopped.value.status == 143
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) is handler


def refuse_to_write(self, model, destination):
    raise BadInput("the format refuses")


def break_down(self, model, destination):
    raise OSError(28, "No space left on device")


def divide(self, model, destination):
    raise ZeroDivisionError("division by zero\nsecond line")


@pytest.mark.parametrize(
    ("failure", "status", "words"),
    [
        (refuse_to_write, 1, "the format refuses"),
        (break_down, 1, "the disk is full"),
        (divide, 1, "unexpected ZeroDivisionError: division by zero; please report it"),
        (sending(signal.SIGTERM, refuse_to_write), 143, "stopped"),
    ],
)
def test_an_export_that_fails_leaves_the_checkpoint_and_says_how_to_continue(
    edgeq, saved_model, tmp_path, monkeypatch, failure, status, words
):
    with monkeypatch.context() as patched:
        patched.setattr(GgufExporter, "write", failure)
        result = edgeq(
            "quantize",
            saved_model,
            "-o",
            tmp_path / "out",
            *ROUNDING,
            "--export",
            "gguf",
            "--evaluate",
        )
    assert result.status == status
    line = result.err.splitlines()[-1]
    assert line.startswith(f"edgeq: {words}" if "disk" not in words else "edgeq: output")
    assert words in line
    export, evaluate = re.search(
        r"is complete and stays; to continue: (.*), then (.*)", line
    ).groups()
    assert "gguf" not in entries(tmp_path / "out")
    assert not [name for name in entries(tmp_path / "out") if "partial" in name]
    assert edgeq(*shlex.split(export)[1:]).status == 0
    assert evaluate == f"edgeq report {tmp_path / 'out'} --reference {saved_model}"


def test_an_evaluation_that_fails_leaves_checkpoint_and_export(
    edgeq, saved_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(LlamaCppLogits, "logits", refuse_to_write)
    result = edgeq(
        "quantize", saved_model, "-o", tmp_path / "out", *ROUNDING, "--export", "gguf", "--evaluate"
    )
    assert result.status == 1
    command = f"edgeq report {tmp_path / 'out'} --reference {saved_model}"
    assert result.err.endswith(f"to continue: {command}\n")
    assert gguf_in(tmp_path / "out" / "gguf").is_file()
    assert {"measured.json", "report.html"} <= {*entries(tmp_path / "out")}


def test_details_of_an_unexpected_error_are_shown_on_request(
    edgeq, saved_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(pipeline, "write_part", divide)
    monkeypatch.setenv("EDGEQ_TRACEBACK", "1")
    result = edgeq("quantize", saved_model, "-o", tmp_path / "out", *ROUNDING)
    assert result.status == 1
    assert "Traceback" in result.err
    assert result.err.splitlines()[-1].startswith("edgeq: unexpected")
