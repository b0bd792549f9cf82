"""Experts in both streams: which tokens belong to whose moments, against brute force in float64."""

import copy
import functools
import math
from collections import Counter

import mixtures
import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from edgeq.errors import UnsupportedModel
from edgeq.registry import ACTIVATIONS, LOGITS, load, load_backend
from edgeq.solving.lending import lend
from edgeq.solving.statistics import SiteMoments, gather, statistics_of
from edgeq.streams.blockwise import Flow, share_windows
from edgeq_backends.torch.experts import HaltingExperts

WINDOW, WINDOWS = 16, 13


@functools.cache
def example():
    """A mixture as a source, windows of tokens, and other weights for all its layers."""
    rng = np.random.default_rng(3)
    source = mixtures.MixtureSource(mixtures.tiny_mixture())
    changed = {
        linear.name: linear.weight_in(source.read(linear.tensor))
        + 0.2 * rng.standard_normal(linear.shape).astype(np.float32)
        for block in source.blocks()
        for linear in block.linears
    }
    return source, rng.integers(0, 40, (WINDOWS, WINDOW)), changed


def in_float64(weights):
    """The model with some layers' weights replaced, computed in float64 by transformers alone."""
    model = mixtures.tiny_mixture().double()
    model.set_experts_implementation("eager")  # the others know no float64
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for layer, weight in weights.items():
        mixtures.weight_in(state, layer)[...] = weight
    return model, state


def seen_by_experts(model, windows):
    """What the mixture of each block gets, and what its router chooses.

    Shapes: (tokens, in) and (tokens, 2), in the order of the windows.
    """
    seen, hooks = [], []
    for layer in model.model.layers:
        note = lambda _, args: seen.append((args[0].numpy(), args[1].numpy()))  # noqa: E731
        hooks.append(layer.mlp.experts.register_forward_pre_hook(note))
    with torch.no_grad():
        model(input_ids=torch.from_numpy(windows), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def inner(state, block, expert, x):
    """The input of an expert's last layer: silu(gate x) * up x."""
    stack = state[f"model.layers.{block}.{mixtures.GATE_UP}"][expert]
    gate, up = np.split(x @ stack.T, 2, axis=1)
    return gate / (1 + np.exp(-gate)) * up


def moments(x, x_hat):
    return x_hat.T @ x_hat / len(x_hat), (x - x_hat).T @ x_hat / len(x_hat)


@functools.cache
def brute_force(drift):
    """(X, X_hat, X_hat of one stream alone) of every site of every expert, and places of X.

    The whole streams are computed by transformers in float64, one with all layers replaced: what
    stands behind a site changes nothing of its input.
    """
    _, windows, changed = example()
    paired, single = share_windows(windows, drift)
    (original, full), (replaced, quantized) = in_float64({}), in_float64(changed)
    found, places, disagreeing = {}, {}, 0
    of_original, of_replaced = (seen_by_experts(each, paired) for each in (original, replaced))
    alone = seen_by_experts(replaced, single) if len(single) else [None, None]
    for block in range(2):
        (x, chosen), (x_hat, other) = of_original[block], of_replaced[block]
        disagreeing += (np.sort(chosen, axis=1) != np.sort(other, axis=1)).any(1).sum()
        for expert in range(mixtures.EXPERTS):
            rows = np.flatnonzero((chosen == expert).any(1))
            rest = np.zeros((0, mixtures.HIDDEN))
            if alone[block] is not None:
                rest = alone[block][0][(alone[block][1] == expert).any(1)]
            name = f"model.layers.{block}.mlp.experts.{expert}"
            into = functools.partial(inner, quantized, block, expert)
            first = (x[rows], x_hat[rows], rest)
            last = (inner(full, block, expert, x[rows]), into(x_hat[rows]), into(rest))
            found[f"{name}.gate_proj"], found[f"{name}.down_proj"] = first, last
            places[name] = rows % WINDOW
    assert disagreeing > 20  # of the tokens that both streams run on, in both blocks
    return found, places


def visit(flow, drift, look):
    """What `look` finds at every site, while all layers are replaced on the way."""
    source, windows, changed = example()
    streams = load(ACTIVATIONS["torch"], "calibration")(source, windows, drift=drift, flow=flow)
    found = {}
    for block in source.blocks():
        for site in streams.sites(block):
            found[site.name] = look(site)
            for layer in site.layers():
                site.replace(layer, changed[layer])
    return found


FLOWS = {
    "standing": Flow("standing", 3 * WINDOW),
    "recomputing": Flow("recomputing", 3 * WINDOW),
    "recomputing, window by window": Flow("recomputing", WINDOW),
}


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("drift", [1.0, 0.5])
def test_moments_of_every_expert_are_of_the_tokens_that_the_original_sends_there(flow, drift):
    """Of both streams; where the original does not run, the tokens are the stream's own."""
    backend = load_backend("cpu")

    def look(site):
        return (
            None
            if site.lends
            else statistics_of(site.name, gather(site, backend, drift=True), backend)[0]
        )

    found = visit(FLOWS[flow], drift, look)
    expected, _ = brute_force(drift)
    assert len(expected) == 2 * 2 * mixtures.EXPERTS
    for name, (x, x_hat, alone) in expected.items():
        H, D = moments(x, x_hat)
        everything = np.concatenate([x_hat, alone])
        assert found[name].n_tokens == len(everything), name
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4, err_msg=name)
        close(found[name].H, everything.T @ everything / len(everything))
        close(found[name].D, D)
        if len(alone):
            assert found[name].paired_tokens == len(x)
            close(found[name].paired_H, H)


@pytest.mark.parametrize("flow", FLOWS)
def test_the_last_quarter_of_each_window_is_held_out_of_an_experts_tokens(flow):
    backend = load_backend("cpu")

    def look(site):
        return None if site.lends else gather(site, backend, drift=True, hold_out=True)

    found = visit(FLOWS[flow], 1.0, look)
    expected, places = brute_force(1.0)
    for name, (x, x_hat, _) in expected.items():
        held = places[name.rpartition(".")[0]] >= WINDOW - WINDOW // 4
        for part, rows in ((found[name].held_out, held), (found[name].fit, ~held)):
            assert part.n_tokens == rows.sum(), name
            _, D = moments(x[rows], x_hat[rows])
            np.testing.assert_allclose(part.D / part.n_tokens, D, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("drift", [1.0, 0.5])
def test_what_is_lent_is_of_all_tokens_and_of_an_even_sample_behind_an_expert(flow, drift):
    """A loan to the last layer of an expert is of inputs that any tokens would make there."""
    _, windows, changed = example()
    backend = load_backend("cpu")

    def look(site):
        return (tuple(site.lends), gather(site, backend, drift=True)) if site.lends else None

    found = {name: seen for name, seen in visit(FLOWS[flow], drift, look).items() if seen}
    order = np.concatenate(share_windows(windows, drift))
    count = math.ceil(drift * WINDOWS) * WINDOW
    (original, full), (replaced, quantized) = in_float64({}), in_float64(changed)
    x, x_hat = (seen_by_experts(each, order) for each in (original, replaced))
    assert len(found) == 2 * (1 + mixtures.EXPERTS)
    every = WINDOWS * WINDOW // (4 * mixtures.INNER)
    assert every == 2
    for block in range(2):
        experts = f"model.layers.{block}.mlp.experts"
        lends, seen = found[experts]
        names = [f"{expert}.{name}_proj" for expert in range(4) for name in ("gate", "up")]
        assert lends == tuple(f"{experts}.{name}" for name in names)
        check_sums(seen, x[block][0], x_hat[block][0], count)
        for expert in range(mixtures.EXPERTS):
            [(lends, seen)] = [
                each for each in found.values() if each[0] == (f"{experts}.{expert}.down_proj",)
            ]
            of_full, of_quantized = (
                inner(weights, block, expert, each[block][0][::every])
                for weights, each in ((full, x), (quantized, x_hat))
            )
            check_sums(seen, of_full, of_quantized, count // every)


def check_sums(seen, x, x_hat, count):
    """Compare moments with those of rows of which the first `count` are of both streams."""
    assert (seen.fit.n_tokens, seen.single.n_tokens) == (count, len(x_hat) - count)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-2)
    close(seen.fit.H, x_hat[:count].T @ x_hat[:count])
    close(seen.fit.D, (x - x_hat)[:count].T @ x_hat[:count])
    if seen.single.n_tokens:
        close(seen.single.H, x_hat[count:].T @ x_hat[count:])


def test_recomputed_experts_do_not_run_attention_anew():
    """All layers behind a mixture's input are reached from there, however many experts there
    are.
    """
    source, windows, _ = example()
    flow = FLOWS["recomputing"]
    streams = load(ACTIVATIONS["torch"], "calibration")(source, windows, flow=flow)
    calls = Counter()
    handle = register_module_forward_hook(lambda module, *_: calls.update([type(module).__name__]))
    sites = 0
    for site in streams.sites(source.blocks()[0]):
        sites += len(list(site.batches())) > 0
    handle.remove()
    assert sites == 2 + 1 + 3 * mixtures.EXPERTS
    # once to find the sites, to the mixture, and through the block: of 5 batches in 2 streams
    assert calls["Qwen3MoeAttention"] == 1 + (1 + 1) * 2 * 5


def test_the_plain_forward_is_transformers_own():
    source, windows, _ = example()
    with torch.no_grad():
        expected = mixtures.tiny_mixture()(input_ids=torch.from_numpy(windows)).logits.numpy()
    found = np.stack(list(load(LOGITS["torch"], "runtime")(source).logits(windows)))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_mlx_backend_refuses_mixtures_in_one_line(rng):
    source, windows, _ = example()
    with pytest.raises(UnsupportedModel, match=r"^backend 'mlx': "):
        load(ACTIVATIONS["mlx"], "calibration")(source, windows)


def test_streams_end_where_plain_forwards_end():
    """What goes on in each stream is by its own router, also where moments are by the other's."""
    source, windows, changed = example()
    streams = load(ACTIVATIONS["torch"], "calibration")(source, windows, flow=FLOWS["standing"])
    for block in source.blocks():
        for site in streams.sites(block):
            for layer in site.layers():
                site.replace(layer, changed[layer])
    for states, weights in ((streams._full, {}), (streams._quantized, changed)):
        model, _ = in_float64(weights)
        ends = []
        model.model.layers[-1].register_forward_hook(lambda *args, ends=ends: ends.append(args[2]))
        with torch.no_grad():
            model(input_ids=torch.from_numpy(windows), use_cache=False)
        found = np.concatenate([states.read(batch).numpy() for batch in range(len(states))])
        np.testing.assert_allclose(found, ends[0].numpy(), rtol=1e-3, atol=1e-3)


def plain_moments(rng, backend, tokens, columns=6, *, single=0, size=1.0):
    """Moments of random tokens, in parts, and (X, X_hat) of each part."""
    found, parts = SiteMoments(), []
    for part, count in ((found.fit, tokens), (found.single, single)):
        x_hat = size * rng.standard_normal((count, columns))
        x = x_hat + 0.1 * size * rng.standard_normal((count, columns))
        paired = part is found.fit
        part.add(backend.asarray(x) if paired else None, backend.asarray(x_hat), backend)
        parts.append((x, x_hat))
    return found, parts


def test_an_expert_without_tokens_is_lent_everything(rng):
    backend = load_backend("reference")
    own, _ = plain_moments(rng, backend, 0)
    others, [(x, x_hat), (_, alone)] = plain_moments(rng, backend, 50, single=20)
    assert lend(own, others, 6, backend) == 1
    found, _ = statistics_of("layer", own, backend)
    everything = np.concatenate([x_hat, alone])
    np.testing.assert_allclose(found.H, everything.T @ everything / 70)
    np.testing.assert_allclose(found.D, (x - x_hat).T @ x_hat / 50)
    np.testing.assert_allclose(found.paired_H, x_hat.T @ x_hat / 50)
    assert (found.n_tokens, found.paired_tokens) == (0, 0)  # corrections know how few there are


def test_an_expert_that_many_tokens_reach_does_not_notice(rng):
    backend = load_backend("reference")
    own, [(x, x_hat), _] = plain_moments(rng, backend, 12_000)
    others, _ = plain_moments(rng, backend, 50, size=5.0)
    H, D = moments(x, x_hat)
    assert lend(own, others, 6, backend) == pytest.approx(0.001, rel=0.01)
    found, _ = statistics_of("layer", own, backend)
    np.testing.assert_allclose(found.H, H, atol=2e-3)
    np.testing.assert_allclose(found.D, D, atol=2e-3)


@pytest.mark.parametrize("tokens", [1, 3, 12, 50])
@pytest.mark.parametrize("size", [1e-3, 1.0, 50.0])
def test_own_tokens_count_as_such_beside_two_others_for_each_input(rng, tokens, size):
    backend = load_backend("reference")
    own, [(x, x_hat), _] = plain_moments(rng, backend, tokens)
    others, [(y, y_hat), _] = plain_moments(rng, backend, 50, size=size)
    share = 12 / (tokens + 12)
    assert lend(own, others, 6, backend) == pytest.approx(share)
    found, _ = statistics_of("layer", own, backend)
    scale = np.mean(x_hat**2) / np.mean(y_hat**2)
    H, D = moments(x, x_hat)
    of_others = moments(y, y_hat)
    np.testing.assert_allclose(found.H, (1 - share) * H + share * scale * of_others[0])
    np.testing.assert_allclose(found.D, (1 - share) * D + share * scale * of_others[1])
    assert np.trace(found.H) == pytest.approx(np.trace(H))
    assert found.n_tokens == tokens


def second_mixture(block):
    block.other = copy.deepcopy(block.mlp)


def no_mixture(block):
    block.mlp = torch.nn.Identity()


@pytest.mark.parametrize(("change", "count"), [(second_mixture, 2), (no_mixture, 0)])
def test_a_block_without_the_one_mixture_that_is_known_is_refused_in_one_line(change, count):
    block = mixtures.tiny_mixture().model.layers[0]
    change(block)
    message = rf"^block 'b' holds {count} mixtures of stacked experts, .* of another type$"
    with pytest.raises(UnsupportedModel, match=message):
        HaltingExperts("b", block, [])
