"""ONNX from the command line: written, found and run."""

import json

import pytest

pytest.importorskip("onnxruntime", reason="needs onnxruntime", exc_type=ImportError)


@pytest.fixture(scope="module")
def options(text_file):
    return ["--text", text_file, "--windows", "2", "--sequence-length", "64", "--backend", "cpu", "--json"]


def test_onnx_runtime_computes_what_torch_does_with_the_dequantized_weights(
    edgeq, saved_model, quick, options, tmp_path
):
    output = tmp_path / "out"
    grid = ["--bits", "3", "--asymmetric", "--group-size", "64"]  # 64 does not divide all inputs
    result = edgeq("quantize", saved_model, "-o", output, *grid, "--export", "onnx", "--json", *quick)
    assert result.status == 0, result.err
    summary = json.loads(result.out)
    files = [output / "onnx" / name for name in ("model.onnx", "model.onnx.data")]
    assert summary["result"] == str(files[0])
    assert summary["bytes"]["onnx"] == sum(file.stat().st_size for file in files)
    assert json.loads((output / "edgeq.json").read_text())["recipe"]["zeros"] == "integer"
    for target in files[0], output / "onnx":
        quality = json.loads(edgeq("evaluate", target, "--reference", output, *options).out)
        assert (quality["runtime"], quality["top1_agreement"]) == ("onnxruntime", 1.0)
        assert abs(quality["kl"]) < 1e-6


def test_an_export_is_evaluated_with_the_tokenizer_that_lies_beside_it(edgeq, saved_model, options, tmp_path):
    plain = ["--solver", "rtn", "--scales", "none", "--propagation-strength", "0", "--backend", "cpu"]
    edgeq("quantize", saved_model, "-o", tmp_path / "out", "--export", "onnx", *plain)
    result = edgeq("evaluate", tmp_path / "out" / "onnx" / "model.onnx", *options)
    assert result.status == 0 and json.loads(result.out)["kl"] is None


def test_a_runtime_for_another_format_is_refused(edgeq, saved_model, options):
    result = edgeq("evaluate", saved_model, "--runtime", "onnxruntime", *options)
    assert result.status == 1 and "runs exports of format 'onnx'" in result.err
