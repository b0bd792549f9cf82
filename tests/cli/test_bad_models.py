"""Damaged models, and models that edgeq does not know: one clear line, exit status 1, nothing
written.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file


def damage_weight(model, name, value):
    tensors = load_file(model / "model.safetensors")
    tensors[name] = np.full_like(tensors[name], value)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def change_config(model, **changes):
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(model, **tensors):
    stored = load_file(model / "model.safetensors") | tensors
    save_file(stored, model / "model.safetensors", metadata={"format": "pt"})


def test_a_directory_without_weights_is_refused(refuse, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "safetensors" in refuse(tmp_path / "empty")


def test_a_truncated_safetensors_file_is_refused(refuse, model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "model.safetensors" in refuse(model)


@pytest.mark.parametrize(
    "shard", ["missing.safetensors", "../outside.safetensors", "/etc/outside.safetensors"]
)
def test_a_shard_index_that_names_a_missing_or_outside_file_is_refused(refuse, model, shard):
    weights = dict.fromkeys(load_file(model / "model.safetensors"), shard)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    assert shard in refuse(model)


def test_a_corrupt_gguf_header_is_refused(refuse, tmp_path):
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(range(200)))
    assert "GGUF" in refuse(file)


def test_a_pickle_checkpoint_is_refused(refuse, model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "pickle" in refuse(model)


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"]
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named(refuse, model, name, value):
    damage_weight(model, name, value)
    assert name in refuse(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"rms_norm_eps": "1e-5"},
        {"rms_norm_eps": -1},
        {"max_position_embeddings": "512"},
        {"max_position_embeddings": -1},
        {"tie_word_embeddings": "no"},
        {"hidden_act": 5},
        {"hidden_act": "nope"},
        {"dtype": "foo"},
        {"dtype": None, "torch_dtype": "float8_e4m3fn"},
        {"dtype": 16},
        {"is_causal": False},
        {"is_causal": "x"},
        {"eos_token_id": 10**400},
        {"attention_bias": "yes"},
        {"rope_parameters": "x"},
        {"rope_parameters": [1]},
        {"rope_parameters": {"rope_type": "llama3"}},
        {"rope_parameters": {"rope_type": 5}},
        {"rope_parameters": None, "rope_theta": "abc"},
        {"rope_parameters": None, "rope_theta": None},
        {"rope_parameters": {"rope_type": "linear", "factor": "2"}},
        {"pad_token_id": "x"},
        {"layer_types": 5},
        {"num_key_value_heads": 3},
        {"head_dim": 1},
        {"model_type": None},
        {"layer_types": ["x", "y"]},
    ],
)
def test_a_config_value_that_edgeq_cannot_work_with_is_named_at_once(refuse, model, changes):
    change_config(model, **changes)
    line = refuse(model)
    key = list(changes)[-1]
    assert key in line or "rope" in line or "heads are 1 wide" in line
    assert "transformers" not in line


@pytest.mark.parametrize(
    "changes",
    [
        {"pad_token_id": 99999999},
        {"initializer_range": "x"},
        {"rms_norm_eps": 1},
    ],
)
def test_a_config_that_transformers_refuses_is_refused_in_its_words(refuse, model, changes):
    change_config(model, **changes)
    assert "config.json of model 'damaged': transformers refuses it" in refuse(model)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        (
            "model.layers.0.mlp.gate2.weight",
            np.ones((64, 64), np.float32),
            "whose blocks hold self_attn.q_proj.weight",
        ),
        ("model.layers.0.mlp.up_proj.bias", np.ones(96, np.float32), "attention_bias or mlp_bias"),
        ("model.extra.weight", np.ones((64, 64), np.float32), "has no place"),
        ("model.layers.1.mlp.up_proj.weight", np.ones((96, 0), np.float32), "(96, 0)"),
        ("model.layers.0.input_layernorm.weight", np.ones((64, 1), np.float32), "(64, 1)"),
        ("model.norm.weight", np.ones(63, np.float32), "(63,)"),
        ("model.norm.weight", np.ones(64, np.int32), "I32"),
    ],
)
def test_a_tensor_that_the_model_does_not_have_so_is_named(refuse, model, name, array, words):
    change_weights(model, **{name: array})
    line = refuse(model)
    assert name in line
    assert words in line


@pytest.mark.parametrize(
    "content",
    [
        '"x": "\\ud800"',
        '"\\udfff": 1',
        '"x": NaN',
        '"x": -Infinity',
        '"x": 1e999',
        f'"x": {"[" * 500 + "]" * 500}',
        f'"x": {"9" * 5000}',
    ],
)
def test_a_config_that_could_not_be_written_again_is_refused_at_once(refuse, model, content):
    path = model / "config.json"
    path.write_text(path.read_text().rstrip().removesuffix("}") + f", {content}}}")
    assert "config.json' cannot be read as JSON" in refuse(model)


def test_a_matrix_of_zeros_is_named_like_one_that_is_not_finite(refuse, model):
    name = "model.layers.1.mlp.up_proj.weight"
    damage_weight(model, name, 0)
    assert f"tensor '{name}' of {model}/model.safetensors is all zeros" in refuse(model)


def test_a_norm_of_zeros_is_named_where_its_block_is_read(refuse, model):
    damage_weight(model, "model.layers.0.input_layernorm.weight", 0)
    assert "input_layernorm.weight' of 'damaged' is all zeros" in refuse(model)


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"]
)
@pytest.mark.parametrize("value", [1e30, 3.4e38])
def test_weights_near_the_end_of_float32_are_named(refuse, model, name, value):
    stored = load_file(model / "model.safetensors")[name]
    stored[3, 5] = value
    change_weights(model, **{name: stored})
    assert f"tensor '{name}' holds a weight of {value:.3g}, and grids hold none" in refuse(model)


@pytest.mark.filterwarnings("error")
def test_weights_that_overflow_are_named_without_a_warning(refuse, model):
    name = "model.layers.0.mlp.up_proj.weight"
    change_weights(model, **{name: np.full((96, 64), 1e300)})
    assert name in refuse(model)


def test_a_tokenizer_larger_than_the_embedding_is_refused(edgeq, refuse, model, text_file):
    tensors = load_file(model / "model.safetensors")
    change_weights(
        model, **{"model.embed_tokens.weight": tensors["model.embed_tokens.weight"][:100]}
    )
    change_config(model, vocab_size=100)
    assert "the embedding has 100 rows" in refuse(model)
    result = edgeq(
        "evaluate", model, "--text", text_file, "--sequence-length", "32", "--backend", "cpu"
    )
    assert result.status == 1
    assert "the embedding has 100 rows" in result.err


def test_predictions_that_are_no_numbers_are_an_error(edgeq, model, text_file):
    damage_weight(model, "model.norm.weight", 3e38)
    options = ["--text", text_file, "--windows", "1", "--sequence-length", "32", "--backend", "cpu"]
    result = edgeq("evaluate", model, *options)
    assert result.status == 1
    assert result.out == ""
    assert "predicts NaN or infinity" in result.err


def test_an_evaluation_that_cannot_work_is_refused_before_the_run(refuse, model):
    change_config(model, max_position_embeddings=1)
    options = ["--solver", "rtn", "--scales", "none", "--propagation-strength", "0", "--evaluate"]
    assert "evaluation needs windows of 8" in refuse(model, *options)
