"""Runs that weigh their tokens: planned, told of, resumed to the same bytes, refused early."""

import json
import os
import signal

import pytest
from command_line import finished
from test_resume import at_call, contents

from edgeq import registry
from edgeq.checkpoint.reader import Checkpoint
from edgeq.run import pipeline
from edgeq.run.report import read_report

WEIGHED = ["--token-weights", "gradient"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(saved_model, quick, tmp_path_factory):
    """A run that nothing stops, and what it says."""
    folder = tmp_path_factory.mktemp("weighed") / "out"
    command = ["quantize", saved_model, "-o", folder, *quick, *WEIGHED, "--json"]
    return folder, json.loads(finished(*command).out)


def test_a_stopped_run_goes_on_to_the_same_bytes(edgeq, run, saved_model, quick, tmp_path):
    command = ["quantize", saved_model, "-o", tmp_path / "out", *quick, *WEIGHED]
    with pytest.MonkeyPatch.context() as patched:
        interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
        patched.setattr(pipeline, "write_part", at_call(2, interrupt, pipeline.write_part))
        assert "1 of 2 blocks are kept" in edgeq(*command).err
    other = edgeq(*command[:-2], "--resume")
    assert (other.status, other.err.count("recipe setting token_weights")) == (1, 1)
    assert edgeq(*command, "--resume").status == 0
    assert contents(tmp_path / "out") == contents(run[0])


def test_the_report_says_how_many_tokens_count(run, saved_model, quick, tmp_path):
    folder, told = run
    counting = [layer.counting_tokens for layer in read_report(Checkpoint(folder)).layers]
    assert all(0 < count < 4 * 32 for count in counting)
    [note] = [note for note in told["notes"] if "weighed" in note]
    assert f"of 128, {min(counting)} to {max(counting)} count" in note
    plain = tmp_path / "plain"
    alike = json.loads(finished("quantize", saved_model, "-o", plain, *quick, "--json").out)
    assert not any("weighed" in note for note in alike["notes"])
    assert {layer.counting_tokens for layer in read_report(Checkpoint(plain)).layers} == {None}
    names = [f"blocks/{index:04d}.safetensors" for index in range(2)]
    assert any((plain / name).read_bytes() != (folder / name).read_bytes() for name in names)


def test_a_plan_counts_the_passes(saved_model, quick):
    seconds = [
        json.loads(finished("plan", saved_model, *quick, *more, "--json").out)["seconds"]
        for more in ([], WEIGHED)
    ]
    stages = [each["by stage of a block"]["weigh tokens"] for each in seconds]
    assert stages[0] == 0 < stages[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--solver", "rtn"], "plain rounding"),
        (["--imatrix", "any.gguf"], "--imatrix with token_weights"),
    ],
)
def test_runs_that_read_no_text_are_refused_in_one_line(
    edgeq, saved_model, tmp_path, options, words
):
    result = edgeq("quantize", saved_model, "-o", tmp_path / "out", *WEIGHED, *options)
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert words in result.err
    assert not list(tmp_path.iterdir())


def test_without_what_runs_models_backward_nothing_starts(edgeq, saved_model, quick, tmp_path):
    missing = registry.Entry("edgeq_no_such_package.gradients:measure", "cuda")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(registry.TOKEN_GRADIENTS, "torch", missing)
        result = edgeq("quantize", saved_model, "-o", tmp_path / "out", *quick, *WEIGHED)
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert result.err.startswith("edgeq: token_weights needs ")
    assert not list(tmp_path.iterdir())
