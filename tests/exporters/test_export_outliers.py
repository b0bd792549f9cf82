"""Outlier columns in exports: carried by ONNX graphs, refused by every container that has only
codes.
"""

import dataclasses
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from solved_models import shapes_of, solved, tiny, torch_logits, with_grid
from tiny_models import tokenizer_files

from edgeq.checkpoint.certificate import hash_of_layer
from edgeq.errors import BadInput
from edgeq.measuring.verify import check_tensor
from edgeq.registry import load_exporter
from edgeq.types import Grid
from edgeq_exporters.onnx.exporter import OnnxExporter
from edgeq_exporters.onnx.reader import OnnxReader

pytest.importorskip("onnxruntime", reason="needs onnxruntime", exc_type=ImportError)
from onnx_sessions import assert_alike, exported, onnx_logits, stepwise_logits

OUTLIERS = Grid(3, 32, outlier_columns=0.05)
UP = "model.layers.0.mlp.up_proj.weight"
CODES_ONLY = ["gguf", "mlx", "gptq", "compressed-tensors"]
EMBEDDING = "model.embed_tokens.weight"


def outlier_model(rng, grid, kind="llama", **changes):
    """A transformers model, and its linear layers on a grid with outlier columns."""
    model = tiny(kind, **changes)
    export = with_grid(solved(model, rng, [grid]), rng, EMBEDDING, Grid(8, 32))
    if "lm_head.weight" in export.layers:
        export = with_grid(export, rng, "lm_head.weight", Grid(8, 32))
    export.files |= tokenizer_files()
    return model, export


@pytest.mark.parametrize("qdq", [False, True], ids=["blocks", "qdq"])
@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("zeros", ["symmetric", "integer", "offset"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_graph_computes_what_torch_does_with_codes_and_columns(
    rng, tmp_path, bits, zeros, scale_dtype, qdq
):
    grid = dataclasses.replace(OUTLIERS, bits=bits, zeros=zeros, scale_dtype=scale_dtype)
    if qdq and zeros == "offset":
        pytest.skip("DequantizeLinear holds no free offsets")
    model, export = outlier_model(rng, grid, num_hidden_layers=1)
    ids = rng.integers(0, 96, (1, 24))
    file = exported(export, tmp_path, qdq=qdq)
    onnx.checker.check_model(file)
    assert_alike(onnx_logits(file, ids), torch_logits(model, export.weights(), ids))


@pytest.mark.parametrize("qdq", [False, True], ids=["blocks", "qdq"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_every_kind_of_model_runs_with_its_biases_step_by_step(rng, tmp_path, kind, qdq):
    model, export = outlier_model(rng, OUTLIERS, kind)
    ids = rng.integers(0, 96, (2, 24))
    file = exported(export, tmp_path, qdq=qdq)
    reference = torch_logits(model, export.weights(), ids)
    assert_alike(onnx_logits(file, ids), reference)
    assert_alike(stepwise_logits(file, ids, first=18), reference)


def test_without_its_columns_the_model_would_be_another(rng, tmp_path):
    model, export = outlier_model(rng, OUTLIERS)
    ids = rng.integers(0, 96, (1, 24))
    found = onnx_logits(exported(export, tmp_path), ids)
    export.layers = {
        name: dataclasses.replace(layer, outliers=None) for name, layer in export.layers.items()
    }
    others = torch_logits(model, export.weights(), ids)
    assert np.abs(found - others).max() > 0.1 * np.abs(others).max()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("qdq", [False, True], ids=["blocks", "qdq"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("zeros", ["symmetric", "integer"])
def test_the_manifest_names_the_columns_and_the_reader_finds_them_through_the_graph(
    rng, tmp_path, kind, zeros, qdq, tied
):
    _, export = outlier_model(
        rng, dataclasses.replace(OUTLIERS, bits=4, zeros=zeros), kind, tie_word_embeddings=tied
    )
    exported(export, tmp_path, qdq=qdq)
    reader, entries = (
        OnnxReader(tmp_path),
        json.loads((tmp_path / "manifest.json").read_text())["tensors"],
    )
    assert sorted(entry["name"] for entry in entries) == sorted(reader.tensor_names())
    for entry in entries:
        assert check_tensor(reader, entry, AsCheckpoint(export)).differences == [], entry["name"]
    linear = [entry for entry in entries if "proj.weight" in entry["name"]]
    assert {(entry["status"], entry["outlier_columns"]) for entry in linear} == {("exact", 0.05)}
    names = {
        each.name
        for each in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer
    }
    for entry in linear:
        assert entry["outliers"] == [
            f"{entry['name']}.outlier_columns",
            f"{entry['name']}.outlier_values",
        ]
        assert names >= set(entry["outliers"])


class AsCheckpoint:
    """A solved model as what `verify` compares with."""

    def __init__(self, model):
        self.grid, self.quantized, self.dense = model.grid, model.quantized, model.dense
        self.read = model.weights().__getitem__


def test_columns_lie_in_the_file_as_they_were_solved(rng, tmp_path):
    _, export = outlier_model(rng, OUTLIERS)
    graph = onnx.load(exported(export, tmp_path)).graph
    stored = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    outliers = export.layers[UP].outliers
    np.testing.assert_array_equal(stored[f"{UP}.outlier_columns"], outliers.columns)
    np.testing.assert_array_equal(
        stored[f"{UP}.outlier_values"], outliers.values.T.astype(np.float16)
    )
    assert stored[f"{UP}.outlier_values"].dtype == np.float16


def test_a_graph_that_drops_or_moves_columns_is_found(rng, tmp_path):
    _, export = outlier_model(rng, OUTLIERS)
    file = exported(export, tmp_path)
    (entry,) = (
        each
        for each in json.loads((tmp_path / "manifest.json").read_text())["tensors"]
        if each["name"] == UP
    )
    model = onnx.load(file, load_external_data=False)
    (total,) = (
        node
        for node in model.graph.node
        if node.op_type == "Add" and node.name == UP.removesuffix(".weight")
    )
    (picked,) = (
        node
        for node in model.graph.node
        if node.op_type == "Gather" and f"{UP}.outlier_columns" in node.input
    )
    input_of_codes = picked.input[0]
    picked.input[0] = "model.layers.0.self_attn"
    onnx.save(model, file)
    (difference,) = check_tensor(OnnxReader(tmp_path), entry, None).differences
    assert "multiplies other inputs" in difference
    picked.input[0] = input_of_codes
    total.op_type = "Sub"
    onnx.save(model, file)
    (difference,) = check_tensor(OnnxReader(tmp_path), entry, None).differences
    assert difference.startswith("hash")


def test_the_hash_of_a_solution_covers_its_columns(rng):
    layer = outlier_model(rng, OUTLIERS)[1].layers[UP]
    values, columns = layer.outliers.values.copy(), layer.outliers.columns.copy()
    values[3, 1] *= 2
    columns[-1] -= columns[-1] - columns[-2] > 1 or -1
    others = [
        dataclasses.replace(layer.outliers, values=values),
        dataclasses.replace(layer.outliers, columns=columns),
    ]
    hashes = [
        hash_of_layer(dataclasses.replace(layer, outliers=each))
        for each in (layer.outliers, None, *others)
    ]
    assert len(set(hashes)) == 4


@pytest.mark.parametrize("name", CODES_ONLY)
def test_a_container_of_codes_alone_refuses_before_a_byte_is_written(rng, tmp_path, name):
    _, export = outlier_model(rng, dataclasses.replace(OUTLIERS, bits=4), vocab_size=320)
    exporter = load_exporter(name)
    reason = exporter.reject_reason(export.record, export.files, shapes_of(export))
    assert "no place for outlier columns" in reason and "quantize without them" in reason
    with pytest.raises(BadInput, match="no place for outlier columns"):
        exporter.write(export, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("qdq", [False, True], ids=["blocks", "qdq"])
def test_an_embedding_with_outlier_columns_is_refused(rng, qdq):
    _, export = outlier_model(rng, OUTLIERS)
    export = with_grid(export, rng, EMBEDDING, OUTLIERS)
    reason = OnnxExporter(qdq=qdq).reject_reason(export.record, export.files, shapes_of(export))
    assert reason.startswith(f"tensor '{EMBEDDING}'") and "outlier columns" in reason
