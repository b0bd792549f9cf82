"""The llama.cpp logit source by itself."""

import sys

import numpy as np
import pytest
from tiny_models import VOCAB_SIZE, one_block_model, tokenizer_files

from edgeq.errors import BadInput, NotInstalled
from edgeq_backends.llama_cpp import LlamaCppLogits, load_cyllama
from edgeq_exporters.gguf.exporter import GgufExporter

UINT32 = 4  # GGUF's number of the type


@pytest.fixture
def file(rng, tmp_path):
    model = one_block_model(tokenizer_files())
    for name, array in model.arrays.items():
        model.arrays[name] = rng.standard_normal(array.shape).astype(np.float32)
    return GgufExporter().write(model, tmp_path)[0]


def test_every_window_starts_from_an_empty_cache(rng, file):
    windows = rng.integers(0, VOCAB_SIZE, (3, 20))
    source = LlamaCppLogits(file)
    together = list(source.logits(windows))
    for window, logits in zip(windows, together, strict=True):
        assert logits.shape == (20, VOCAB_SIZE) and logits.dtype == np.float32
        np.testing.assert_array_equal(logits, next(source.logits(window[None])))
    assert not np.array_equal(together[0], together[1])


def test_a_prefix_has_the_logits_of_the_whole_window(rng, file):
    windows = rng.integers(0, VOCAB_SIZE, (1, 24))
    source = LlamaCppLogits(file, threads=1)
    whole, prefix = next(source.logits(windows)), next(source.logits(windows[:, :10]))
    np.testing.assert_allclose(whole[:10], prefix, atol=2e-2)


def test_nothing_is_printed(rng, file, capfd):
    list(LlamaCppLogits(file).logits(rng.integers(0, VOCAB_SIZE, (1, 8))))
    assert capfd.readouterr() == ("", "")


def damaged(file, content):
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    "change", [lambda whole: b"not a model", lambda whole: whole[:-50000], lambda whole: b""]
)
def test_a_file_that_llama_cpp_cannot_load_is_refused_in_one_line(file, change):
    with pytest.raises(BadInput, match=r"llama\.cpp cannot load") as refusal:
        LlamaCppLogits(damaged(file, change(file.read_bytes())))
    assert "\n" not in str(refusal.value)


def with_empty_key(whole):
    """One key-value more, in front of all others, whose key has no letters."""
    pairs = int.from_bytes(whole[16:24], "little") + 1
    entry = (0).to_bytes(8, "little") + UINT32.to_bytes(4, "little") + bytes(4)
    return whole[:16] + pairs.to_bytes(8, "little") + entry + whole[24:]


def test_damage_that_ends_the_process_of_llama_cpp_is_refused_in_one_line(file):
    """llama.cpp asserts that no key is empty; this test would end with it."""
    damaged(file, with_empty_key(file.read_bytes()))
    with pytest.raises(BadInput, match="it ends the process") as refusal:
        LlamaCppLogits(file)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_refused_in_one_line(tmp_path):
    with pytest.raises(BadInput, match=r"llama.cpp cannot load '.*none.gguf'"):
        LlamaCppLogits(tmp_path / "none.gguf")


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE])
def test_tokens_outside_the_vocabulary_are_refused(file, token):
    with pytest.raises(BadInput, match=f"vocabulary has {VOCAB_SIZE} tokens"):
        next(LlamaCppLogits(file).logits(np.array([[1, token]])))


@pytest.mark.parametrize("windows", [np.zeros((4,), int), np.zeros((2, 0), int)])
def test_windows_of_another_shape_are_refused(file, windows):
    with pytest.raises(BadInput, match="windows have shape"):
        next(LlamaCppLogits(file).logits(windows))


def test_a_missing_binding_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cyllama.llama.llama_cpp", None)
    load_cyllama.cache_clear()
    try:
        with pytest.raises(NotInstalled, match="with its extra 'llama-cpp'"):
            LlamaCppLogits("model.gguf")
    finally:
        load_cyllama.cache_clear()
