"""Text that a model writes itself: what its tokens follow, and when it is written again."""

import os

import models
import numpy as np
import pytest
import torch
from tiny_models import tokenizer_files
from tokenizers import Tokenizer
from transformers import MistralConfig, MistralForCausalLM

from edgeq.calibration.self_text import (
    bytes_per_token,
    cache_directory,
    tokens_to_write,
    write_windows,
    written_windows,
)
from edgeq.calibration.texts import read_texts
from edgeq.errors import BadInput
from edgeq.recipe.recipe import make_recipe
from edgeq.registry import WRITERS, load
from edgeq.run.assembly import CalibrationMaker

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = 320


def nobody(tokens, total):
    pass


@pytest.fixture(params=["torch", "mlx"])
def framework(request):
    if request.param == "mlx":
        pytest.importorskip("mlx.core", reason="MLX has no build for this system")
    return request.param


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgeq"


def sharp(model):
    """A random model with large weights: each prediction depends on what came before, and few
    tokens are likely.
    """
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)
    return model.eval()


def source_of(model):
    return models.MemorySource(model, companions=tokenizer_files())


def writer_of(framework, source, allowed, seed=0):
    return load(WRITERS[framework], "writing")(source, np.asarray(allowed), seed)


def written(framework, model, *, count, length, allowed, seed=0):
    source = source_of(model)
    first = np.arange(count) % 7 + 5
    return write_windows(source, writer_of(framework, source, allowed, seed), nobody, first, length)


def check_most_likely(model, windows):
    """Wherever the model is sure, the next token is its most likely one."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(windows), use_cache=False).logits[:, :-1].numpy()
    top = np.sort(logits, axis=2)
    sure = top[:, :, -1] - top[:, :, -2] > 100
    assert sure.mean() > 0.8
    np.testing.assert_array_equal(windows[:, 1:][sure], logits.argmax(axis=2)[sure])


def test_tokens_follow_the_predictions_of_the_whole_text_before_them(framework):
    """A model so sure of itself that sampling takes its most likely token, over more tokens than
    buffers first hold.
    """
    model = sharp(models.tiny_llama(vocab_size=ROWS, max_position_embeddings=512))
    model.lm_head.weight.data *= 1e4
    windows = written(framework, model, count=3, length=300, allowed=np.arange(ROWS))
    check_most_likely(model, windows)
    assert len(np.unique(windows)) > 10


class Watched:
    """A source that notes the tensors that are read."""

    def __init__(self, source):
        self.source, self.read_names = source, []

    def __getattr__(self, name):
        return getattr(self.source, name)

    def read(self, name):
        self.read_names.append(name)
        return self.source.read(name)


@pytest.mark.parametrize("resident", [0, 1])
def test_block_by_block_a_model_writes_the_same_text(framework, resident, monkeypatch):
    """In batches, as little room for keys and values makes them; only the weights of blocks that do
    not stay are read again, once for each token of a batch.
    """
    source = Watched(source_of(sharp(models.tiny_llama(vocab_size=ROWS))))
    room = 2 * 6 * bytes_per_token(source.record.decoder)
    monkeypatch.setattr("edgeq.calibration.self_text.CACHE_BYTES", room)
    make, first = load(WRITERS[framework], "writing"), np.arange(3) + 5
    whole = write_windows(source, make(source, np.arange(ROWS), 3), nobody, first, 6)
    source.read_names.clear()
    writer = make(source, np.arange(ROWS), 3, resident=resident)
    np.testing.assert_array_equal(write_windows(source, writer, nobody, first, 6), whole)
    for index in range(2):
        name = f"model.layers.{index}.mlp.up_proj.weight"
        assert source.read_names.count(name) == (1 if index < resident else 2 * 5)
    assert source.read_names.count("model.embed_tokens.weight") == 1


def test_block_by_block_only_one_block_that_does_not_stay_has_weights():
    source = source_of(models.tiny_llama(vocab_size=ROWS))
    writer = load(WRITERS["torch"], "writing")(source, np.arange(ROWS), 3, resident=0)
    layers, seen = writer._model.model.layers, []
    for layer in layers:
        layer.mlp.register_forward_hook(
            lambda *_: seen.append([each.mlp.up_proj.weight.is_meta for each in layers])
        )
    next(writer.continue_text(np.array([5])))
    assert seen == [[False, True], [True, False]]
    assert all(each.mlp.up_proj.weight.is_meta for each in layers)


def test_a_run_that_writes_block_by_block_has_the_same_sequences(monkeypatch, tmp_path):
    source = source_of(sharp(models.tiny_llama(vocab_size=ROWS)))
    recipe = make_recipe({"samples": 5, "sequence_length": 8, "group_size": 16})
    found = []
    for resident in (None, 1):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(resident)))
        make = CalibrationMaker("cpu", read_texts(("self", f"{__file__}=4")), resident)
        assert make.written(5) == 1
        found.append(make(source, recipe, nobody))
    np.testing.assert_array_equal(found[0].windows, found[1].windows)
    assert found[0].record() == found[1].record()


def test_a_sliding_window_is_kept():
    config = MistralConfig(**models.TINY, sliding_window=8)
    model = sharp(MistralForCausalLM(config))
    model.lm_head.weight.data *= 1e4
    windows = written("torch", model, count=3, length=40, allowed=np.arange(40))
    check_most_likely(model, windows)


def test_tokens_are_as_frequent_as_the_model_says(framework):
    """8192 second tokens after one first token: a chi-square statistic within six deviations of its
    mean.
    """
    model, allowed, count = sharp(models.tiny_llama()), np.arange(3, 33), 8192
    writer = writer_of(framework, source_of(model), allowed)
    drawn = next(writer.continue_text(np.full(count, 7)))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[7]])).logits[0, 0, allowed].double()
    expected = count * torch.softmax(logits, 0).numpy()
    frequent = expected > 5
    found = np.bincount(drawn, minlength=40)[allowed]
    statistic = ((found - expected)[frequent] ** 2 / expected[frequent]).sum()
    freedom = frequent.sum() - 1
    assert freedom > 3
    assert abs(statistic - freedom) < 6 * np.sqrt(2 * freedom)
    assert found.sum() == count


def test_only_allowed_tokens_are_written(framework):
    allowed = np.array([4, 9, 30])
    windows = written(framework, models.tiny_llama(), count=16, length=12, allowed=allowed)
    assert set(windows[:, 1:].ravel()) == set(allowed)


def test_the_seed_decides(framework):
    model, options = models.tiny_llama(), {"count": 4, "length": 12, "allowed": np.arange(40)}
    first, again, other = (written(framework, model, seed=seed, **options) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_little_room_for_keys_and_values_means_smaller_batches(framework, monkeypatch):
    source, told = source_of(models.tiny_llama()), []
    assert (
        bytes_per_token(source.record.decoder) == 2 * 2 * 2 * 16 * 4
    )  # blocks, keys and values, heads, width, float32
    monkeypatch.setattr(
        "edgeq.calibration.self_text.CACHE_BYTES", 2 * 6 * bytes_per_token(source.record.decoder)
    )
    rows = []

    class Counting:
        def __init__(self, writer):
            self.writer = writer

        def continue_text(self, first):
            rows.append(len(first))
            return self.writer.continue_text(first)

    writer = Counting(writer_of(framework, source, np.arange(40)))
    windows = write_windows(source, writer, lambda *now: told.append(now), np.arange(5), 6)
    assert rows == [2, 2, 1]
    np.testing.assert_array_equal(windows[:, 0], np.arange(5))
    assert told == sorted(told) and told[-1] == (30, 30)


def test_predictions_that_are_not_finite_are_refused(framework):
    model = models.tiny_llama()
    model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(BadInput, match="NaN or infinity"):
        written(framework, model, count=2, length=4, allowed=np.arange(40))


def test_text_starts_with_a_token_that_is_not_special_and_holds_only_tokens_that_exist():
    source = source_of(models.tiny_llama(vocab_size=ROWS))
    tokenizer = Tokenizer.from_str(source.companions()["tokenizer.json"].decode())
    allowed, first = tokens_to_write(source)
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    assert special and not special & set(first.tolist())
    assert set(allowed.tolist()) == set(first.tolist()) | special
    assert len(allowed) == tokenizer.get_vocab_size() < ROWS


def write_through_cache(source, *, count=4, length=6, seed=0, framework="torch cpu", made=None):
    def make_writer(*arguments):
        if made is not None:
            made.append(arguments)
        return writer_of("torch", *arguments)

    return written_windows(
        source, make_writer, nobody, framework=framework, count=count, length=length, seed=seed
    )


def test_text_is_written_once(cache):
    source, made = source_of(models.tiny_llama(vocab_size=ROWS)), []
    first, again = (write_through_cache(source, made=made) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.dtype == again.dtype == np.int64
    assert len(made) == 1
    assert [path.suffix for path in cache.iterdir()] == [".npy"]


@pytest.mark.parametrize("other", [{"count": 5}, {"length": 7}, {"seed": 1}, {"framework": "mlx"}])
def test_other_conditions_have_text_of_their_own(other):
    source, made = source_of(models.tiny_llama(vocab_size=ROWS)), []
    write_through_cache(source, made=made)
    write_through_cache(source, made=made, **other)
    assert len(made) == 2


def test_another_model_has_text_of_its_own(monkeypatch):
    source, made = source_of(models.tiny_llama(vocab_size=ROWS)), []
    write_through_cache(source, made=made)
    monkeypatch.setattr(source, "fingerprint", lambda: "another")
    write_through_cache(source, made=made)
    assert len(made) == 2


@pytest.mark.parametrize("damage", ["cut", "foreign", "pickle", "shape", "range"])
def test_damaged_text_is_written_again(cache, damage):
    source, made = source_of(models.tiny_llama(vocab_size=ROWS)), []
    expected = write_through_cache(source, made=made)
    [file] = cache.iterdir()
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    elif damage == "foreign":
        file.write_bytes(b"what is this")
    else:
        wrong = {
            "pickle": np.array([print]),
            "shape": expected.astype("<i4").T,
            "range": expected.astype("<i4") + ROWS,
        }
        np.save(file, wrong[damage], allow_pickle=True)
    np.testing.assert_array_equal(write_through_cache(source, made=made), expected)
    assert len(made) == 2
    np.testing.assert_array_equal(np.load(file), expected)


def test_a_cache_that_cannot_be_made_is_refused_before_the_model_writes(cache):
    cache.parent.write_text("a file where the directory would be")
    made = []
    with pytest.raises(BadInput, match="XDG_CACHE_HOME"):
        write_through_cache(source_of(models.tiny_llama(vocab_size=ROWS)), made=made)
    assert not made


def test_the_cache_lies_where_the_system_keeps_them(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        for system, place in (("linux", ".cache"), ("darwin", "Library/Caches")):
            monkeypatch.setattr("sys.platform", system)
            assert cache_directory() == tmp_path / place / "edgeq"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_directory() == tmp_path / "local" / "edgeq" / "Cache"
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path))
    assert cache_directory() == tmp_path / "edgeq"
