"""What the MLX exporter refuses, before any work and without leaving a byte."""

import dataclasses

import numpy as np
import pytest
from solved_models import FOUR_BITS, shapes_of, solved, tiny, with_grid

from edgeq.errors import BadInput
from edgeq.types import Grid
from edgeq_exporters.mlx.exporter import MlxExporter

BIAS = "model.layers.0.self_attn.q_proj.bias"
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
FACTOR_ONLY = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0}


def reason_of(model):
    reason = MlxExporter().reject_reason(model.record, model.files, shapes_of(model))
    assert reason is not None and "\n" not in reason
    return reason


def refused(model, directory):
    """The one line of a refusal, which leaves nothing behind and is known before any tensor is
    solved.
    """
    with pytest.raises(BadInput) as refusal:
        MlxExporter().write(model, directory)
    assert list(directory.iterdir()) == []
    assert str(refusal.value) == f"export 'mlx': {reason_of(model)}"
    return str(refusal.value)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (Grid(1, 32), "cannot compute with 1 bits; choose 2, 3, 4, 5, 6 or 8"),
        (Grid(7, 32, "offset"), "cannot compute with 7 bits"),
        (Grid(4, 16), "cannot compute with group_size 16; choose 32, 64 or 128"),
        (Grid(3, 16), "cannot compute with group_size 16"),
        (Grid(5, 256), "cannot compute with group_size 256"),
        (Grid(4, 48), "cannot compute with group_size 48"),
        (Grid(4, None), "cannot compute with one group per row; choose group_size 32, 64 or 128"),
    ],
)
def test_grids_that_mlx_would_multiply_wrongly_are_refused(rng, tmp_path, grid, words):
    model = with_grid(
        solved(tiny(), rng, [FOUR_BITS]), rng, "model.layers.1.mlp.down_proj.weight", grid
    )
    assert f"tensor 'model.layers.1.mlp.down_proj.weight': MLX {words}" in refused(model, tmp_path)


@pytest.mark.parametrize(
    ("columns", "group_size", "words"),
    [
        (192, 128, "192 is not a multiple of group_size 128; choose 32 or 64"),
        (96, 64, "96 is not a multiple of group_size 64; choose 32"),
        (80, 32, "80 is not a multiple of group_size 32; leave this tensor dense"),
        (64, 128, "64 is not a multiple of group_size 128; choose 32 or 64"),
    ],
)
def test_inputs_that_groups_do_not_divide_are_refused(rng, tmp_path, columns, group_size, words):
    model = solved(tiny(intermediate_size=columns), rng, [None])
    with_grid(model, rng, "model.layers.0.mlp.down_proj.weight", Grid(4, group_size))
    assert f"tensor 'model.layers.0.mlp.down_proj.weight': in_features {words}" in refused(
        model, tmp_path
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_file": "model.py"}, "names a model_file"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"rms_norm_eps": None}, "config.json lacks rms_norm_eps, which mlx-lm needs"),
        ({"rope_parameters": YARN | {"attention_factor": 2.0}}, "attention_factor 2.0"),
        ({"rope_parameters": YARN | {"mscale": 0.7}}, "one of mscale and mscale_all_dim"),
        ({"rope_parameters": YARN | {"truncate": False}}, "truncate false"),
        (
            {
                "rope_parameters": None,
                "rope_scaling": {"type": "dynamic", "factor": 2.0},
                "max_position_embeddings": None,
            },
            "rope type 'dynamic' needs max_position_embeddings",
        ),
        (
            {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}},
            "rope type 'proportional' of a llama model is not supported",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "rotary embedding of a part of each head",
        ),
        ({"partial_rotary_factor": 0.25}, "rotary embedding of a part of each head"),
        ({"attention_bias": True}, f"no tensor '{BIAS}', which config.json asks for"),
        ({"mlp_bias": True}, "no tensor 'model.layers.0.mlp.gate_proj.bias'"),
        ({"tie_word_embeddings": False}, "no tensor 'lm_head.weight'"),
        ({"num_hidden_layers": 3}, "no tensor 'model.layers.2.self_attn.q_proj.weight'"),
        ({"num_hidden_layers": 1}, "tensor 'model.layers.1.input_layernorm.weight' has no place"),
    ],
)
def test_llamas_that_mlx_lm_would_compute_differently_are_refused_by_name(
    rng, tmp_path, changes, words
):
    model = solved(tiny(), rng, [FOUR_BITS])
    assert words in refused(dataclasses.replace(model, config=model.config | changes), tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_dim": 64}, "head_dim 64 of a qwen2 model is not hidden_size 128 / 4 heads"),
    ],
)
def test_qwen2_models_that_mlx_lm_would_compute_differently_are_refused_by_name(
    rng, tmp_path, changes, words
):
    model = solved(tiny("qwen2"), rng, [FOUR_BITS])
    assert words in refused(dataclasses.replace(model, config=model.config | changes), tmp_path)


@pytest.mark.parametrize(
    ("kind", "name", "advice"),
    [
        ("llama", BIAS, "set attention_bias or mlp_bias in config.json"),
        ("mistral", BIAS, "only models with mlx-lm's own tensors"),
        ("qwen2", "model.layers.0.self_attn.o_proj.bias", "only models with mlx-lm's own tensors"),
        (
            "llama",
            "model.layers.0.self_attn.q_norm.weight",
            "only models with mlx-lm's own tensors",
        ),
    ],
)
def test_a_tensor_without_a_place_in_mlx_lm_is_refused_by_name(rng, tmp_path, kind, name, advice):
    model = solved(tiny(kind), rng, [FOUR_BITS])
    model.arrays[name] = np.ones(128, np.float32)
    text = refused(model, tmp_path)
    assert f"tensor '{name}' has no place in mlx-lm's {kind}" in text and advice in text


def test_a_model_without_its_embedding_or_a_qwen2_bias_is_refused(rng, tmp_path):
    model = solved(tiny(), rng, [FOUR_BITS])
    del model.layers["model.embed_tokens.weight"]
    assert "no tensor 'model.embed_tokens.weight'" in refused(model, tmp_path)
    biased = solved(tiny("qwen2"), rng, [FOUR_BITS])
    del biased.arrays[BIAS]
    assert f"no tensor '{BIAS}'" in refused(biased, tmp_path)


def test_a_shape_that_contradicts_the_config_is_refused_before_any_work(rng):
    model = solved(tiny(), rng, [FOUR_BITS])
    model.arrays["model.norm.weight"] = np.ones(64, np.float32)
    assert (
        "tensor 'model.norm.weight' has shape (64,) but config.json asks for (128,)"
        in reason_of(model)
    )
