"""Weights of tokens, against plain autograd on the whole model, and what they make of H and D."""

from functools import partial

import mixtures
import models
import numpy as np
import pytest
import torch
from test_experts import FLOWS, example, in_float64, seen_by_experts, visit
from test_experts import WINDOW as EXAMPLE_LENGTH
from test_experts import WINDOWS as EXAMPLE_WINDOWS
from test_layer import FakeSite

from edgeq.errors import BadInput
from edgeq.recipe.recipe import make_recipe
from edgeq.recipe.weighing import weighed_recipe
from edgeq.registry import load_backend
from edgeq.run.token_weights import measure_weights
from edgeq.solving.lending import lend
from edgeq.solving.statistics import SiteMoments, gather, statistics_of
from edgeq.solving.token_weights import TokenWeights
from edgeq.streams.blockwise import share_windows
from edgeq.types import Tokens
from edgeq_backends.torch.gradients import torch_tokens

WINDOWS, LENGTH, SEED, CLIP = 3, 12, 4, 10.0

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.enable_grad()
def gradients_of(model, windows):
    """Gradients of log p(drawn tokens) by every linear layer's output, in float64, by window.

    Those of experts are by their weights' places, with no word of which tokens they are of.
    """
    model = model.double()
    now: dict[str, np.ndarray] = {}

    def add(name, gradient):
        now[name] = gradient.reshape(-1, gradient.shape[-1]).numpy()

    def watch(name, module, args, output):
        output.register_hook(partial(add, name))

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(partial(watch, name))
    found = []
    draws = np.random.default_rng(SEED).random(windows.shape)
    for ids, drawn in zip(windows, draws, strict=True):
        log_p = model(input_ids=torch.from_numpy(ids[None])).logits.log_softmax(-1)
        cumulated = log_p.detach().exp().cumsum(-1)
        tokens = torch.searchsorted(cumulated, torch.from_numpy(drawn)[None, :, None])
        log_p.gather(-1, tokens).sum().backward()
        found.append(dict(now))
    return found


def expected_weights(values):
    """Scale to a mean of 1 and clip, in words of the formula."""
    values = np.asarray(values, np.float64)
    found = np.clip(values / values.mean(), 1 / CLIP, CLIP)
    return found / found.mean()


def weights_of(source, windows, *, squares=False, at_once=2, folder=None):
    measured = torch_tokens(
        source, windows, seed=SEED, squares=squares, at_once=at_once, states_folder=folder
    )
    return measure_weights(measured, source, len(windows), lambda done, total: None)


@pytest.mark.parametrize("squares", [False, True])
def test_weights_are_those_of_the_whole_models_gradients(squares, tmp_path):
    model = models.tiny_llama()
    windows = np.random.default_rng(0).integers(0, 40, (WINDOWS, LENGTH))
    source = models.MemorySource(model)
    found = weights_of(source, windows, squares=squares, folder=tmp_path if squares else None)
    gradients = gradients_of(model, windows)
    for index, layer in enumerate(source.record.decoder.layers):
        for site in layer.sites:
            names = [f"model.layers.{index}.{linear.name}" for linear in site]
            magnitudes = [
                np.mean([(abs(of[name]) ** (1 + squares)).mean(axis=1) for name in names], axis=0)
                for of in gradients
            ]
            expected = expected_weights(np.concatenate(magnitudes))
            for name in names:
                numbers, weights = found.of_site[name]
                assert numbers is None
                np.testing.assert_allclose(weights, expected, rtol=1e-4)
    with pytest.raises(AssertionError):  # they are not all alike
        np.testing.assert_allclose(weights, 1, rtol=0.1)


def test_experts_weigh_the_tokens_that_reach_them():
    """Against gradients by a product of each expert's own, which transformers is watched for."""
    model = mixtures.tiny_mixture()
    windows = np.random.default_rng(0).integers(0, 40, (WINDOWS, LENGTH))
    found = weights_of(mixtures.MixtureSource(model), windows)
    gradients, chosen = mixture_gradients(model, windows)
    total = [np.zeros(WINDOWS * LENGTH) for _ in range(2)]
    for (block, expert), (into_stack, behind) in gradients.items():
        name = f"model.layers.{block}.mlp.experts.{expert}"
        reaching = np.flatnonzero((chosen[block] == expert).any(1))
        assert 0 < len(reaching) < WINDOWS * LENGTH
        halves = [abs(part).mean(1) for part in np.split(into_stack, 2, axis=1)]
        down = abs(behind).mean(1)
        for values, leaves in (
            (np.mean(halves, axis=0), ("gate_proj", "up_proj")),
            (down, ("down_proj",)),
        ):
            for leaf in leaves:
                numbers, weights = found.of_site[f"{name}.{leaf}"]
                np.testing.assert_array_equal(numbers, reaching)
                np.testing.assert_allclose(weights, expected_weights(values), rtol=1e-3)
        total[block][reaching] += sum(halves) + down
    for block, expert in gradients:
        numbers, weights = found.lenders[f"model.layers.{block}.mlp.experts.{expert}.down_proj"]
        assert numbers is None
        np.testing.assert_allclose(weights, expected_weights(total[block]), rtol=1e-3)


@torch.enable_grad()
def mixture_gradients(model, windows):
    """Gradients by the outputs of each expert's two stacks, token after token, and choices.

    transformers takes the tokens of an expert slot by slot, with those of its first choices first.
    """
    model = model.double()
    model.set_experts_implementation("eager")
    now, plain = [], torch.nn.functional.linear
    parts = {}
    chosen = [[], []]

    def watched(x, weight, bias=None):
        output = plain(x, weight, bias)
        now.append((weight.data_ptr(), output))
        return output

    places = {}
    for block, layer in enumerate(model.model.layers):
        note = lambda _, args, block=block: chosen[block].append(args[1].numpy())  # noqa: E731
        layer.mlp.experts.register_forward_pre_hook(note)
        for expert in range(mixtures.EXPERTS):
            for kind, stack in enumerate(("gate_up_proj", "down_proj")):
                weight = getattr(layer.mlp.experts, stack)[expert]
                places[weight.data_ptr()] = (block, expert), kind
    draws = np.random.default_rng(SEED).random(windows.shape)
    for ids, drawn in zip(windows, draws, strict=True):
        now.clear()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(torch.nn.functional, "linear", watched)
            log_p = model(input_ids=torch.from_numpy(ids[None])).logits.log_softmax(-1)
        cumulated = log_p.detach().exp().cumsum(-1)
        tokens = torch.searchsorted(cumulated, torch.from_numpy(drawn)[None, :, None])
        outputs = [(places[place], output) for place, output in now if place in places]
        gradients = torch.autograd.grad(log_p.gather(-1, tokens).sum(), [o for _, o in outputs])
        for ((key, kind), _), gradient in zip(outputs, gradients, strict=True):
            block, expert = key
            tokens_of_slots = np.nonzero(chosen[block][-1].T == expert)[1]
            rows = gradient.numpy()[np.argsort(tokens_of_slots)]
            parts.setdefault(key, ([], []))[kind].append(rows)
    joined = {key: tuple(map(np.concatenate, both)) for key, both in parts.items()}
    return joined, [np.concatenate(each) for each in chosen]


class KnownSite(FakeSite):
    """A site whose windows of 16 tokens are known; firsts number the first token of each batch."""

    def __init__(self, X, X_hat, firsts):
        super().__init__(X, X_hat)
        self.firsts = firsts

    def tokens(self, batch):
        return Tokens(self.firsts[batch] + np.arange(16 * len(self.pairs[batch][1])), 16)


def test_weighed_moments_are_those_of_rows_times_the_roots(backend, rng, tolerance):
    """With both parts of a split and windows that one stream runs on alone, in uneven batches."""
    X = rng.standard_normal((6, 16, 8))
    X_hat = X + 0.1 * rng.standard_normal(X.shape)
    weights = rng.uniform(0.1, 5, 6 * 16).astype(np.float32)

    def look(*cuts):
        firsts = [0, *cuts]
        pairs = zip(np.split(X, cuts), np.split(X_hat, cuts), strict=True)
        site = KnownSite(X, X_hat, 16 * np.array(firsts))
        site.pairs = [
            (x if first < 5 else None, y) for (x, y), first in zip(pairs, firsts, strict=True)
        ]
        weigh = lambda tokens: weights[tokens.numbers]  # noqa: E731
        moments = gather(site, backend, drift=True, hold_out=True, weigh=weigh)
        return statistics_of("layer", moments, backend)

    flat, flat_hat = X.reshape(-1, 8), X_hat.reshape(-1, 8)
    w = weights.astype(np.float64)
    paired = np.arange(96) < 80
    held = paired & (np.arange(96) % 16 >= 12)

    def H_of(rows):
        return (w[rows, None] * flat_hat[rows]).T @ flat_hat[rows] / w[rows].sum()

    def D_of(rows):
        drift = flat[rows] - flat_hat[rows]
        return (w[rows, None] * drift).T @ flat_hat[rows] / w[rows].sum()

    def count(rows):
        return round(w[rows].sum() ** 2 / (w[rows] ** 2).sum())

    close = partial(np.testing.assert_allclose, atol=tolerance)
    for total, split in (look(5), look(1, 3, 5)):
        close(backend.to_numpy(total.H), H_of(np.full(96, True)))
        close(backend.to_numpy(total.D), D_of(paired))
        close(backend.to_numpy(total.paired_H), H_of(paired))
        assert (total.n_tokens, total.paired_tokens) == (count(np.full(96, True)), count(paired))
        for part, rows in ((split.fit, paired & ~held), (split.held_out, held)):
            close(backend.to_numpy(part.H), H_of(rows))
            close(backend.to_numpy(part.D), D_of(rows))
            assert part.n_tokens == count(rows)


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("drift", [1.0, 0.5])
def test_rows_have_the_weights_of_their_tokens_in_every_flow(flow, drift):
    """Of every site of a mixture: windows run in another order, and experts get some rows."""
    backend = load_backend("cpu")
    _, windows, _ = example()
    weights = np.random.default_rng(1).uniform(0.1, 5, windows.size)
    known = {
        linear.name: (None, weights) for block in example()[0].blocks() for linear in block.linears
    }
    of_all = TokenWeights(known, known)

    def look(site):
        moments = gather(site, backend, drift=True, weigh=of_all.of(site))
        return moments.fit.H, moments.fit.D, moments.single.H, moments.counting

    found = visit(FLOWS[flow], drift, look)
    paired, single = share_windows(np.arange(EXAMPLE_WINDOWS), drift)
    numbers = EXAMPLE_LENGTH * np.concatenate([paired, single])[:, None] + np.arange(EXAMPLE_LENGTH)
    of_rows = weights[numbers.reshape(-1)]
    (original, _), (replaced, _) = in_float64({}), in_float64(example()[2])
    order = np.concatenate([windows[paired], windows[single]])
    count = len(paired) * EXAMPLE_LENGTH
    for block in range(2):
        x, chosen = seen_by_experts(original, order)[block]
        x_hat, own = seen_by_experts(replaced, order)[block]
        chosen = np.concatenate([chosen[:count], own[count:]])
        name = f"model.layers.{block}.mlp.experts"
        every = np.full(len(order) * EXAMPLE_LENGTH, True)
        sites = {name: every} | {
            f"{name}.{expert}.gate_proj": (chosen == expert).any(1)
            for expert in range(mixtures.EXPERTS)
        }
        first = np.arange(len(every)) < count
        for site, reached in sites.items():
            H, D, alone, counting = found[site]
            rows = reached & first
            w = of_rows[:, None]
            close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-2, err_msg=site)
            close(H, (w * x_hat)[rows].T @ x_hat[rows])
            close(D, (w * (x - x_hat))[rows].T @ x_hat[rows])
            if (reached & ~first).any():
                rest = reached & ~first
                close(alone, (w * x_hat)[rest].T @ x_hat[rest])
            expected = of_rows[reached].sum() ** 2 / (of_rows[reached] ** 2).sum()
            assert counting == pytest.approx(expected, rel=1e-5)


def test_a_loan_is_beside_the_tokens_that_count(rng):
    backend = load_backend("reference")
    own, others = SiteMoments(), SiteMoments()
    x, y = rng.standard_normal((20, 6)), rng.standard_normal((50, 6))
    w, v = rng.uniform(0.1, 5, 20), rng.uniform(0.1, 5, 50)
    own.single.add(None, x, backend, w)
    others.single.add(None, y, backend, v)
    counting = w.sum() ** 2 / (w**2).sum()
    share = 12 / (counting + 12)
    assert lend(own, others, 6, backend) == pytest.approx(share)
    found, _ = statistics_of("layer", own, backend)
    H, of_others = (w[:, None] * x).T @ x / w.sum(), (v[:, None] * y).T @ y / v.sum()
    scale = np.trace(H) / np.trace(of_others)
    np.testing.assert_allclose(found.H, (1 - share) * H + share * scale * of_others)
    assert found.n_tokens == round(counting)


def test_how_many_windows_go_back_together_changes_nothing(tmp_path):
    windows = np.random.default_rng(0).integers(0, 40, (WINDOWS, LENGTH))
    source = mixtures.MixtureSource(mixtures.tiny_mixture())
    once = weights_of(source, windows, at_once=WINDOWS)
    again = weights_of(source, windows, at_once=1, folder=tmp_path)
    assert once.of_site.keys() == again.of_site.keys()
    for name, (numbers, weights) in once.of_site.items():
        np.testing.assert_array_equal(again.of_site[name][0], numbers)
        np.testing.assert_array_equal(again.of_site[name][1], weights)


def test_a_model_that_overflows_is_refused_in_one_line():
    source = models.MemorySource(models.tiny_llama())
    nothing = {linear.name: np.zeros(LENGTH) for linear in source.blocks()[0].linears}
    first = source.blocks()[0].linears[0].name
    measured = iter([(0, 0, {**nothing, first: np.full(LENGTH, np.inf)})])
    with pytest.raises(
        BadInput, match=r"^gradients at layer 'model\.layers\.0\.self_attn\.q_proj'"
    ):
        measure_weights(measured, source, WINDOWS, lambda done, total: None)


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (make_recipe, {"solver": "rtn"}, "plain rounding"),
        (weighed_recipe, {}, "--imatrix with token_weights"),
    ],
)
def test_what_reads_no_text_weighs_no_tokens(make, settings, words):
    with pytest.raises(BadInput, match=words):
        make({**settings, "token_weights": "gradient"})
