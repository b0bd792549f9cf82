"""MLX directories in mlx-lm, compared with torch on the dequantized weights."""

import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from solved_models import FOUR_BITS, LLAMA_3_ROPE, in_float16, solved, tiny, torch_logits
from tiny_models import random_layer

import edgeq_exporters.common.safetensors_directory as directory_module
from edgeq.types import Grid
from edgeq_exporters.mlx.exporter import MlxExporter
from edgeq_exporters.mlx.format import FORMAT
from edgeq_exporters.mlx.tensors import quantized_tensors

mx = pytest.importorskip("mlx.core", reason="needs mlx", exc_type=ImportError)
load_model = pytest.importorskip(
    "mlx_lm.utils", reason="needs mlx-lm", exc_type=ImportError
).load_model

CLOSE = 1e-3  # of the largest logit; a wrong frequency or a missing bias moves logits by tenths
TOKENS = 40


@pytest.fixture
def ids(rng):
    return rng.integers(0, 96, (1, TOKENS))


def mlx_logits(export, directory, ids):
    first, *_ = MlxExporter().write(export, directory)
    return logits_in(first, ids)


def logits_in(directory, ids):
    model, _ = load_model(Path(directory))
    model.set_dtype(mx.float32)  # the CPU's kernels for float16 are many times slower
    return np.array(model(mx.array(ids)))


def assert_alike(found, reference):
    assert np.abs(found - reference).max() < CLOSE * np.abs(reference).max()
    np.testing.assert_array_equal(found.argmax(-1), reference.argmax(-1))


@pytest.mark.parametrize("zeros", ["symmetric", "offset"])
@pytest.mark.parametrize("group_size", FORMAT.groups.only)
@pytest.mark.parametrize("bits", FORMAT.bits)
def test_mlx_lm_predicts_like_torch_with_the_dequantized_weights(
    rng, tmp_path, ids, bits, group_size, zeros
):
    model = tiny()
    export = solved(model, rng, [Grid(bits, group_size, zeros)])
    assert_alike(mlx_logits(export, tmp_path, ids), torch_logits(model, in_float16(export), ids))


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_every_kind_of_model_runs_with_its_biases(rng, tmp_path, ids, kind):
    model = tiny(kind)
    export = solved(model, rng, [FOUR_BITS])
    assert any(name.endswith(".bias") for name in export.arrays) == (kind == "qwen2")
    assert_alike(mlx_logits(export, tmp_path, ids), torch_logits(model, in_float16(export), ids))


def test_biases_that_a_llama_config_asks_for_run_in_mlx_lm(rng, tmp_path, ids):
    model = tiny(attention_bias=True, mlp_bias=True)
    export = solved(model, rng, [FOUR_BITS])
    assert "model.layers.0.mlp.down_proj.bias" in export.arrays
    assert_alike(mlx_logits(export, tmp_path, ids), torch_logits(model, in_float16(export), ids))


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_heads_wider_than_hidden_size_over_heads_run_in_mlx_lm(rng, tmp_path, ids, kind):
    model = tiny(kind, head_dim=64)
    export = solved(model, rng, [FOUR_BITS])
    assert_alike(mlx_logits(export, tmp_path, ids), torch_logits(model, in_float16(export), ids))


def test_a_mixed_model_with_a_quantized_tied_embedding_and_dense_layers_runs_in_mlx_lm(
    rng, tmp_path, ids
):
    model = tiny()
    grids = [
        Grid(8, 32),
        Grid(4, 64),
        Grid(3, 128, "offset"),
        None,
        Grid(5, 32),
        Grid(6, 64, "offset"),
        Grid(2, 32),
    ]
    export = solved(model, rng, grids)
    assert export.layers["model.embed_tokens.weight"].grid == Grid(8, 32)
    assert_alike(mlx_logits(export, tmp_path, ids), torch_logits(model, in_float16(export), ids))


@pytest.mark.parametrize(
    "grids", [[FOUR_BITS], [None, FOUR_BITS], [None]], ids=["all", "some", "none"]
)
def test_an_untied_head_runs_in_mlx_lm(rng, tmp_path, ids, grids):
    model = tiny(tie_word_embeddings=False)
    export = solved(model, rng, grids)
    assert_alike(mlx_logits(export, tmp_path, ids), torch_logits(model, in_float16(export), ids))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 300.0},
        {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0},
        LLAMA_3_ROPE,
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rotary_settings_that_only_transformers_nests_reach_mlx_lm(rng, tmp_path, ids, kind, rope):
    model = tiny(kind, rope_parameters=rope)
    export = solved(model, rng, [FOUR_BITS])
    assert "rope_theta" not in export.config and "rope_scaling" not in export.config
    reference = torch_logits(model, in_float16(export), ids)
    assert_alike(mlx_logits(export, tmp_path, ids), reference)
    plain = torch_logits(tiny(kind), in_float16(export), ids)
    assert np.abs(plain - reference).max() > 10 * CLOSE * np.abs(reference).max()


def test_rotary_settings_at_the_top_of_the_config_reach_mlx_lm_under_either_name_of_their_type(
    rng, tmp_path, ids
):
    model = tiny(rope_parameters=LLAMA_3_ROPE)
    export = solved(model, rng, [FOUR_BITS])
    older = {"type": "llama3"} | {
        key: LLAMA_3_ROPE[key] for key in LLAMA_3_ROPE if not key.startswith("rope")
    }
    config = {key: value for key, value in export.config.items() if key != "rope_parameters"}
    export = dataclasses.replace(
        export, config=config | {"rope_theta": 500.0, "rope_scaling": older}
    )
    assert_alike(mlx_logits(export, tmp_path, ids), torch_logits(model, in_float16(export), ids))


def test_layer_types_of_a_llama_mean_in_mlx_lm_what_they_mean_in_torch(rng, tmp_path, ids):
    model = tiny()
    export = solved(model, rng, [FOUR_BITS])
    sliding = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4}
    export = dataclasses.replace(export, config=export.config | sliding)
    assert_alike(mlx_logits(export, tmp_path, ids), torch_logits(model, in_float16(export), ids))


def test_settings_of_a_mistral_that_transformers_does_not_know_are_no_settings_in_mlx_lm(
    rng, tmp_path, ids
):
    model = tiny("mistral")
    export = solved(model, rng, [FOUR_BITS])
    foreign = {"attention_bias": True, "mlp_bias": True}
    export = dataclasses.replace(export, config=export.config | foreign)
    assert_alike(mlx_logits(export, tmp_path, ids), torch_logits(model, in_float16(export), ids))


def test_mlx_lm_attends_beyond_the_sliding_window_of_a_mistral(rng, tmp_path, ids):
    export = solved(tiny("mistral", sliding_window=8), rng, [FOUR_BITS])
    everything, window = (
        torch_logits(tiny("mistral", sliding_window=size), in_float16(export), ids)
        for size in (None, 8)
    )
    found = mlx_logits(export, tmp_path, ids)
    assert json.loads((tmp_path / "config.json").read_text())["max_position_embeddings"] == 8
    assert any("cut to 8 tokens" in note for note in MlxExporter().notes(export.record, {}, {}))
    assert_alike(found, everything)
    assert_alike(found[:, :8], window[:, :8])
    assert np.abs(found - window).max() > 10 * CLOSE * np.abs(window).max()


@pytest.mark.parametrize("scale_dtype", ["bfloat16", "float32"])
def test_other_scale_types_run_in_mlx_lm_and_give_dense_tensors_their_precision(
    rng, tmp_path, ids, scale_dtype
):
    model = tiny()
    export = solved(model, rng, [None, Grid(4, 32, "offset", scale_dtype)])
    export.config = {**export.config, "dtype": "bfloat16"}
    found = mlx_logits(export, tmp_path, ids)
    stored = load_file(tmp_path / "model.safetensors")
    kept = np.dtype(ml_dtypes.bfloat16 if scale_dtype == "bfloat16" else np.float32)
    assert {array.dtype for array in stored.values()} == {kept, np.dtype(np.uint32)}
    weights = export.weights() | {
        name: export.arrays[name].astype(kept).astype("f4") for name in export.arrays
    }
    assert_alike(found, torch_logits(model, weights, ids))


def test_integer_zero_points_run_in_mlx_lm_with_rounded_offsets(rng, tmp_path, ids):
    model = tiny()
    export = solved(model, rng, [Grid(4, 32, "integer")])
    weights = in_float16(export)
    for name, layer in export.layers.items():
        offsets = layer.offsets.astype(np.float16).astype(np.float32)
        weights[name] = dataclasses.replace(layer, offsets=offsets).dequantized()
    assert_alike(mlx_logits(export, tmp_path, ids), torch_logits(model, weights, ids))


def test_shards_predict_exactly_like_one_file(rng, tmp_path, ids, monkeypatch):
    export = solved(tiny(tie_word_embeddings=False), rng, [FOUR_BITS, None])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    expected = mlx_logits(export, whole, ids)
    monkeypatch.setattr(directory_module, "SHARD_BYTES", 100_000)
    np.testing.assert_array_equal(mlx_logits(export, parts, ids), expected)
    assert len(list(parts.glob("model-*.safetensors"))) > 2


def codes_bit_by_bit(words, bits, columns):
    """Each row as one long number whose lowest bits are the first code."""
    rows = [sum(int(word) << (32 * place) for place, word in enumerate(row)) for row in words]
    return np.array(
        [[row >> (bits * column) & (2**bits - 1) for column in range(columns)] for row in rows],
        np.uint8,
    )


@pytest.mark.parametrize("group_size", FORMAT.groups.only)
@pytest.mark.parametrize("bits", FORMAT.bits)
def test_packed_words_are_read_alike_by_mlx_and_bit_by_bit(rng, bits, group_size):
    layer = random_layer(rng, (5, 384), Grid(bits, group_size, "offset", "float32"))
    assert (layer.scales < 0).any()
    stored, held = quantized_tensors("P.weight", layer)
    words = stored["P.weight"]
    assert (words.dtype, words.shape) == (np.uint32, (5, 384 * bits // 32))
    np.testing.assert_array_equal(held.dequantized(), layer.dequantized())
    np.testing.assert_array_equal(codes_bit_by_bit(words, bits, 384), layer.codes)
    parts = [mx.array(stored[name]) for name in ("P.weight", "P.scales", "P.biases")]
    read = np.array(mx.dequantize(*parts, group_size=group_size, bits=bits))
    np.testing.assert_allclose(read, layer.dequantized(), rtol=0, atol=1e-6)
