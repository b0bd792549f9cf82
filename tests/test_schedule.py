from collections import Counter
from contextlib import contextmanager
from functools import partial

import models
import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from edgeq.errors import UnsupportedModel
from edgeq.registry import ACTIVATIONS, load
from edgeq.streams.blockwise import share_windows
from edgeq.streams.schedule import Forward, Streams, stand_still

SITES = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
WINDOW, BATCHES = 16, ((0, 2), (2, 4), (4, 5))


@pytest.fixture(scope="module")
def llama():
    return models.tiny_llama()


@pytest.fixture
def windows(rng):
    return rng.integers(0, 40, (5, WINDOW))


@pytest.fixture
def activations(llama, windows, monkeypatch):
    """Both streams of the tiny Llama over three batches, the last one short."""
    monkeypatch.setattr("edgeq.streams.blockwise.CALIBRATION_BATCH", 2 * WINDOW)
    source = models.MemorySource(llama)

    def start(drift=True):
        return source.blocks(), load(ACTIVATIONS["torch"], "calibration")(
            source, windows, drift=drift, exact=True
        )

    return start


@contextmanager
def watching():
    """Which modules ran how often, and what decoder blocks returned, in order."""
    calls, outputs = Counter(), []

    def note(module, args, output):
        calls[module] += 1
        if isinstance(module, LlamaDecoderLayer):
            outputs.append(output.numpy().copy())

    handle = register_module_forward_hook(note)
    try:
        yield calls, outputs
    finally:
        handle.remove()


def plain_inputs(model, windows):
    """Inputs of every linear layer in plain forwards of the same batches. Shapes: name -> [(tokens,
    in)].
    """
    return [models.linear_inputs(model, windows[start:stop]) for start, stop in BATCHES]


def flat(tensor):
    return tensor.reshape(-1, tensor.shape[-1]).numpy()


def replacements(llama, rng):
    return {
        name: tensor.numpy() + 0.1 * rng.standard_normal(tensor.shape).astype(np.float32)
        for name, tensor in llama.state_dict().items()
        if name.endswith("_proj.weight")
    }


def test_sites_come_in_execution_order_and_share_one_input(activations):
    blocks, streams = activations()
    for block in blocks:
        found = [list(site.layers()) for site in streams.sites(block)]
        assert [[layer.rsplit(".", 1)[1] for layer in layers] for layers in found] == SITES
        assert [layer for layers in found for layer in layers] == [
            linear.name for linear in block.linears
        ]


def test_nothing_replaced_gives_the_bits_of_a_plain_forward(activations, llama, windows):
    expected = plain_inputs(llama, windows)
    blocks, streams = activations()
    for block in blocks:
        for site in streams.sites(block):
            pairs = list(site.batches())
            assert len(pairs) == len(BATCHES)
            for layer in site.layers():
                for (X, X_hat), inputs in zip(pairs, expected, strict=True):
                    np.testing.assert_array_equal(flat(X), inputs[layer])
                    np.testing.assert_array_equal(flat(X_hat), inputs[layer])


def test_block_outputs_are_the_bits_of_a_plain_forward(activations, llama, windows):
    with watching() as (_, expected), torch.no_grad():
        for start, stop in BATCHES:
            llama(input_ids=torch.from_numpy(windows[start:stop]), use_cache=False)
    blocks, streams = activations(drift=False)
    with watching() as (_, found):
        for block in blocks:
            list(streams.sites(block))
    assert len(found) == len(expected) == 6
    for batch in range(3):
        for index in range(2):
            np.testing.assert_array_equal(found[3 * index + batch], expected[2 * batch + index])


@pytest.mark.parametrize(("drift", "streams_running"), [(True, 2), (False, 1)])
def test_every_module_runs_once_per_batch_and_stream(
    activations, rng, llama, drift, streams_running
):
    blocks, streams = activations(drift)
    weights = replacements(llama, rng)
    for block in blocks:
        with watching() as (calls, _):
            for site in streams.sites(block):
                for layer in site.layers():
                    site.replace(layer, weights[f"{layer}.weight"])
        kinds = Counter(type(module).__name__ for module in calls)
        assert kinds["Linear"] == 7
        assert kinds["LlamaRMSNorm"] == 2
        assert kinds["LlamaDecoderLayer"] == 1
        assert set(calls.values()) == {streams_running * len(BATCHES)}


def test_without_drift_no_full_precision_stream_runs(activations):
    blocks, streams = activations(drift=False)
    for site in streams.sites(blocks[0]):
        assert [X for X, _ in site.batches()] == [None] * len(BATCHES)


def test_one_stream_keeps_original_weights_and_the_other_computes_with_replaced_ones(
    activations, llama, windows, rng
):
    weights = replacements(llama, rng)
    original = plain_inputs(llama, windows)
    replaced = plain_inputs(models.with_weights(llama, weights), windows)
    blocks, streams = activations()
    checked = 0
    for block in blocks:
        for site in streams.sites(block):
            pairs = list(site.batches())
            for layer in site.layers():
                for (X, X_hat), full, quantized in zip(pairs, original, replaced, strict=True):
                    np.testing.assert_array_equal(flat(X), full[layer])
                    np.testing.assert_array_equal(flat(X_hat), quantized[layer])
                    checked += (full[layer] != quantized[layer]).any()
                site.replace(layer, weights[f"{layer}.weight"])
    assert checked == (14 - 3) * len(BATCHES)  # all layers but the first three saw drift


@pytest.mark.parametrize("walk", ["not at all", "first layer only", "every layer"])
def test_layers_left_unsolved_run_unchanged(activations, llama, windows, rng, walk):
    """Only q of block 0 is replaced, or nothing; everything after it runs on without being
    asked.
    """
    name = "model.layers.0.self_attn.q_proj"
    weight = replacements(llama, rng)[f"{name}.weight"]
    changes = {} if walk == "not at all" else {f"{name}.weight": weight}
    expected = plain_inputs(models.with_weights(llama, changes), windows)
    blocks, streams = activations()
    for place, site in enumerate(streams.sites(blocks[0])):
        if place == 0 and walk != "not at all":
            for layer in site.layers():
                if layer == name:
                    site.replace(layer, weight)
                if walk == "first layer only":
                    break
    for site in streams.sites(blocks[1]):
        for (X, X_hat), inputs, full in zip(
            site.batches(), expected, plain_inputs(llama, windows), strict=True
        ):
            np.testing.assert_array_equal(flat(X_hat), inputs["model.layers.1.self_attn.q_proj"])
            np.testing.assert_array_equal(flat(X), full["model.layers.1.self_attn.q_proj"])
        break


def test_weights_are_in_memory_only_while_their_block_is_visited(activations):
    blocks, streams = activations()
    seen = []
    with watching() as (calls, _):
        for _site in streams.sites(blocks[0]):
            seen += [
                module.weight.device.type for module in calls if isinstance(module, torch.nn.Linear)
            ]
    assert set(seen) == {"cpu"}
    assert {parameter.device.type for module in calls for parameter in module.parameters()} == {
        "meta"
    }


# Without a framework: passes are plain functions that say which layer they are about to run.


class Toy:
    """A block of layers a, b (one input) and c on numbers; `log` notes what ran on what."""

    def __init__(self, log):
        self.log, self.weights = log, {"a": 1.0, "b": 10.0, "c": 100.0}

    def apply(self, layer, x):
        stand_still(layer, x)
        self.log.append((layer, float(x[0])))
        return x * self.weights[layer]

    def run(self, x):
        return self.apply("c", self.apply("a", x) + self.apply("b", x))


def test_an_ordinary_forward_does_not_stand_still():
    log = []
    assert Toy(log).run(np.array([2.0])) == 2200
    assert log == [("a", 2), ("b", 2), ("c", 22)]


def passes(run, *inputs):
    return [Forward(partial(run, np.array([x]))) for x in inputs]


def test_passes_stand_together_and_go_on_with_replaced_weights():
    log = []
    toy = Toy(log)
    full, quantized = passes(toy.run, 1.0, 2.0), passes(toy.run, 1.0, 2.0)
    visited = []
    for site in Streams(full, quantized, toy.weights.__setitem__).sites():
        for layer in site.layers():
            visited.append((layer, [(float(X[0]), float(X_hat[0])) for X, X_hat in site.batches()]))
            if layer == "b":
                site.replace(layer, 20.0)
    assert visited == [
        ("a", [(1.0, 1.0), (2.0, 2.0)]),
        ("b", [(1.0, 1.0), (2.0, 2.0)]),
        ("c", [(11.0, 21.0), (22.0, 42.0)]),
    ]
    assert [float(forward.output[0]) for forward in (*full, *quantized)] == [
        1100.0,
        2200.0,
        2100.0,
        4200.0,
    ]
    assert [layer for layer, _ in log] == ["a"] * 4 + ["b"] * 4 + ["c"] * 4


def test_equal_inputs_that_are_not_one_object_make_two_sites():
    toy = Toy([])

    def run(x):
        return toy.apply("a", x) + toy.apply("b", x.copy())

    sites = [
        list(site.layers())
        for site in Streams([], passes(run, 1.0), toy.weights.__setitem__).sites()
    ]
    assert sites == [["a"], ["b"]]


def branching(toy, when):
    """A block whose way depends on its data."""
    return lambda x: toy.apply("c" if when(x) else "a", x)


@pytest.mark.parametrize("inputs", [(1.0, -1.0), (-1.0, 1.0), (1.0, 1.0, -1.0)])
def test_batches_at_different_layers_are_refused_before_anything_is_solved(inputs):
    toy = Toy([])
    streams = Streams([], passes(branching(toy, lambda x: x > 0), *inputs), toy.weights.__setitem__)
    with pytest.raises(UnsupportedModel, match="layer 'a'") as caught:
        for _ in streams.sites():
            pytest.fail("a site was handed out whose batches do not belong together")
    assert "layer 'c'" in str(caught.value)
    assert toy.log == []


@pytest.mark.parametrize("inputs", [(1.0, -1.0), (-1.0, 1.0)])
def test_a_batch_that_ends_early_is_refused(inputs):
    toy = Toy([])

    def run(x):
        y = toy.apply("a", x)
        return toy.apply("c", y) if x > 0 else y

    with pytest.raises(UnsupportedModel, match="the end of the block"):
        for site in Streams([], passes(run, *inputs), toy.weights.__setitem__).sites():
            list(site.layers())


def test_a_full_precision_pass_that_goes_another_way_is_refused():
    toy = Toy([])
    run = branching(toy, lambda x: x > 0)
    with pytest.raises(UnsupportedModel, match="same layers"):
        list(Streams(passes(run, 1.0), passes(run, -1.0), toy.weights.__setitem__).sites())


def test_only_some_batches_sharing_an_input_is_refused():
    toy = Toy([])

    def run(x):
        return toy.apply("a", x) + toy.apply("b", x if x > 0 else x.copy())

    with pytest.raises(UnsupportedModel, match="only some batches"):
        for site in Streams([], passes(run, 1.0, -1.0), toy.weights.__setitem__).sites():
            list(site.layers())


def test_an_error_inside_a_pass_reaches_the_caller():
    def run(x):
        stand_still("a", x)
        raise FloatingPointError("overflow")

    with pytest.raises(FloatingPointError, match="overflow"):
        list(Streams([], passes(run, 1.0), dict().__setitem__).sites())


def test_the_full_stream_can_run_on_a_share_of_the_windows(activations, windows, llama):
    blocks, streams = activations(drift=0.4)
    expected = models.linear_inputs(llama, windows[[0, 2, 1, 3, 4]])
    for site in streams.sites(blocks[0]):
        pairs = list(site.batches())
        assert [x is None for x, _ in pairs] == [False, True, True]
        np.testing.assert_allclose(flat(pairs[0][0]), expected[site.name][: 2 * WINDOW], atol=1e-6)
        found = np.concatenate([flat(x_hat) for _, x_hat in pairs])
        np.testing.assert_allclose(found, expected[site.name], atol=1e-6)


@pytest.mark.parametrize(
    ("share", "both"), [(0.0, []), (0.1, [0]), (0.5, [0, 1, 3]), (1.0, [0, 1, 2, 3, 4])]
)
def test_windows_of_both_streams_are_evenly_spread(windows, share, both):
    chosen, rest = share_windows(windows, share)
    np.testing.assert_array_equal(chosen, windows[both])
    np.testing.assert_array_equal(rest, np.delete(windows, both, axis=0))
