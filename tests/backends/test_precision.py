"""What torch multiplies with and in which type, and what a run says of it."""

import mixtures
import numpy as np
import pytest
import torch
from models import MemorySource, glass_llama, glass_tokenizer, tiny_llama

from edgeq.commands.progress import Silent
from edgeq.registry import load_backend
from edgeq.run.assembly import make_job
from edgeq.run.finished import notes
from edgeq.run.pipeline import quantize
from edgeq.run.report import read_report
from edgeq_backends.torch import activations, products
from edgeq_backends.torch.activations import TorchActivations, kind_of_passes
from edgeq_backends.torch.products import choose_products, multiplying


@pytest.fixture
def in_bfloat16(monkeypatch):
    """A processor that multiplies in bfloat16, whatever this one does."""
    monkeypatch.setattr(activations, "fast_type", lambda device: torch.bfloat16)


@pytest.fixture
def probed_anew():
    products._is_exact_when_fast.cache_clear()
    yield
    products._is_exact_when_fast.cache_clear()


@pytest.mark.parametrize("exact", [False, True])
def test_products_keep_all_digits_of_float32(exact, rng):
    A, B = (torch.from_numpy(rng.random((300, 200)).astype(np.float32)) for _ in range(2))
    wanted = A.double() @ B.double().T
    with load_backend("cpu", exact=exact).working():
        for found in (A @ B.T, torch.nn.functional.linear(A, B)):
            assert (abs(found - wanted) <= 1e-6 * wanted).all()


def test_what_the_process_multiplies_in_is_put_back():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), multiplying("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.usefixtures("probed_anew")
def test_products_that_lose_digits_are_not_chosen(monkeypatch):
    exactly = torch.Tensor.__matmul__

    def rounded(A, B):
        if torch.get_float32_matmul_precision() == "medium" and A.dtype == torch.float32:
            A, B = A.bfloat16().float(), B.bfloat16().float()
        return exactly(A, B)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert choose_products("cpu", exact=False) == "highest"
    assert "torch's own" in load_backend("cpu").computes_in


@pytest.mark.parametrize(
    ("device", "dtype", "drift", "rounds"),
    [
        ("cpu", "bfloat16", 0.0, True),
        ("cpu", "float32", 0.0, True),
        ("cpu", "bfloat16", 0.5, False),
        ("cuda", "bfloat16", 0.5, True),
        ("cuda", "float16", 1.0, True),
        ("cuda", "float32", 0.5, False),
        ("cuda", "float32", 0.0, True),
    ],
)
@pytest.mark.usefixtures("in_bfloat16")
def test_streams_are_rounded_where_the_solve_bears_it(device, dtype, drift, rounds, monkeypatch):
    monkeypatch.setattr(activations, "find_device", torch.device)
    source = MemorySource(tiny_llama(dtype=dtype))
    assert (kind_of_passes(source, device, drift) == torch.bfloat16) == rounds


@pytest.mark.usefixtures("in_bfloat16")
def test_mixtures_run_in_float32():
    source = MemorySource(mixtures.tiny_mixture())
    assert kind_of_passes(source, "cpu", 0.0) == torch.float32


@pytest.mark.usefixtures("in_bfloat16", "one_thread")
def test_streams_in_bfloat16_are_near_those_in_float32_and_exact_ones_equal_them(rng, monkeypatch):
    source = MemorySource(tiny_llama(dtype="bfloat16"))
    windows = rng.integers(0, 40, (4, 12))

    def inputs(**how):
        streams = TorchActivations(source, windows, drift=0.0, **how)
        found = [
            np.concatenate([x.float().numpy() for _, x in site.batches()])
            for block in source.blocks()
            for site in streams.sites(block)
        ]
        return streams.computes_in, found

    in_words, rounded = inputs()
    exact_words, exact = inputs(exact=True)
    monkeypatch.setattr(activations, "fast_type", lambda device: None)
    _, plain = inputs()
    assert (in_words, exact_words) == ("bfloat16", "float32")
    for near, expected, wanted in zip(rounded, exact, plain, strict=True):
        np.testing.assert_array_equal(expected, wanted)
        assert 0 < np.linalg.norm(near - wanted) < 0.02 * np.linalg.norm(wanted)


@pytest.mark.usefixtures("in_bfloat16", "one_thread")
@pytest.mark.parametrize("exact", [False, True])
def test_a_run_states_its_precision(exact, tmp_path):
    tokenizer = {"tokenizer.json": glass_tokenizer().to_str().encode()}
    source = MemorySource(glass_llama(), companions=tokenizer)
    settings = {"samples": 2, "sequence_length": 16, "bits": 3, "exact": exact, "quality": "fast"}
    job = make_job(source, settings, backend="cpu", calibration=("speeches",))
    checkpoint = quantize(job, tmp_path / "run", Silent())
    report = read_report(checkpoint)
    [stated] = report.computed_in
    wanted = ("cpu: float64", "in float32") if exact else ("cpu: float32", "in bfloat16")
    assert stated.startswith(wanted[0]) and stated.endswith(wanted[1])
    assert any("--exact" in note for note in notes(report, checkpoint.grids())) != exact
