"""Gradients that go back block by block, against one backward pass of transformers in float64."""

from collections import defaultdict
from functools import partial

import mixtures
import models
import numpy as np
import pytest
import torch

from edgeq.streams import backward
from edgeq_backends.torch.gradients import torch_sensitivities

WINDOWS, LENGTH, SEED = 3, 12, 4

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.enable_grad()
def brute_force(model, windows):
    """Squared gradients of each linear layer's output, and of the hidden states before block 0."""
    model = model.double()
    sums = defaultdict(float)

    def add(name, gradient):
        sums[name] += gradient.reshape(-1, gradient.shape[-1]).square().sum(0).numpy()

    def watch(name, module, args, output):
        if output.requires_grad:
            output.register_hook(partial(add, name))

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.register_forward_hook(partial(watch, name))
    rng = np.random.default_rng(SEED)
    p_sum, inputs = 0.0, 0.0
    for ids in windows:
        draws = torch.from_numpy(rng.random((1, len(ids))))
        found = model(input_ids=torch.from_numpy(ids[None]), output_hidden_states=True)
        log_p = found.logits.log_softmax(-1)
        p = log_p.detach().exp()
        tokens = torch.searchsorted(p.cumsum(-1), draws[..., None])
        log_p.gather(-1, tokens).sum().backward()
        p_sum += (p * (1 - p))[0].sum(0).numpy()
        last = found.hidden_states[-1][0].detach().numpy()
        inputs += last.T @ last
    count = windows.size
    means = {name: total / count for name, total in sums.items()}
    return means, p_sum / count, inputs / count


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_the_whole_model(tied):
    model = models.tiny_llama(tie_word_embeddings=tied)
    windows = np.random.default_rng(0).integers(0, 40, (WINDOWS, LENGTH))
    source = models.MemorySource(model)
    found = torch_sensitivities(source, windows, seed=SEED)
    means, head, inputs = brute_force(model, windows)
    linears = [linear.name for block in source.blocks() for linear in block.linears]
    assert set(found.outputs) == set(linears)
    for name in linears:
        np.testing.assert_allclose(found.outputs[name], means[name], rtol=1e-4)
    np.testing.assert_allclose(found.embedding, means["model.embed_tokens"], rtol=1e-4)
    np.testing.assert_allclose(found.head, head, rtol=1e-4)
    np.testing.assert_allclose(found.head_inputs, inputs, rtol=1e-3, atol=1e-5)
    counts = np.bincount(windows.reshape(-1), minlength=40)
    np.testing.assert_allclose(found.tokens, counts / windows.size)


def test_a_caller_that_wants_no_gradients_itself_gets_the_same():
    source = models.MemorySource(models.tiny_llama())
    windows = np.random.default_rng(0).integers(0, 40, (2, LENGTH))
    expected = torch_sensitivities(source, windows, seed=SEED)
    with torch.no_grad():
        found = torch_sensitivities(source, windows, seed=SEED)
    np.testing.assert_array_equal(found.head, expected.head)
    for name, squares in expected.outputs.items():
        np.testing.assert_array_equal(found.outputs[name], squares)


@pytest.mark.parametrize("tokens", [1, 5, LENGTH])
def test_predictions_of_a_few_tokens_at_a_time_change_nothing(tokens, monkeypatch):
    source = models.MemorySource(models.tiny_llama())
    windows = np.random.default_rng(0).integers(0, 40, (2, LENGTH))
    whole = torch_sensitivities(source, windows, seed=SEED)
    monkeypatch.setattr(backward, "HEAD_NUMBERS", 40 * tokens)
    in_parts = torch_sensitivities(source, windows, seed=SEED)
    np.testing.assert_allclose(in_parts.head, whole.head, rtol=1e-5)
    np.testing.assert_allclose(in_parts.head_inputs, whole.head_inputs, rtol=1e-4, atol=1e-6)
    for name, squares in whole.outputs.items():
        np.testing.assert_allclose(in_parts.outputs[name], squares, rtol=1e-4)


def test_hidden_states_on_disk_change_nothing(tmp_path):
    source = models.MemorySource(models.tiny_llama())
    windows = np.random.default_rng(0).integers(0, 40, (2, LENGTH))
    kept = torch_sensitivities(source, windows, seed=SEED)
    on_disk = torch_sensitivities(source, windows, seed=SEED, states_folder=tmp_path)
    for name, squares in kept.outputs.items():
        np.testing.assert_array_equal(squares, on_disk.outputs[name])
    assert list(tmp_path.iterdir()) == []


def test_experts_count_the_tokens_that_reach_them():
    """Against transformers' own loop over experts, whose products are watched by their weights."""
    model = mixtures.tiny_mixture()
    windows = np.random.default_rng(0).integers(0, 40, (2, LENGTH))
    source = mixtures.MixtureSource(model)
    found = torch_sensitivities(source, windows, seed=SEED)
    sums = squares_by_weight(model, windows)
    assert any("experts" in name for name in found.outputs)
    for name, squares in found.outputs.items():
        if "experts" in name:
            np.testing.assert_allclose(
                squares, sums(name) / windows.size, rtol=1e-4, atol=1e-12, err_msg=name
            )


@torch.enable_grad()
def squares_by_weight(model, windows):
    """Make what finds the sum of squared gradients of a layer of an expert."""
    model = model.double()
    model.config._experts_implementation = "eager"
    sums, plain = defaultdict(float), torch.nn.functional.linear

    def watched(x, weight, bias=None):
        output = plain(x, weight, bias)
        if output.requires_grad:
            output.register_hook(partial(add, weight.data_ptr()))
        return output

    def add(place, gradient):
        sums[place] += gradient.reshape(-1, gradient.shape[-1]).square().sum(0).numpy()

    rng = np.random.default_rng(SEED)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.nn.functional, "linear", watched)
        for ids in windows:
            draws = torch.from_numpy(rng.random((1, len(ids))))
            log_p = model(input_ids=torch.from_numpy(ids[None])).logits.log_softmax(-1)
            tokens = torch.searchsorted(log_p.detach().exp().cumsum(-1), draws[..., None])
            log_p.gather(-1, tokens).sum().backward()

    def of_layer(name):
        block, _, of_expert = name.partition("mlp.experts.")
        expert, leaf = of_expert.split(".")
        stack, rows = mixtures.PLACES[leaf]
        weight = model.get_parameter(f"{block}{stack}")[int(expert)]
        whole = sums[weight.data_ptr()]
        return whole[rows] if np.ndim(whole) else np.zeros(len(range(*rows.indices(len(weight)))))

    return of_layer
