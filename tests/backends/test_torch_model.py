"""The model that torch runs is that of the config, whatever the config says of other matters."""

import json

import numpy as np
import pytest
import torch
from models import tiny_llama
from transformers import AutoModelForCausalLM

from edgeq.sources.safetensors_directory import SafetensorsDirectory
from edgeq_backends.torch.activations import TorchActivations, TorchLogits

IDS = np.arange(24).reshape(2, 12)
FORM = [
    {"gradient_checkpointing": True},
    {"output_hidden_states": True},
    {"output_attentions": True},
    {"use_cache": False},
    {"return_dict": True},
    {"_attn_implementation": "eager"},
    {"attn_implementation": "flash_attention_2"},
    {"torchscript": True},
    {"torch_dtype": "auto"},
    {"dtype": "torch.bfloat16"},
    {"attn_implementation": 5},
    {"tie_encoder_decoder": True},
    {"is_encoder_decoder": True},
    {"is_decoder": False, "add_cross_attention": True},
    {"pruned_heads": {"0": [1]}},
    {"chunk_size_feed_forward": 3},
    {"problem_type": "nonsense"},
    {"id2label": {"0": "x"}, "label2id": [1]},
    {"num_labels": -3},
    {"architectures": 5},
    {"auto_map": {"AutoConfig": "evil.Config"}},
    {"max_new_tokens": "x", "cache_implementation": "x"},
    {"transformers_version": 5},
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_llama().save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        expected = model.eval()(input_ids=torch.from_numpy(IDS)).logits.numpy()
    return folder, json.loads((folder / "config.json").read_text()), expected


@pytest.mark.parametrize("changes", FORM, ids=" ".join)
def test_keys_of_training_and_output_change_nothing(saved, changes):
    folder, config, expected = saved
    (folder / "config.json").write_text(json.dumps(config | changes))
    source = SafetensorsDirectory(folder)
    found = np.stack(list(TorchLogits(source).logits(IDS)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    streams = TorchActivations(source, IDS, drift=0.0, exact=True)
    site = next(iter(streams.sites(source.blocks()[0])))
    assert all(np.isfinite(np.asarray(inputs)).all() for _, inputs in site.batches())


def test_keys_of_the_computation_are_kept(saved):
    folder, config, expected = saved
    other = {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}
    (folder / "config.json").write_text(json.dumps(config | other))
    found = np.stack(list(TorchLogits(SafetensorsDirectory(folder)).logits(IDS)))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        own = model(input_ids=torch.from_numpy(IDS)).logits.numpy()
    np.testing.assert_allclose(found, own, atol=1e-5)
    assert np.abs(found - expected).max() > 1e-3
