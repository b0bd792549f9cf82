"""Tuning in MLX: the same numbers as in torch, whichever way a model is read."""

from dataclasses import replace
from functools import partial

import ml_dtypes
import models
import numpy as np
import pytest
from checkpoints import tiny_checkpoint
from solved_rows import save_row, solve_row
from solved_sources import SolvedSource
from tiny_models import random_layer

from benchmarks.fuzz.inputs import ROUNDING, Quiet
from edgeq.grids.types import GRIDS as TYPES
from edgeq.registry import TUNERS, load
from edgeq.run.assembly import make_job
from edgeq.run.pipeline import quantize
from edgeq.sources import open_source
from edgeq.tuning import loop
from edgeq.tuning.free import CODES, FREE
from edgeq.tuning.loop import Tuning, tune
from edgeq.tuning.passes import TunedBlocks, loss_and_gradients, original_states
from edgeq.types import Grid

mx = pytest.importorskip("mlx.core", reason="MLX has no build for this system")
pytestmark = pytest.mark.usefixtures("one_thread")

FRAMEWORKS = ("torch", "mlx")
WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 1}
PLAIN = Grid(4, 32, "offset", "float32")
GRIDS = {
    "self_attn.q_proj": Grid(3, 8, "symmetric", "float32"),
    "self_attn.k_proj": Grid(3, 8, "integer", "float32"),
    "self_attn.v_proj": Grid(2, 8, "offset", "float32"),
    "self_attn.o_proj": Grid(4, 24, "offset", "float32", 0.1),
    "mlp.gate_proj": TYPES["Q4_K"],
    "mlp.up_proj": TYPES["Q2_K"],
    "mlp.down_proj": TYPES["IQ4_NL"],
}
FAMILIES = ("qwen2 tied", "gemma3_text", "qwen3_moe")
MORE = ("mixtral", "olmoe", "glm4_moe", "qwen2_moe", "cohere2", "nemotron", "phi3 / phi-4-mini")


def make(framework, source, solved, **options):
    return load(TUNERS[framework], "tuning")(source, solved, exact=True, **options)


def gradients(made, solved, windows, free=FREE):
    """The mean KL, and its gradients as NumPy arrays."""
    blocks = TunedBlocks(solved, made, free)
    reading = original_states(made, windows[:0], windows, lambda done, all: None)
    kl, found = loss_and_gradients(blocks, windows, reading.read, blocks.zeros())
    return kl, {key: made.numbers.get(gradient) for key, gradient in found.items()}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_verbs_of_frameworks_are_those_of_numpy(framework, rng):
    source = models.MemorySource(models.tiny_llama())
    numbers = make(framework, source, SolvedSource(source, PLAIN)).numbers
    sizes = 10.0 ** rng.integers(-9, 4, (3, 40))  # some below the least and above the largest
    x = (sizes * rng.standard_normal((3, 40))).astype(np.float32)
    x[0, :4] = [1 + 2**-11, 1 + 3 * 2**-11, 1e6, -1e6]  # ties go to even
    for dtype, stored in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        limit = float(ml_dtypes.finfo(stored).max)
        expected = np.clip(x, -limit, limit).astype(stored).astype(np.float32)
        rounded = numbers.get(numbers.rounded(numbers.put(x), dtype))
        np.testing.assert_array_equal(rounded, expected)
        assert rounded.dtype == np.float32
    positions = np.array([[-3.0, -0.5, 0.5, 1.5, 2.5, 6.49, 6.51, 99.0]], np.float32)
    nearest = numbers.get(numbers.nearest_codes(numbers.put(positions), 7))
    np.testing.assert_array_equal(nearest, np.clip(np.rint(positions), 0, 7))
    assert nearest.dtype == np.uint8
    put, codes = numbers.put(x), rng.integers(0, 16, (3, 5)).astype(np.uint8)
    table = TYPES["IQ4_NL"].table
    found = {
        "clip": (numbers.clip(put, -0.9, 9.0), np.clip(x, np.float32(-0.9), 9)),
        "joined": (numbers.joined([put, put]), np.concatenate([x, x], 1)),
        "stacked": (numbers.stacked([put, put]), np.concatenate([x, x])),
        "levels": (numbers.levels(numbers.put(codes), ()), codes),
        "table": (numbers.levels(numbers.put(codes), table), np.array(table)[codes]),
    }
    for name, (ours, expected) in found.items():
        assert numbers.get(ours).dtype == np.float32
        np.testing.assert_array_equal(numbers.get(ours), expected, err_msg=name)


def assert_alike(found, expected, *, within):
    (kl, ours), (wanted, theirs) = found, expected
    assert kl == pytest.approx(wanted, rel=within)
    assert ours.keys() == theirs.keys()
    for key, gradient in theirs.items():
        largest = np.abs(gradient).max()
        assert largest > 0, key
        assert np.abs(ours[key] - gradient).max() <= within * largest, key


def assert_same_in_both(source, solved, windows, free=FREE):
    in_torch, in_mlx = (
        gradients(make(framework, source, solved), solved, windows, free)
        for framework in FRAMEWORKS
    )
    assert_alike(in_mlx, in_torch, within=1e-4)


def test_gradients_on_every_kind_of_grid_are_those_of_torch(rng):
    model = models.tiny_llama(**WIDE)
    source = models.MemorySource(model)
    solved = SolvedSource(source, PLAIN)
    for name, grid in GRIDS.items():
        tensor = f"model.layers.0.{name}.weight"
        shape = solved.layers[tensor].codes.shape
        solved.layers[tensor] = random_layer(rng, shape, grid, size=0.3)
    assert_same_in_both(source, solved, rng.integers(0, 40, (3, 10)), (*FREE, CODES))


@pytest.mark.parametrize("free", FREE)
def test_each_kind_of_numbers_is_tuned_alone_too(free, rng):
    source = models.MemorySource(models.tiny_llama(attention_bias=True, num_hidden_layers=1))
    biases = {
        name: rng.standard_normal(source.shape(name)).astype(np.float32)
        for name in source.tensor_names()
        if name.endswith("bias")
    }
    solved = SolvedSource(source, Grid(2, 8, "offset", "float32")).with_values(biases)
    assert_same_in_both(source, solved, rng.integers(0, 40, (2, 6)), (free,))


@pytest.mark.parametrize(
    "name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_gradients_of_families_are_those_of_torch(name, rng, tmp_path):
    """Biases, norms that one is added to, tied heads, experts that lie in stacks."""
    source = open_source(str(save_row(solve_row(name, rng), tmp_path)))
    solved = SolvedSource(source, PLAIN)
    experts = [tensor for tensor in solved.layers if ".experts.1." in tensor]
    for tensor in experts:
        del solved.layers[tensor]  # dense beside quantized ones
    # so many tokens that mlx-lm sorts them by expert
    assert_same_in_both(source, solved, rng.integers(3, 300, (2, 33)))


@pytest.mark.parametrize("tied", [True, False])
def test_streamed_and_resident_give_the_same(tied, rng, tmp_path, monkeypatch):
    model = models.tiny_llama(tie_word_embeddings=tied)
    source, windows = models.MemorySource(model), rng.integers(0, 40, (3, 10))
    solved = SolvedSource(source, Grid(2, 8, "offset", "float32"))
    resident = gradients(make("mlx", source, solved), solved, windows)
    streamed = make("mlx", source, solved, resident=False, states_folder=tmp_path)
    assert_alike(gradients(streamed, solved, windows), resident, within=1e-6)
    monkeypatch.setattr("edgeq.tuning.model.PREDICTIONS", 4 * 40)  # a few tokens at a time
    for made in (streamed, make("mlx", source, solved)):
        in_parts = replace(made, batch_tokens=20)
        assert_alike(gradients(in_parts, solved, windows), resident, within=1e-5)


class StoppedError(Exception):
    pass


def tuned(framework, source, checkpoint, windows, *, resident=True, **options):
    made = make(framework, source, checkpoint, resident=resident)
    tuning = Tuning(step_windows=3, passes=2, rate=1e-2)
    return tune(made, checkpoint, windows, tuning, **{"watch": lambda *args: None, **options})


def test_a_run_that_is_stopped_goes_on_to_the_same_numbers(rng, tmp_path):
    checkpoint = tiny_checkpoint(tmp_path)
    source = open_source(str(tmp_path / "model"))
    run = partial(tuned, "mlx", source, checkpoint, rng.integers(0, 250, (8, 6)))

    def stop(what, done, total):
        if what == loop.TUNING and done == 3:
            raise StoppedError

    whole = run()
    with pytest.raises(StoppedError):
        run(folder=tmp_path, watch=stop)
    seen = []
    found = run(folder=tmp_path, watch=lambda *args: seen.append(args))
    assert min(done for what, done, _ in seen if what == loop.TUNING) > 2
    assert found.curve == whole.curve
    assert found.kept_step > 0
    for tensor, parts in whole.values.items():
        for part, values in parts.items():
            assert np.array_equal(found.values[tensor][part], values)


def curve_of(found):
    return [value for row in found.curve for value in (row.loss, row.held_out) if value is not None]


@pytest.mark.slow
def test_both_frameworks_take_the_same_way_on_trained_weights(tmp_path):
    source = open_source(str(models.save_glass(tmp_path)))
    job = make_job(source, {**ROUNDING, "bits": 3}, backend="reference", exports=())
    checkpoint, windows = (
        quantize(job, tmp_path / "checkpoint", Quiet()),
        models.glass_windows(20, 96),
    )
    in_torch, in_mlx = (tuned(each, source, checkpoint, windows) for each in FRAMEWORKS)
    np.testing.assert_allclose(curve_of(in_mlx), curve_of(in_torch), rtol=1e-3)
    assert in_mlx.kept_step == in_torch.kept_step > 0
    assert in_mlx.after < 0.9 * in_mlx.before
    streamed = tuned("mlx", source, checkpoint, windows, resident=False)
    np.testing.assert_allclose(curve_of(streamed), curve_of(in_mlx), rtol=1e-5)
