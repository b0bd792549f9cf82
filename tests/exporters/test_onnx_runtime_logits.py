"""The ONNX Runtime logit source by itself."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from solved_models import FOUR_BITS, solved, tiny, torch_logits

from edgeq.errors import BadInput
from edgeq.types import Rounding
from edgeq_exporters.onnx.exporter import OnnxExporter

OnnxRuntimeLogits = pytest.importorskip(
    "edgeq_backends.onnx_runtime", reason="needs onnxruntime", exc_type=ImportError
).OnnxRuntimeLogits


@pytest.fixture
def model():
    return tiny()


@pytest.fixture
def export(rng, model):
    return solved(model, rng, [FOUR_BITS])


def test_exact_windows_run_in_float32_whatever_level_was_exported(rng, tmp_path, model, export):
    file, data, *_ = OnnxExporter(accuracy_level=4).write(export, tmp_path)
    before = file.read_bytes(), data.read_bytes()
    windows = rng.integers(0, 96, (3, 20))
    reference = torch_logits(model, export.weights(), windows)
    for opened in (tmp_path, file, str(file)):
        found = list(OnnxRuntimeLogits(opened, threads=1, exact=True).logits(windows))
        assert all(logits.shape == (20, 96) and logits.dtype == np.float32 for logits in found)
        assert np.abs(np.stack(found) - reference).max() < 1e-5 * np.abs(reference).max()
    assert before == (file.read_bytes(), data.read_bytes())


def test_a_graph_of_standard_weights_runs_in_float32_too(rng, tmp_path, model, export):
    file, *_ = OnnxExporter(qdq=True).write(export, tmp_path)
    windows = rng.integers(0, 96, (1, 20))
    found = next(OnnxRuntimeLogits(file, threads=1, exact=True).logits(windows))
    reference = torch_logits(model, export.weights(), windows)[0]
    assert np.abs(found - reference).max() < 1e-5 * np.abs(reference).max()


@pytest.mark.parametrize(
    ("options", "rounding"),
    [
        ({"accuracy_level": 4}, Rounding("int8", 64)),
        ({"qdq": True}, Rounding("int8", 64)),
        ({"accuracy_level": 0}, None),
    ],
)
def test_a_graph_runs_at_the_level_that_it_ships_with(
    rng, tmp_path, model, export, options, rounding
):
    file, *_ = OnnxExporter(**options).write(export, tmp_path)
    windows = rng.integers(0, 96, (1, 20))
    runtime = OnnxRuntimeLogits(file, threads=1)
    found = next(runtime.logits(windows))
    reference = torch_logits(model, export.weights(), windows)[0]
    difference = np.abs(found - reference).max() / np.abs(reference).max()
    assert runtime.rounding == rounding
    assert difference < (1e-5 if rounding is None else 0.1)
    assert rounding is None or difference > 1e-4


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_an_export_that_cannot_be_loaded_is_refused_in_one_line(tmp_path, export, name, content):
    OnnxExporter().write(export, tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match="ONNX Runtime cannot load") as refusal:
        OnnxRuntimeLogits(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_graph_that_is_no_decoder_is_refused(tmp_path):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "copy", [value], [result]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(BadInput, match="is no decoder: it lacks"):
        OnnxRuntimeLogits(tmp_path)


@pytest.mark.parametrize("token", [-1, 96])
def test_tokens_outside_the_vocabulary_are_refused(tmp_path, export, token):
    OnnxExporter().write(export, tmp_path)
    with pytest.raises(BadInput, match="vocabulary has 96 tokens"):
        next(OnnxRuntimeLogits(tmp_path).logits(np.array([[1, token]])))


def test_nothing_is_printed(rng, tmp_path, export, capfd):
    OnnxExporter().write(export, tmp_path)
    list(OnnxRuntimeLogits(tmp_path).logits(rng.integers(0, 96, (1, 8))))
    assert capfd.readouterr() == ("", "")
