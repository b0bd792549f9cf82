"""Values of configs that every family has; transformers' own loader says which of them run."""

import json
import logging

import numpy as np
import pytest
import torch
from tiny_models import ONE_BLOCK
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging as library

from edgeq.architectures.config_checks import FUNCTIONS
from edgeq.architectures.loader_keys import PARTS
from edgeq.architectures.record import Evidence, read_record
from edgeq.errors import BadInput, EdgeqError, UnsupportedModel

FULL, SLIDING = "full_attention", "sliding_attention"
TWO_BLOCKS = ONE_BLOCK | {"num_hidden_layers": 2, "head_dim": 32, "num_key_value_heads": 1}
ROPE = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 32},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "proportional": {},
}


@pytest.fixture
def runs(tmp_path):
    """Say whether transformers loads a config, and computes with and without a cache."""

    def ask(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        verbosity = library.get_verbosity()
        library.set_verbosity(logging.CRITICAL)
        try:
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path)).eval()
            with torch.no_grad():
                for use_cache in (False, True):
                    _ = model(torch.arange(12)[None], use_cache=use_cache).logits
        except Exception:  # of many kinds, each from another place of the library
            return False
        finally:
            library.set_verbosity(verbosity)
        return True

    return ask


def is_read(config):
    try:
        read_record("m", config)
    except EdgeqError as error:
        assert "\n" not in str(error)
        return False
    return True


def test_activation_functions_are_those_of_the_library():
    assert set(FUNCTIONS) == set(ACT2FN)


def test_parts_of_configs_are_those_of_the_library():
    of_class = {name: getattr(PreTrainedConfig, name) for name in dir(PreTrainedConfig)}
    unset = {
        name
        for name, part in of_class.items()
        if callable(part) or (isinstance(part, property) and part.fset is None)
    }
    assert set(PARTS) == {name for name in unset if not name.startswith("_")} | {"sub_configs"}


@pytest.mark.parametrize(
    ("key", "value"),
    [("dtype", "int8"), ("torch_dtype", ["float16"]), ("hidden_act", ["silu"]), ("hidden_act", "")],
)
def test_what_no_loader_takes_is_named(key, value):
    with pytest.raises(BadInput, match=f"^config: {key} is .* it must be"):
        read_record("m", ONE_BLOCK | {key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_return_dict", True),
        ("to_dict", "x"),
        ("get_text_config", "x"),
        ("sub_configs", {}),
        ("__class__", 5),
        ("return_dict", False),
        ("return_dict", None),
        ("attribute_map", None),
        ("attribute_map", {"hidden_act": "model_type"}),
        ("experts_implementation", "x"),
        ("_experts_implementation", "x"),
        ("_attn_implementation", "flash_attention_2"),
        ("_attn_implementation", 5),
        ("per_layer_config", []),
        ("per_layer_config", False),
        ("tie_word_embeddings", None),
        ("use_cache", "x"),
        ("use_cache", None),
        ("use_cache", 1),
        ("num_labels", None),
        ("id2label", []),
        ("id2label", {"a": 1}),
        ("attention_dropout", "x"),
        ("base_model_tp_plan", 5),
        ("auto_map", None),
        ("ignore_keys_at_rope_validation", 5),
    ],
)
def test_keys_that_the_library_stumbles_over_are_named(runs, key, value):
    with pytest.raises(BadInput, match=f"^config: {key} is "):
        read_record("m", ONE_BLOCK | {key: value})
    assert not runs(ONE_BLOCK | {key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transformers_weights", "other.safetensors"),
        ("quantization_config", {}),
        ("quantization_config", []),
        ("output_hidden_states", "x"),
    ],
)
def test_keys_that_lead_to_other_weights_or_outputs_are_named(key, value):
    """Transformers comes to them with weights alone, or only in some of its versions."""
    with pytest.raises(BadInput, match=f"^config: {key} is .* it must be"):
        read_record("m", ONE_BLOCK | {key: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"use_cache": False},
        {"quantization_config": None},
        {"per_layer_config": {}},
        {"attribute_map": {}},
        {"experts_implementation": None},
        {"auto_map": {}},
        {"id2label": {"0": "a"}},
        {"id2label": None},
        {"attention_dropout": 0},
        {"base_model_tp_plan": {}},
        {"output_hidden_states": None},
    ],
    ids=str,
)
def test_what_the_library_takes_is_read(runs, changes):
    assert is_read(ONE_BLOCK | changes)
    assert runs(ONE_BLOCK | changes)


def test_exports_do_not_say_which_code_runs_a_model():
    config = ONE_BLOCK | {"attn_implementation": "flash_attention_2", "compile_config": {}}
    assert read_record("m", config).settled_config() == ONE_BLOCK


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("kinds", [[FULL, SLIDING], [FULL, FULL], [FULL], ["x", FULL], None])
@pytest.mark.parametrize("window", [8, None, "absent"])
@pytest.mark.parametrize("slides", [True, False])
def test_kinds_of_layers_are_taken_where_the_library_runs_them(
    runs, model_type, kinds, window, slides
):
    config = TWO_BLOCKS | {"model_type": model_type, "use_sliding_window": slides}
    config |= {} if window == "absent" else {"sliding_window": window}
    config |= {} if kinds is None else {"layer_types": kinds}
    if model_type == "mistral" and kinds is not None:
        with pytest.raises(UnsupportedModel, match="layer_types makes a Ministral"):
            read_record("m", config)
    else:
        assert is_read(config) == runs(config)


def test_a_mistral_with_kinds_of_layers_is_another_model_to_the_library(tmp_path):
    config = TWO_BLOCKS | {"model_type": "mistral", "layer_types": [FULL, SLIDING]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert AutoConfig.from_pretrained(tmp_path).model_type == "ministral"


@pytest.mark.parametrize("kind", ["chunked_attention", "linear_attention"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_other_kinds_of_layers_are_named(model_type, kind):
    config = TWO_BLOCKS | {"model_type": model_type, "layer_types": [FULL, kind]}
    with pytest.raises(BadInput, match=f"layer_types has '{kind}'; a {model_type} model has"):
        read_record("m", config)


@pytest.mark.parametrize("kind", ROPE)
@pytest.mark.parametrize("part", [0.5, 1.0, None, 0.0, 2.0])
@pytest.mark.parametrize("inside", [True, False])
def test_heads_are_rotated_in_part_where_the_library_does_so(runs, kind, part, inside):
    settings = {"rope_type": kind, "rope_theta": 10000.0, **ROPE[kind]}
    stated = {"partial_rotary_factor": part}
    config = TWO_BLOCKS | {"rope_scaling": settings | (stated if inside else {})}
    config |= {} if inside else stated
    assert is_read(config) == runs(config)


@pytest.mark.parametrize("value", [1e39, 1e300, 1e-50, 1e-320])
@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps"])
def test_numbers_beyond_float32_are_named(key, value):
    with np.errstate(over="ignore", under="ignore"):
        single = abs(np.array(value).astype(np.float32))
    assert not np.finfo(np.float32).tiny <= single <= np.finfo(np.float32).max
    with pytest.raises(BadInput, match=f"^config: {key} is .* a positive number that float32"):
        read_record("m", ONE_BLOCK | {key: value})


@pytest.mark.parametrize("value", [1e300, -1e39])
def test_factors_of_other_kinds_of_rope_beyond_float32_are_named(value):
    settings = {"rope_type": "yarn", **ROPE["yarn"], "attention_factor": value}
    with pytest.raises(BadInput, match=r"^config: rope_scaling.attention_factor is .* float32"):
        read_record("m", ONE_BLOCK | {"rope_scaling": settings})


@pytest.mark.parametrize(
    ("kind", "key"), [(kind, key) for kind in ("linear", "llama3") for key in ROPE[kind]]
)
@pytest.mark.parametrize("value", [1e300, 1e-60])
def test_numbers_of_rope_beyond_float32_are_named(kind, key, value):
    settings = {"rope_type": kind, **ROPE[kind], key: value}
    with pytest.raises(BadInput, match=rf"^config: rope_scaling.{key} is .* float32 holds"):
        read_record("m", ONE_BLOCK | {"rope_scaling": settings})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "x"),
        ("temperature", -1.0),
        ("temperature", 1e300),
        ("temperature", True),
        ("top_k", [1]),
        ("top_k", 2.5),
        ("top_k", -1),
        ("top_p", 1.5),
        ("top_p", "x"),
        ("repetition_penalty", 0),
        ("repetition_penalty", {}),
        ("do_sample", "yes"),
        ("do_sample", 1),
        ("max_new_tokens", -1),
    ],
)
def test_ways_to_choose_tokens_that_are_none_are_named(key, value):
    files = {"generation_config.json": json.dumps({key: value}).encode()}
    with pytest.raises(BadInput, match=f"^generation_config.json: {key} is .* it must be"):
        read_record("m", ONE_BLOCK, Evidence(files))


def test_ways_to_choose_tokens_are_taken():
    stated = {"temperature": 0, "top_k": 0, "top_p": 1, "repetition_penalty": 1.1}
    stated |= {"do_sample": None, "max_new_tokens": 8}
    files = {"generation_config.json": json.dumps(stated).encode()}
    assert read_record("m", ONE_BLOCK, Evidence(files)).vocabulary == ONE_BLOCK["vocab_size"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_numbers_that_json_has_not_are_refused_in_any_file(name, number):
    files = {name: b'{"other": [%s]}' % number.encode()}
    with pytest.raises(BadInput, match=f"^'{name}' of the model is not valid JSON: .*{number}"):
        read_record("m", ONE_BLOCK, Evidence(files))
