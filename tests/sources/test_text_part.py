"""Language models inside of checkpoints that also read pictures, beside transformers' own."""

import json

import numpy as np
import pytest
import torch
from command_line import finished
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from edgeq.architectures.record import read_record
from edgeq.architectures.text_part import text_config
from edgeq.errors import BadInput
from edgeq.measuring.targets import model_logits
from edgeq.sources import open_source
from edgeq.sources.outline import ModelOutline

TEXT = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "image_size": 28}
VISION |= {"num_attention_heads": 2, "patch_size": 14}
QWEN = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "out_hidden_size": 64}
MROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
KINDS = {
    "gemma3": (
        {**TEXT, "model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 16},
        {**VISION, "model_type": "siglip_vision_model"},
    ),
    "mistral3": (
        {**TEXT, "model_type": "mistral", "head_dim": 16},
        {**VISION, "model_type": "pixtral"},
    ),
    "llava": ({**TEXT, "model_type": "llama"}, {**VISION, "model_type": "clip_vision_model"}),
    "qwen2_5_vl": ({**TEXT, "rope_parameters": MROPE}, {**QWEN, "intermediate_size": 48}),
    "qwen3_vl": ({**TEXT, "head_dim": 16, "rope_parameters": MROPE}, {**QWEN, "depth": 1}),
    "idefics3": ({**TEXT, "model_type": "llama"}, {**VISION, "model_type": "idefics3_vision"}),
}


@pytest.fixture(params=KINDS)
def whole(request, tmp_path):
    """A model that reads pictures and text, saved by transformers."""
    text, vision = KINDS[request.param]
    config = AutoConfig.for_model(request.param, text_config=text, vision_config=vision)
    if request.param == "qwen3_vl":
        config.vision_config.deepstack_visual_indexes = [0]
    torch.manual_seed(0)
    made = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for path, parameter in made.named_parameters():
            if parameter.ndim == 2 and "embed" not in path:
                parameter.normal_(0, parameter.shape[1] ** -0.5)
    made.save_pretrained(tmp_path / "model")
    return made, tmp_path / "model"


def test_the_language_model_is_read_and_the_rest_is_said(whole):
    made, folder = whole
    source = open_source(str(folder))
    assert any("the language model alone is read" in note for note in source.record.notes)
    ids = np.arange(3, 35)[None]
    with torch.no_grad():
        expected = made(input_ids=torch.from_numpy(ids)).logits[0].numpy()
    found = next(iter(model_logits(source, "cpu").logits(ids)))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    shapes = ModelOutline(folder).record.decoder.tensor_shapes()
    assert shapes == {name: source.shape(name) for name in source.tensor_names()}


@pytest.mark.parametrize("kind", ["gemma3_text", "llama"])
def test_sizes_that_a_config_inside_leaves_out_are_those_of_transformers(kind):
    inner = {"model_type": kind, "hidden_size": 2560, "num_hidden_layers": 34}
    found = text_config({"model_type": "whole", "text_config": inner, "vision_config": {}})
    expected = AutoConfig.for_model(**inner)
    for key in ("num_attention_heads", "num_key_value_heads", "vocab_size", "intermediate_size"):
        assert found[key] == getattr(expected, key)
    assert read_record("m", found).decoder.hidden == 2560


def test_a_window_of_null_inside_stays_no_window():
    inner = {"model_type": "mistral", "hidden_size": 4096, "sliding_window": None}
    found = text_config({"model_type": "whole", "text_config": inner})
    assert found["sliding_window"] is None and found["num_attention_heads"] == 32
    assert read_record("m", found).decoder.window is None


@pytest.mark.parametrize("inner", [[], "x", {}, {"model_type": 3}])
def test_a_config_inside_that_is_none_is_named(inner):
    with pytest.raises(BadInput, match=r"text_config is .*; it must be an object"):
        text_config({"model_type": "llava", "text_config": inner})


def test_what_is_solved_is_a_language_model_of_its_own(whole, tmp_path):
    _, folder = whole
    out = tmp_path / "out"
    words = ("--bits", 8, "--group-size", 32, "--solver", "rtn", "--scales", "none")
    solve = (*words, "--propagation-strength", 0, "--backend", "cpu", "--json")
    done = json.loads(finished("quantize", folder, "-o", out, *solve).out)
    assert any("the language model alone is read" in note for note in done["notes"])
    finished("export", out, "--format", "compressed-tensors")
    config = json.loads((out / "compressed-tensors" / "config.json").read_text())
    assert "text_config" not in config
    loaded = AutoModelForCausalLM.from_pretrained(out / "compressed-tensors")
    assert type(loaded).__name__ in config["architectures"]
