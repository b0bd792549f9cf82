"""GGUF files of other families than Llama through the commands, edgeq's own exports among them."""

import json

import numpy as np
import pytest
from command_line import run_edgeq
from exported_files import gguf_in

from edgeq.checkpoint.reader import Checkpoint

MEASURE = ("--windows", "2", "--sequence-length", "32", "--backend", "cpu", "--json")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def solved(request, save_model, quick, tmp_path_factory):
    settings = {"head_dim": 32} if request.param == "qwen3" else {}
    model = save_model(request.param, **settings)
    output = tmp_path_factory.mktemp("solved") / "out"
    result = run_edgeq("quantize", model, "-o", output, *quick, "--export", "gguf")
    assert result.status == 0, result.err
    return model, output


def test_inspect_shows_an_export_by_the_names_of_its_checkpoint(edgeq, solved):
    _, output = solved
    in_file, checkpoint = (
        json.loads(edgeq("inspect", path, "--json").out) for path in (output / "gguf", output)
    )
    assert in_file["architecture"] == checkpoint["architecture"]
    named = [{row["name"] for row in shown["tensors"]} for shown in (in_file, checkpoint)]
    assert named[0] == named[1]


def test_an_export_is_measured_in_torch_and_in_llama_cpp(edgeq, solved, text_file):
    model, output = solved
    options = ("--reference", model, "--text", text_file, *MEASURE)
    checkpoint, in_torch, in_llama_cpp = (
        json.loads(edgeq("evaluate", path, *runtime, *options).out)["kl"]
        for path, runtime in (
            (output, ()),
            (output / "gguf", ("--runtime", "torch")),
            (output / "gguf", ()),
        )
    )
    assert in_torch == pytest.approx(checkpoint, rel=1e-3)
    assert in_llama_cpp < checkpoint + 1e-4  # it rounds activations


def test_an_export_is_quantized_again_with_llama_cpp_as_its_reference(
    edgeq, solved, quick, text_file, tmp_path
):
    _, output = solved
    file = gguf_in(output / "gguf")
    result = edgeq("quantize", file, "-o", tmp_path / "out", *quick, "--bits", "8")
    assert result.status == 0, result.err
    first, second = Checkpoint(output), Checkpoint(tmp_path / "out")
    for linear in first.record.decoder.linears():
        before = first.quantized(linear.tensor).dequantized()
        after = second.quantized(linear.tensor).dequantized()
        assert np.abs(after - before).max() < 0.02 * np.abs(before).max()
    options = ("--text", text_file, *MEASURE)
    quality = edgeq("evaluate", tmp_path / "out", "--reference", file, *options)
    assert json.loads(quality.out)["kl"] < 0.01
