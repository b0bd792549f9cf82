"""Forward passes in MLX against torch: sites, inputs, replaced weights, logits, and what is in
memory when.
"""

from collections import Counter
from itertools import zip_longest

import models
import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from edgeq.errors import UnsupportedModel
from edgeq.registry import ACTIVATIONS, LOGITS, load

mx = pytest.importorskip("mlx.core", reason="MLX has no build for this system")
pytestmark = pytest.mark.usefixtures("one_thread")

SITES = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**models.TINY)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**models.TINY, tie_word_embeddings=True)),
    "biases": lambda: LlamaForCausalLM(
        LlamaConfig(**models.TINY, attention_bias=True, mlp_bias=True)
    ),
    "llama 3 rope": lambda: LlamaForCausalLM(
        LlamaConfig(**models.TINY, rope_parameters=LLAMA_3_ROPE)
    ),
    "other theta": lambda: LlamaForCausalLM(
        LlamaConfig(**models.TINY, rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**models.TINY, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**models.TINY)),
}


def random_model(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture
def windows(rng):
    return rng.integers(0, 40, (5, 16))


@pytest.fixture
def streams(windows, monkeypatch):
    """Calibration of a tiny Llama over three batches, the last one short, in torch or in MLX."""
    monkeypatch.setattr("edgeq.streams.blockwise.CALIBRATION_BATCH", 2 * 16)
    source = models.MemorySource(random_model("llama"))

    def start(framework, drift=True):
        return source, load(ACTIVATIONS[framework], "calibration")(source, windows, drift=drift)

    return start


def rounded(source, layer):
    return (np.round(source.read(f"{layer}.weight") * 30) / 30).astype(np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name, windows):
    model = random_model(name)
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(windows)).logits.numpy()
    found = np.stack(
        list(load(LOGITS["mlx"], "evaluation")(models.MemorySource(model)).logits(windows))
    )
    np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max())


def test_both_streams_meet_the_inputs_that_they_meet_in_torch(streams):
    (source, in_torch), (_, in_mlx) = streams("torch"), streams("mlx")
    for block in source.blocks():
        seen = []
        for ours, theirs in zip_longest(in_mlx.sites(block), in_torch.sites(block)):
            seen.append([])
            for (X, X_hat), (expected, expected_hat) in zip(
                ours.batches(), theirs.batches(), strict=True
            ):
                np.testing.assert_allclose(np.array(X), expected.numpy(), atol=2e-5)
                np.testing.assert_allclose(np.array(X_hat), expected_hat.numpy(), atol=2e-5)
            for layer, same in zip_longest(ours.layers(), theirs.layers()):
                assert layer == same
                ours.replace(layer, rounded(source, layer))
                theirs.replace(layer, rounded(source, layer))
                seen[-1].append(layer.rsplit(".", 1)[1])
        assert seen == SITES
    assert abs(np.array(X) - np.array(X_hat)).max() > 0.01


@pytest.mark.parametrize(("drift", "running"), [(True, 2), (False, 1)])
def test_every_linear_layer_runs_once_per_batch_and_stream(streams, monkeypatch, drift, running):
    from mlx import nn  # noqa: PLC0415

    calls, plain_call = Counter(), nn.Linear.__call__

    def counted(self, x):
        calls[id(self)] += 1
        return plain_call(self, x)

    source, activations = streams("mlx", drift)
    monkeypatch.setattr(nn.Linear, "__call__", counted)
    for block in source.blocks():
        for site in activations.sites(block):
            for layer in site.layers():
                site.replace(layer, rounded(source, layer))
    assert len(calls) == 14
    assert set(calls.values()) == {3 * running}


def test_weights_are_in_memory_only_while_their_block_is_visited(streams):
    source, activations = streams("mlx")
    model = activations._model

    def held():
        return [
            sum(array.size for _, array in model_parameters(block)) > 0 for block in model.blocks
        ]

    def model_parameters(module):
        from mlx.utils import tree_flatten  # noqa: PLC0415

        return tree_flatten(module.parameters())

    assert held() == [False, False]
    assert not sum(array.size for _, array in model_parameters(model.model))
    for index, block in enumerate(source.blocks()):
        for _ in activations.sites(block):
            assert held() == [index == 0, index == 1]
    assert held() == [False, False]


def test_a_model_that_mlx_lm_would_compute_otherwise_is_refused(windows):
    model = random_model("llama")
    model.config.rope_parameters = {"rope_type": "proportional", "rope_theta": 10000.0}
    with pytest.raises(UnsupportedModel, match="rope type 'proportional'"):
        load(LOGITS["mlx"], "evaluation")(models.MemorySource(model))
