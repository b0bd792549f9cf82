"""ONNX graphs in ONNX Runtime, compared with torch on the dequantized weights."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from solved_models import FOUR_BITS, LLAMA_3_ROPE, shapes_of, solved, tiny, torch_logits, with_grid
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from edgeq.architectures.record import read_record
from edgeq.types import Grid
from edgeq_exporters.onnx.exporter import OnnxExporter
from edgeq_exporters.onnx.rotary import rotary_tables, tables_of

pytest.importorskip("onnxruntime", reason="needs onnxruntime", exc_type=ImportError)
from onnx_sessions import (
    CLOSE,
    advance,
    assert_alike,
    empty_cache,
    exported,
    onnx_logits,
    open_session,
    stepwise_logits,
)

EMBEDDING = "model.embed_tokens.weight"
TOKENS = 40


@pytest.fixture
def ids(rng):
    return rng.integers(0, 96, (1, TOKENS))


def assert_runs_like_torch(model, export, file, ids):
    reference = torch_logits(model, export.weights(), ids)
    assert_alike(onnx_logits(file, ids), reference)
    assert_alike(stepwise_logits(file, ids, first=TOKENS - 6), reference)


def with_whole_zeros_in_embedding(export, rng, grid):
    """An embedding holds no free offsets."""
    return with_grid(export, rng, EMBEDDING, dataclasses.replace(grid, zeros="integer"))


@pytest.mark.parametrize("qdq", [False, True], ids=["blocks", "qdq"])
@pytest.mark.parametrize("zeros", ["symmetric", "integer", "offset"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_a_grid_runs_like_torch_or_is_refused(rng, tmp_path, ids, bits, group_size, zeros, qdq):
    model = tiny(num_hidden_layers=1)
    grid = Grid(bits, group_size, zeros)
    export = with_whole_zeros_in_embedding(solved(model, rng, [grid]), rng, grid)
    if zeros == "offset" and (qdq or bits > 4):
        assert "holds no free offsets" in OnnxExporter(qdq=qdq).reject_reason(
            export.record, {}, shapes_of(export)
        )
        return
    file = exported(export, tmp_path, qdq=qdq)
    assert_alike(onnx_logits(file, ids), torch_logits(model, export.weights(), ids))


@pytest.mark.parametrize("qdq", [False, True], ids=["blocks", "qdq"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_every_kind_of_model_runs_with_its_biases_at_once_and_step_by_step(
    rng, tmp_path, ids, kind, qdq
):
    model = tiny(kind)
    export = solved(model, rng, [FOUR_BITS])
    assert any(name.endswith(".bias") for name in export.arrays) == (kind == "qwen2")
    assert_runs_like_torch(model, export, exported(export, tmp_path, qdq=qdq), ids)


def test_biases_that_a_llama_config_asks_for_run(rng, tmp_path, ids):
    model = tiny(attention_bias=True, mlp_bias=True)
    export = solved(model, rng, [FOUR_BITS])
    assert "model.layers.0.mlp.down_proj.bias" in export.arrays
    assert_runs_like_torch(model, export, exported(export, tmp_path), ids)


@pytest.mark.parametrize("qdq", [False, True], ids=["blocks", "qdq"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "embedding", [None, Grid(8, 32), Grid(4, 64, "integer"), Grid(3, 128), Grid(2, 32)]
)
def test_embedding_and_head_run_dense_and_quantized(rng, tmp_path, ids, embedding, tied, qdq):
    model = tiny(tie_word_embeddings=tied)
    export = solved(model, rng, [embedding, FOUR_BITS])
    file = exported(export, tmp_path, qdq=qdq)
    assert_alike(onnx_logits(file, ids), torch_logits(model, export.weights(), ids))


@pytest.mark.parametrize("qdq", [False, True], ids=["blocks", "qdq"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_odd_sizes_that_groups_do_not_divide_run(rng, tmp_path, tied, qdq):
    model = tiny(
        hidden_size=140, head_dim=32, intermediate_size=213, vocab_size=97, tie_word_embeddings=tied
    )
    grids = [
        Grid(8, 64),
        Grid(4, 32),
        Grid(3, 64, "integer"),
        Grid(4, 128),
        Grid(8, 48, "integer"),
        Grid(2, None),
    ]
    export = solved(model, rng, grids)
    ids = rng.integers(0, 97, (1, TOKENS))
    assert_runs_like_torch(model, export, exported(export, tmp_path, qdq=qdq), ids)


@pytest.mark.parametrize("group_size", [16, 48, 256, 512, 1000, None])
def test_group_sizes_that_are_made_of_blocks_run(rng, tmp_path, ids, group_size):
    model = tiny(intermediate_size=528, num_hidden_layers=1)
    if group_size == 1000:
        model = tiny(intermediate_size=800, num_hidden_layers=1)  # one group that is not filled
    export = solved(model, rng, [Grid(4, group_size, "integer")])
    assert_runs_like_torch(model, export, exported(export, tmp_path), ids)


@pytest.mark.parametrize("dense", ["float16", "float32", "bfloat16"])
def test_dense_tensors_of_every_type_run(rng, tmp_path, ids, dense):
    model = tiny(num_hidden_layers=1)
    export = solved(model, rng, [None, None, FOUR_BITS], dense=np.dtype(dense))
    assert_runs_like_torch(model, export, exported(export, tmp_path), ids)


@pytest.mark.parametrize("scale_dtype", ["bfloat16", "float32"])
def test_scales_of_other_types_run(rng, tmp_path, ids, scale_dtype):
    model = tiny(num_hidden_layers=1)
    export = solved(model, rng, [Grid(4, 32, "integer", scale_dtype)])
    assert_runs_like_torch(model, export, exported(export, tmp_path), ids)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 300.0},
        {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0},
        LLAMA_3_ROPE,
    ],
    ids=lambda rope: rope["rope_type"],
)
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_rotary_settings_are_in_the_graph(rng, tmp_path, ids, kind, rope):
    model = tiny(kind, rope_parameters=rope)
    export = solved(model, rng, [FOUR_BITS])
    assert_runs_like_torch(model, export, exported(export, tmp_path), ids)
    reference = torch_logits(model, export.weights(), ids)
    plain = torch_logits(tiny(kind), export.weights(), ids)
    assert np.abs(plain - reference).max() > 10 * CLOSE * np.abs(reference).max()


@pytest.mark.parametrize(
    "rope", [{"rope_type": "default", "rope_theta": 5e5}, LLAMA_3_ROPE | {"rope_theta": 5e5}]
)
def test_rotary_tables_are_those_of_transformers(rope):
    config = tiny(rope_parameters=rope, max_position_embeddings=8192).config
    decoder = read_record("tiny", config.to_dict()).decoder
    positions = torch.arange(8192)[None]
    expected = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    (tables,) = tables_of(decoder)
    for table, (reference,) in zip(rotary_tables(decoder, tables), expected, strict=True):
        np.testing.assert_allclose(
            table[:100], reference[:100, : table.shape[1]].numpy(), atol=2e-5
        )
        np.testing.assert_allclose(table, reference[:, : table.shape[1]].numpy(), atol=2e-3)


def test_a_mistral_attends_within_its_sliding_window(rng, tmp_path, ids):
    model = tiny("mistral", sliding_window=8)
    export = solved(model, rng, [FOUR_BITS])
    assert_runs_like_torch(model, export, exported(export, tmp_path), ids)
    everything = torch_logits(tiny("mistral", sliding_window=None), export.weights(), ids)
    reference = torch_logits(model, export.weights(), ids)
    assert np.abs(everything - reference).max() > 10 * CLOSE * np.abs(reference).max()


def test_only_those_blocks_of_a_qwen2_that_slide_have_a_window(rng, tmp_path, ids):
    sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    model = tiny("qwen2", **sliding)
    assert model.config.layer_types == ["full_attention", "sliding_attention"]
    export = solved(model, rng, [FOUR_BITS])
    assert_runs_like_torch(model, export, exported(export, tmp_path), ids)


def test_heads_wider_than_hidden_size_over_heads_run(rng, tmp_path, ids):
    model = tiny(head_dim=64)
    export = solved(model, rng, [FOUR_BITS])
    assert_runs_like_torch(model, export, exported(export, tmp_path), ids)


def test_texts_of_different_length_run_in_one_batch_padded_on_the_right(rng, tmp_path):
    model = tiny()
    export = solved(model, rng, [FOUR_BITS])
    session = open_session(exported(export, tmp_path), threads=1)
    texts, lengths = rng.integers(0, 96, (2, 20)), np.array([14, 9])
    first = np.where(np.arange(14) < lengths[:, None], texts[:, :14], 0)
    mask = (np.arange(14) < lengths[:, None]).astype(np.int64)
    logits, cache = advance(session, empty_cache(session, 2), first, mask)
    reference = torch_logits(model, export.weights(), texts)
    for text, length in enumerate(lengths):
        assert_alike(logits[text, :length], reference[text, :length])
    for step in range(6):
        new = np.take_along_axis(texts, (lengths + step)[:, None], axis=1)
        mask = (np.arange(15 + step) < (lengths + step + 1)[:, None]).astype(np.int64)
        logits, cache = advance(session, cache, new, mask)
        for text, length in enumerate(lengths):
            assert_alike(logits[text, 0], reference[text, length + step])


def test_accuracy_level_4_is_what_ships_and_rounds_activations(rng, tmp_path, ids):
    model = tiny()
    export = solved(model, rng, [FOUR_BITS])
    file = exported(export, tmp_path)
    levels = {
        attribute.i
        for node in onnx.load(file, load_external_data=False).graph.node
        for attribute in node.attribute
        if attribute.name == "accuracy_level"
    }
    assert levels == {4}
    exact, fast = (onnx_logits(file, ids, accuracy_level=level) for level in (0, 4))
    difference = np.abs(exact - fast).max() / np.abs(exact).max()
    assert CLOSE < difference < 0.2
