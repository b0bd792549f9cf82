"""ONNX from the command line: written, found and run."""

import json
import shutil

import onnx
import pytest
from command_line import finished

from edgeq.errors import BadInput
from edgeq_exporters.onnx.exporter import OnnxExporter

pytest.importorskip("onnxruntime", reason="needs onnxruntime", exc_type=ImportError)

PLAIN = ["--solver", "rtn", "--scales", "none", "--propagation-strength", "0", "--backend", "cpu"]


@pytest.fixture(scope="module")
def options(text_file):
    return [
        "--text",
        text_file,
        "--windows",
        "2",
        "--sequence-length",
        "64",
        "--backend",
        "cpu",
        "--json",
    ]


def test_onnx_runtime_computes_what_torch_does_with_the_dequantized_weights(
    edgeq, saved_model, quick, options, tmp_path
):
    output = tmp_path / "out"
    grid = ["--bits", "3", "--asymmetric", "--group-size", "64"]  # 64 does not divide all inputs
    result = edgeq(
        "quantize", saved_model, "-o", output, *grid, "--export", "onnx", "--json", *quick
    )
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


def test_an_export_is_evaluated_with_the_tokenizer_that_lies_beside_it(
    edgeq, saved_model, options, tmp_path
):
    edgeq("quantize", saved_model, "-o", tmp_path / "out", "--export", "onnx", *PLAIN)
    result = edgeq("evaluate", tmp_path / "out" / "onnx" / "model.onnx", *options)
    assert result.status == 0 and json.loads(result.out)["kl"] is None


def test_a_runtime_for_another_format_is_refused(edgeq, saved_model, options):
    result = edgeq("evaluate", saved_model, "--runtime", "onnxruntime", *options)
    assert result.status == 1 and "runs exports of format 'onnx'" in result.err


@pytest.fixture(scope="module")
def checkpoint(saved_model, tmp_path_factory):
    """A plainly rounded model, tied, with an export for llama.cpp and two options for ONNX
    Runtime.
    """
    output = tmp_path_factory.mktemp("onnx") / "out"
    options = ["--export", "gguf", "--export", "onnx", "--accuracy-level", "0"]
    finished("quantize", saved_model, "-o", output, *PLAIN, *options)
    return output


def settings_in(folder):
    return json.loads((folder / "manifest.json").read_text()).get("settings")


def test_the_options_of_a_format_reach_it_and_no_other(checkpoint):
    assert settings_in(checkpoint / "onnx") == {
        "accuracy_level": 0,
        "qdq": False,
        "activations": "float32",
    }
    assert settings_in(checkpoint / "gguf") is None


@pytest.mark.parametrize("options", [["--qdq"], ["--accuracy-level", "4"], []])
def test_every_kind_of_graph_is_verified_against_its_checkpoint_and_run(
    edgeq, checkpoint, tmp_path, options
):
    assert (
        edgeq("export", checkpoint, "--format", "onnx", *options, "-o", tmp_path / "out").status
        == 0
    )
    assert settings_in(tmp_path / "out")["qdq"] == ("--qdq" in options)
    result = edgeq(
        "verify", tmp_path / "out", "--against", checkpoint, "--run", "--backend", "cpu", "--json"
    )
    found = json.loads(result.out)
    assert (result.status, found["differences"]) == (0, [])
    assert found["statuses"] == {"dense": 5, "exact": 15}
    assert found["run"]["exact_kl"] < 1e-6
    assert found["run"]["logit_difference"] < 0.01 and found["run"]["top1_agreement"] == 1.0


def test_a_tied_head_that_holds_other_weights_than_its_embedding_is_found(
    edgeq, checkpoint, tmp_path
):
    edgeq("export", checkpoint, "--format", "onnx", "--qdq", "-o", tmp_path / "out")
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    (scales,) = (each for each in graph.initializer if each.name == "lm_head.weight.scales")
    place = {entry.key: entry.value for entry in scales.external_data}
    file = tmp_path / "out" / "model.onnx.data"
    data = bytearray(file.read_bytes())
    data[int(place["offset"])] ^= 1
    file.write_bytes(data)
    lines = edgeq("verify", tmp_path / "out").out.split("\n")
    assert lines[1].startswith("tensor 'model.embed_tokens.weight': cannot be read (node 'logits")


@pytest.mark.parametrize("content", [b"", b"not a graph", None])
@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "config.json"])
def test_files_that_are_damaged_or_missing_are_named(edgeq, checkpoint, tmp_path, name, content):
    folder = shutil.copytree(checkpoint / "onnx", tmp_path / "out")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    result = edgeq("verify", folder)
    assert result.status == 1 and name in result.out + result.err and "unexpected" not in result.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--format", "gguf", "--qdq"],
            "option --qdq is one of format onnx, not of gguf; leave it out",
        ),
        (
            ["--format", "mlx", "--accuracy-level", "0"],
            "option --accuracy-level is one of format onnx, not of mlx",
        ),
        (
            ["--format", "onnx", "--qdq", "--accuracy-level", "0"],
            "standard operators (qdq) has none",
        ),
    ],
)
def test_options_of_another_format_are_refused_in_one_line(
    edgeq, checkpoint, tmp_path, options, words
):
    result = edgeq("export", checkpoint, *options, "-o", tmp_path / "out")
    assert result.status == 1 and words in result.err and result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("exports", "named"), [([], "no export"), (["--export", "gguf"], "gguf")])
def test_options_that_no_export_of_a_run_has_are_refused_before_any_work(
    edgeq, saved_model, tmp_path, exports, named
):
    result = edgeq("quantize", saved_model, "-o", tmp_path / "out", "--qdq", *exports, *PLAIN)
    assert (
        result.err == f"edgeq: option --qdq is one of format onnx, not of {named}; leave it out\n"
    )
    assert not (tmp_path / "out").exists()


def test_the_list_takes_no_options_of_a_format(edgeq):
    assert edgeq("export", "--list", "--qdq").status == 2
    assert edgeq("export", "somewhere", "--format", "onnx", "--accuracy-level", "5").status == 2


def test_the_command_that_continues_a_run_has_the_options_of_its_format(
    edgeq, saved_model, tmp_path, monkeypatch
):
    def fail(*_):
        raise BadInput("no more")

    monkeypatch.setattr(OnnxExporter, "write", fail)
    result = edgeq(
        "quantize", saved_model, "-o", tmp_path / "out", "--export", "onnx", "--qdq", *PLAIN
    )
    assert f"edgeq export {tmp_path / 'out'} --format onnx --qdq\n" in result.err
