"""Tuning: gradients against one backward pass of transformers in float64, and what is kept."""

from itertools import pairwise

import mixtures
import models
import numpy as np
import pytest
import torch
from solved_sources import SolvedSource
from transformers import AutoConfig, AutoModelForCausalLM

from edgeq.grids.types import SPECIAL
from edgeq.tuning import loop
from edgeq.tuning.adam import descend, rate_at
from edgeq.tuning.free import CODES, FREE, LEAST_SHARE, MARGIN
from edgeq.tuning.loop import Tuning, batches_of, tune
from edgeq.tuning.model import BATCH_TOKENS
from edgeq.tuning.passes import TunedBlocks, held_out_kl, loss_and_gradients, original_states
from edgeq.types import Grid
from edgeq_backends.torch.tuning import torch_models

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = (*FREE, CODES)
WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
GRIDS = {
    "symmetric": Grid(3, 8, "symmetric", "float32"),
    "integer": Grid(3, 8, "integer", "float32"),
    "offset": Grid(2, 8, "offset", "float32"),
    "ragged": Grid(4, 24, "offset", "float32"),
    "row": Grid(4, None, "symmetric", "float32"),
    "outliers": Grid(4, 8, "symmetric", "float32", 0.1),
}
TYPES = ("Q4_K", "Q6_K", "Q2_K", "IQ4_NL")


def grid_of(name):
    return GRIDS[name] if name in GRIDS else SPECIAL[name]


def windows_of(model, count=3, length=10):
    vocabulary = model.config.get_text_config().vocab_size
    return np.random.default_rng(1).integers(0, vocabulary, (count, length))


def by_column(values, grid, columns):
    """A value for each column, by its group or super-block."""
    if grid.super_blocks is not None and values.shape[1] == grid.super_block_count(columns):
        index = np.arange(columns) // grid.super_blocks.columns
    else:
        index = grid.group_index(columns)
    return values[:, torch.from_numpy(index)]


def matrix_at(layer, x):
    """The weights where numbers have moved by x, in float64 and from the definition.

    A code is taken for the position that it is nearest to, of columns that outliers replace too.
    """
    grid, columns = layer.grid, layer.codes.shape[1]
    x = dict(x)
    levels = torch.from_numpy(layer.levels).double()
    if CODES in x:
        solid = torch.ones(columns, dtype=torch.float64)
        if layer.outliers is not None:
            solid[layer.outliers.columns.astype(np.int64)] = 0
        levels = levels + x.pop(CODES) * solid
    spread = lambda values: by_column(torch.as_tensor(values).double(), grid, columns)  # noqa: E731
    moved = {}
    for part, change in x.items():
        start = torch.from_numpy(getattr(layer, part)).double()
        unit = torch.from_numpy(layer.scales if part == "offsets" else getattr(layer, part))
        moved[part] = start + unit.double().abs() * change
    if "super_scales" in x:
        scales = spread(moved["super_scales"]) * spread(layer.sub_scales)
        offsets = -scales * grid.middle
        if "super_minima" in x:
            offsets = -spread(moved["super_minima"]) * spread(layer.sub_minima)
    else:
        scales = spread(moved["scales"])
        offsets = -scales * spread(layer.zeros)
        if "offsets" in x:
            offsets = spread(moved["offsets"])
    weights = scales * levels + offsets
    if layer.outliers is not None:
        added = torch.zeros_like(weights)
        added[:, layer.outliers.columns.astype(np.int64)] = torch.from_numpy(
            layer.outliers.values
        ).double()
        weights = weights + added
    return weights


@torch.enable_grad()
def expected_gradients(model, solved, blocks, windows):
    """The mean KL and its gradients with all that is free, by one pass through the whole model."""
    leaves = {
        key: torch.zeros(free.part.start.shape, dtype=torch.float64, requires_grad=True)
        for key, free in blocks.free.items()
    }
    tensors = {}
    for tensor, layer in solved.layers.items():
        x = {
            key.rpartition(".")[2]: leaf
            for key, leaf in leaves.items()
            if key.rpartition(".")[0] == tensor
        }
        linear = solved.linear(tensor)
        *stack, first, second = linear.stored_shape
        whole = matrix_at(layer, x)
        tensors[tensor] = whole
        if linear.transposed:
            tensors[tensor] = whole.reshape(*stack, second, first).swapaxes(-1, -2)
    for key, leaf in leaves.items():
        tensor, _, part = key.rpartition(".")
        if part == "values":
            start = torch.from_numpy(solved.dense(tensor)).double()
            unit = torch.from_numpy(blocks.free[key].part.unit).double()
            tensors[tensor] = start + unit * leaf
    ids = torch.from_numpy(windows)
    double = model.double()
    double.config._experts_implementation = "eager"  # the library's others have no float64
    with torch.no_grad():
        expected = double(input_ids=ids).logits.log_softmax(-1)
    found = torch.func.functional_call(double, in_model(tensors, solved), (), {"input_ids": ids})
    kl = (expected.exp() * (expected - found.logits.log_softmax(-1))).sum() / windows.size
    kl.backward()
    return float(kl.detach()), {key: leaf.grad.numpy() for key, leaf in leaves.items()}


def in_model(tensors, solved):
    """Tensors by the names that the model has for them: experts lie in stacks."""
    if not any(".experts." in name for name in tensors):
        return tensors
    found = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for block in range(mixtures.CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{block}.mlp.experts"
        of = lambda leaf, prefix=prefix: [  # noqa: E731
            tensors[f"{prefix}.{expert}.{leaf}.weight"] for expert in range(mixtures.EXPERTS)
        ]
        pairs = zip(of("gate_proj"), of("up_proj"), strict=True)
        found[f"{prefix}.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in pairs])
        found[f"{prefix}.down_proj"] = torch.stack(of("down_proj"))
    return found


def check_gradients(model, source, grid, **options):
    solved = SolvedSource(source, grid)
    windows = windows_of(model)
    made = torch_models(source, solved, exact=True, **options)
    blocks = TunedBlocks(solved, made, ALL)
    reading = original_states(made, windows[:0], windows, lambda done, all: None)
    kl, found = loss_and_gradients(blocks, windows, reading.read, blocks.zeros())
    wanted, gradients = expected_gradients(model, solved, blocks, windows)
    assert kl == pytest.approx(wanted, rel=1e-4)
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    assert found.keys() == gradients.keys()
    for key, gradient in gradients.items():
        assert np.abs(gradient).max() > 0, key
        np.testing.assert_allclose(found[key].numpy(), gradient, rtol=1e-3, atol=1e-4 * largest)
    return found


@pytest.mark.parametrize("name", [*GRIDS, *TYPES])
def test_gradients_are_those_of_the_whole_model(name):
    sizes = {"num_hidden_layers": 1, **(WIDE if name in TYPES else {})}
    model = models.tiny_llama(**sizes)
    found = check_gradients(model, models.MemorySource(model), grid_of(name))
    parts = {key.rpartition(".")[2] for key in found}
    super_parts = {"super_scales", "super_minima"} if name in ("Q4_K", "Q2_K") else {"super_scales"}
    kinds = {"offset": {"scales", "offsets"}, "ragged": {"scales", "offsets"}, "IQ4_NL": {"scales"}}
    plain = {"scales"} if name in GRIDS else super_parts
    assert parts == kinds.get(name, plain) | {"values", "codes"}


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_models_larger_than_memory_have_the_same_gradients(resident, tied, tmp_path):
    model = models.tiny_llama(tie_word_embeddings=tied)
    folder = None if resident else tmp_path
    source = models.MemorySource(model)
    check_gradients(model, source, GRIDS["offset"], resident=resident, states_folder=folder)


def test_experts_are_tuned_by_the_tokens_that_reach_them():
    model = mixtures.tiny_mixture()
    check_gradients(model, mixtures.MixtureSource(model), GRIDS["symmetric"])


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("gpt2", {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}),
        ("qwen2", {**models.TINY}),
        ("gemma3_text", {**models.TINY, "head_dim": 8}),
        ("phi3", {**models.TINY, "pad_token_id": 0}),
    ],
)
def test_families_with_biases_and_other_norms_are_tuned(kind, sizes):
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
    found = check_gradients(model, models.MemorySource(model), GRIDS["symmetric"])
    has_biases = kind in ("gpt2", "qwen2")
    assert any(key.endswith("bias.values") for key in found) is has_biases


def test_predictions_of_a_few_tokens_at_a_time_change_nothing(monkeypatch):
    monkeypatch.setattr("edgeq.tuning.model.PREDICTIONS", 3 * 40 * 3)
    model = models.tiny_llama()
    check_gradients(model, models.MemorySource(model), GRIDS["offset"])


def test_batches_of_any_size_give_the_same(monkeypatch):
    monkeypatch.setattr("edgeq_backends.torch.tuning.BATCH_TOKENS", 10)
    assert BATCH_TOKENS > 10
    model = models.tiny_llama()
    for resident in (True, False):
        check_gradients(model, models.MemorySource(model), GRIDS["offset"], resident=resident)


def noisy(model, grid, share=0.05):
    """A solved model near its original: rounded to the nearest code, on scales that are off."""
    source = models.MemorySource(model)
    solved = SolvedSource(source, grid)
    rng = np.random.default_rng(2)
    for tensor, layer in solved.layers.items():
        weight = source.read(tensor)
        width = grid.columns_per_group(weight.shape[1])
        groups = weight.reshape(len(weight), -1, width)
        exact = np.abs(groups).max(2) / grid.middle
        codes = np.clip(np.rint(groups / exact[:, :, None]) + grid.middle, 0, grid.max_code)
        scales = exact * rng.uniform(1 - share, 1 + share, exact.shape)
        scales = scales.astype(np.float16).astype(np.float32)
        solved.layers[tensor] = type(layer)(
            codes.reshape(weight.shape).astype(np.uint8), scales, -scales * grid.middle, grid
        )
    return source, solved


GRID = Grid(4, 8, "symmetric", "float16")


def tuned(model, *, folder=None, watch=lambda *args: None, resident=True, grid=GRID, **changes):
    source, solved = noisy(model, grid)
    made = torch_models(source, solved, exact=True, resident=resident)
    tuning = Tuning(**{"rate": 1e-2, "step_windows": 4, "passes": 2, **changes})
    windows = windows_of(model, count=20)
    return solved, tune(made, solved, windows, tuning, watch=watch, folder=folder)


def test_tuning_lowers_the_divergence_of_windows_that_it_never_saw():
    solved, found = tuned(models.tiny_llama())
    assert found.after < 0.8 * found.before
    assert found.kept_step > 0
    assert found.tokens + found.held_out_tokens == 200
    for tensor, layer in solved.layers.items():
        scales = found.values[tensor]["scales"]
        assert set(found.values[tensor]) == {"scales"}  # offsets follow a symmetric grid's scales
        assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))
        assert not np.array_equal(scales, layer.scales)


@pytest.mark.parametrize("free", [FREE, ALL], ids=["floats", "codes"])
def test_what_is_measured_is_what_is_written(free):
    model = models.tiny_llama()
    solved, found = tuned(model, free=free)
    dense = {}
    for tensor, parts in found.values.items():
        if "values" in parts:
            dense[tensor] = parts["values"]
            continue
        layer = solved.layers[tensor]
        scales = parts["scales"]
        solved.layers[tensor] = type(layer)(layer.codes, scales, -scales * GRID.middle, GRID)
    solved.with_values(dense)
    made = torch_models(models.MemorySource(model), solved, exact=True)
    blocks = TunedBlocks(solved, made, ())
    held = windows_of(model, count=20)[[0, 10]]
    states = original_states(made, held, held[:0], lambda done, all: None)
    assert held_out_kl(blocks, held, states.read, {}) == pytest.approx(found.after, rel=1e-5)


def test_nothing_gained_changes_nothing():
    _, found = tuned(models.tiny_llama(), rate=100.0)
    assert found.kept_step == 0
    assert not found.values
    assert found.after == found.before
    assert found.steps < 10  # it stops when nothing improves


@pytest.mark.parametrize("free", [FREE, ALL], ids=["floats", "codes"])
def test_streamed_and_resident_take_the_same_way(free):
    curves = []
    for resident in (True, False):
        _, found = tuned(models.tiny_llama(), resident=resident, free=free)
        curves.append([row.held_out or row.loss for row in found.curve])
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-5)


def test_codes_that_move_lower_the_divergence_further():
    grid = Grid(3, 8, "symmetric", "float16")
    _, fixed = tuned(models.tiny_llama(), grid=grid, passes=16)
    solved, moving = tuned(models.tiny_llama(), grid=grid, passes=16, free=ALL)
    assert moving.before == fixed.before
    assert moving.after < 0.95 * fixed.after
    moved = count = 0
    for tensor, layer in solved.layers.items():
        codes = moving.values[tensor]["codes"]
        assert codes.dtype == np.uint8
        assert codes.max() <= grid.max_code
        moved += int(np.count_nonzero(codes != layer.codes))
        count += codes.size
    assert 0 < moved < 0.1 * count


def test_positions_end_at_the_first_code_and_the_last():
    source, solved = noisy(models.tiny_llama(), GRID)
    blocks = TunedBlocks(solved, torch_models(source, solved, exact=True), (CODES,))
    for free in blocks.free.values():
        for far, end in ((-20, -MARGIN), (20, GRID.max_code + MARGIN)):
            x = free.limited(free.zeros() + far)
            position = free.part.start + x.numpy()
            np.testing.assert_allclose(position, end, atol=1e-5)
            assert np.all(free.value(x).numpy() == round(end))
        inside = free.zeros() + 0.01
        inside[free.part.start == GRID.max_code] = 0
        assert torch.equal(free.limited(inside), inside)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(("last", "free"), [(5, FREE), (8, ALL)])
def test_a_run_that_is_stopped_goes_on_to_the_same_numbers(last, free, tmp_path):
    model = models.tiny_llama()
    settings = {"passes": 3, "free": free}

    def stop(what, done, total):
        if what == loop.TUNING and done == last:
            raise StoppedError

    _, whole = tuned(model, **settings)
    with pytest.raises(StoppedError):
        tuned(model, **settings, folder=tmp_path, watch=stop)
    seen = []
    _, found = tuned(model, **settings, folder=tmp_path, watch=lambda *args: seen.append(args))
    first = min(done for what, done, _ in seen if what == loop.TUNING)
    assert first in (last, last + 1)  # it does not begin again
    assert found.curve == whole.curve
    for tensor, parts in whole.values.items():
        for part, values in parts.items():
            assert np.array_equal(found.values[tensor][part], values)


def test_scales_keep_their_sign_whatever_gradients_say():
    model = models.tiny_llama()
    source, solved = noisy(model, GRID)
    blocks = TunedBlocks(solved, torch_models(source, solved, exact=True), FREE)
    for key, free in blocks.free.items():
        if key.endswith(".scales"):
            far = free.limited(free.zeros() - 5)
            assert float(far.min()) == pytest.approx(LEAST_SHARE)
            assert bool((free.value(far).sign() == free.value(free.zeros()).sign()).all())


def test_every_window_is_read_once_in_a_pass():
    order = batches_of(37, Tuning(passes=3, step_windows=8, seed=5))
    assert sorted(np.concatenate(order).tolist()) == sorted(3 * list(range(37)))
    sizes = {len(chosen) for chosen in order}
    assert max(sizes) - min(sizes) <= 1


def test_a_step_is_one_of_adam():
    rng = np.random.default_rng(0)
    parameter = torch.nn.Parameter(torch.zeros(5))
    adam = torch.optim.Adam([parameter], lr=0.1, betas=(0.9, 0.95), eps=1e-12)
    x, moments = torch.zeros(5), (torch.zeros(5), torch.zeros(5))
    for step in range(6):
        gradient = torch.from_numpy(rng.standard_normal(5).astype(np.float32))
        parameter.grad = gradient
        adam.step()
        x, moments = descend(x, gradient, moments, step=step, rate=0.1)
    np.testing.assert_allclose(x.numpy(), parameter.detach().numpy(), rtol=1e-5)


def test_the_rate_rises_and_falls_to_nothing():
    rates = [rate_at(step, 100, 1.0) for step in range(100)]
    assert rates.index(max(rates)) in (4, 5)
    assert max(rates) == 1.0
    assert rates[-1] < 0.001
    assert all(later < earlier for earlier, later in pairwise(rates[6:]))
