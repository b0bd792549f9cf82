"""Windows of texts that are too long to be held: the same tokens, from everywhere in the text."""

import os
import subprocess
import sys

import models
import numpy as np
import pytest
from tiny_models import byte_level_bpe, tokenizer_files
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, WordLevel

from edgeq.calibration import reading, text_files
from edgeq.calibration.long_windows import first_tokens, sample_long
from edgeq.calibration.reading import LongText, open_text
from edgeq.calibration.texts import PIECE, Text, make_calibration, most_at_once, read_texts
from edgeq.calibration.windows import first_windows, tokenize
from edgeq.errors import BadInput

LENGTH = 32


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch):
    """Texts of some thousand characters are long ones."""
    monkeypatch.setattr(reading, "LONGEST_WHOLE", 4000)
    monkeypatch.setattr(reading, "KEPT_END", 500)
    monkeypatch.setattr(text_files, "CHUNK", 1000)
    monkeypatch.setattr("edgeq.calibration.long_windows.LONGEST_WHOLE", 4000)


def source_with(tokenizer):
    files = {"tokenizer.json": tokenizer.to_str().encode()}
    return models.MemorySource(models.tiny_llama(vocab_size=2000), companions=files)


def numbered(count):
    """A text in which every place can be told from all others."""
    lines = (f"It's {number}: the café's mice don't sleep \U0001f42d." for number in range(count))
    return "\n".join(lines)


def metaspace_bpe(text):
    """A tokenizer of the SentencePiece kind: the start of a text gets a space of its own."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(text.split(), trainer)
    return tokenizer


def long_text(folder, text):
    (folder / "long.txt").write_text(text, encoding="utf-8")
    found = open_text(str(folder / "long.txt"))
    assert isinstance(found, LongText)
    return found


def places_of(windows, whole):
    """Where windows lie in the tokens of the whole text; they must lie there, and only once."""
    rows = np.lib.stride_tricks.sliding_window_view(whole, windows.shape[1])
    found = [np.flatnonzero((rows == window).all(axis=1)) for window in windows]
    assert [len(places) for places in found] == [1] * len(windows)
    return np.concatenate(found)


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "llama-bpe", "qwen2", "metaspace"])
def test_windows_are_stretches_of_the_whole_text_that_begin_with_a_word(tmp_path, kind):
    text = numbered(900)
    tokenizer = metaspace_bpe(text) if kind == "metaspace" else byte_level_bpe(kind)
    source = source_with(tokenizer)
    whole = tokenize(source, text)
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    options = {"samples": 12, "sequence_length": LENGTH}
    for seed in range(3):
        windows, tokens = sample_long(source, long_text(tmp_path, text), **options, seed=seed)
        places = places_of(windows, whole)
        assert (np.diff(places) > 0).all()
        shares = places / (len(whole) - LENGTH + 1)
        # one in each stretch, as far as characters and tokens go along with each other
        np.testing.assert_allclose(shares, (np.arange(12) + 0.5) / 12, atol=0.6 / 12)
        overlaps = np.clip(LENGTH - np.diff(places), 0, None).sum()
        assert tokens == windows.size - overlaps
        starts = [offsets[place][0] for place in places]
        assert all(text[at].isspace() or text[at - 1].isspace() for at in starts)


def test_the_seed_alone_decides_where_windows_start(tmp_path):
    source, text = source_with(byte_level_bpe()), long_text(tmp_path, numbered(900))
    first, again, other = (
        sample_long(source, text, samples=6, sequence_length=LENGTH, seed=seed)[0]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_no_part_of_a_long_text_is_missed(tmp_path):
    source, text = source_with(byte_level_bpe()), numbered(110)
    whole, long = tokenize(source, text), long_text(tmp_path, text)
    seen = np.zeros(len(whole), bool)
    for seed in range(25):
        windows, _ = sample_long(source, long, samples=99, sequence_length=LENGTH, seed=seed)
        for place in places_of(windows, whole):
            seen[place : place + LENGTH] = True
    assert seen.all()


def test_overlapping_windows_are_counted_once(tmp_path):
    source, text = source_with(byte_level_bpe()), numbered(110)
    windows, tokens = sample_long(
        source, long_text(tmp_path, text), samples=200, sequence_length=LENGTH, seed=0
    )
    covered = set()
    for place in places_of(windows, tokenize(source, text)):
        covered |= set(range(place, place + LENGTH))
    assert tokens == len(covered) < windows.size


@pytest.mark.parametrize("samples", [6, 10**9])
def test_windows_apart_share_no_token_and_take_what_there_is(tmp_path, samples):
    source, text = source_with(byte_level_bpe()), numbered(110)
    options = {"samples": samples, "sequence_length": LENGTH, "apart": True}
    windows, tokens = sample_long(source, long_text(tmp_path, text), **options, seed=0)
    whole = tokenize(source, text)
    assert (np.diff(places_of(windows, whole)) >= LENGTH).all()
    assert tokens == windows.size
    most = len(whole) // LENGTH
    assert min(samples, 0.9 * most) <= len(windows) <= min(samples, most)


def test_a_text_without_spaces_is_cut_anywhere(tmp_path):
    source, text = source_with(byte_level_bpe("gpt-2")), "猫和狗在家里" * 2000
    windows, _ = sample_long(
        source, long_text(tmp_path, text), samples=4, sequence_length=LENGTH, seed=0
    )
    whole = tokenize(source, text)
    rows = {tuple(row) for row in np.lib.stride_tricks.sliding_window_view(whole, LENGTH)}
    assert {tuple(window) for window in windows} <= rows


def test_evaluation_windows_of_a_long_text_are_those_of_the_whole_text(tmp_path):
    source, text = source_with(byte_level_bpe()), numbered(900)
    found = first_tokens(source, long_text(tmp_path, text), 5 * LENGTH)
    np.testing.assert_array_equal(found, tokenize(source, text)[: 5 * LENGTH])
    all_of_it = first_tokens(source, long_text(tmp_path, text), 10**6)
    np.testing.assert_array_equal(all_of_it, tokenize(source, text))
    assert first_windows(found, windows=9, sequence_length=LENGTH).shape == (5, LENGTH)


def test_a_long_text_of_few_tokens_is_refused(tmp_path):
    tokenizer = Tokenizer(WordLevel({"?": 0, "a": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    source = source_with(tokenizer)
    options = {"samples": 2, "sequence_length": LENGTH, "seed": 0}
    with pytest.raises(BadInput, match=r"characters are \d+ tokens; at least one sequence of 32"):
        sample_long(source, long_text(tmp_path, "a " * 10 + "x" * 50_000), **options)
    with pytest.raises(BadInput, match=r"characters from place \d+ on are \d+ tokens"):
        sample_long(source, long_text(tmp_path, "x" * 50_000 + " a" * 100), **options)
    short = {**options, "samples": 10**6}
    with pytest.raises(BadInput, match="choose fewer --samples"):
        sample_long(source, long_text(tmp_path, "a " * 3000), **short)


def test_a_long_text_is_recorded_with_the_tokens_of_its_windows(tmp_path):
    files = tokenizer_files()
    source = models.MemorySource(models.tiny_llama(vocab_size=320), companions=files)
    text = long_text(tmp_path, numbered(900))
    texts = read_texts([str(tmp_path / "long.txt")], source)
    calibration = make_calibration(source, texts, None, samples=4, sequence_length=LENGTH, seed=3)
    [entry] = calibration.texts
    assert entry == {
        "name": "long.txt",
        "share": 1.0,
        "samples": 4,
        "tokens": 4 * LENGTH,
        "sha256": text.sha256,
    }
    assert most_at_once(texts) == PIECE
    assert most_at_once([Text("a", 1, "abc"), Text("b", 1, "abcde"), Text("c", 1, None)]) == 5


PEAK = """
import sys
sys.path[:0] = sys.argv[3:]
from types import SimpleNamespace
from tiny_models import tokenizer_files
from edgeq.calibration.texts import make_calibration, read_texts
from edgeq.planning.process_memory import peak_resident_bytes
record = SimpleNamespace(name="tiny", vocabulary=320, context=None, template=None)
source = SimpleNamespace(record=record, companions=tokenizer_files)
before = peak_resident_bytes()
texts = read_texts([sys.argv[1]], source)
windows = make_calibration(
    source, texts, None, samples=int(sys.argv[2]), sequence_length=512, seed=0
).windows
print(windows.shape[0], peak_resident_bytes() - before)
"""


def growth(path):
    """How far the peak of a process grows that cuts 64 windows from a text."""
    folders = [entry for entry in sys.path if entry]
    run = subprocess.run(
        [sys.executable, "-c", PEAK, path, "64", *folders],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    windows, grown = run.stdout.split()
    assert windows == "64"
    return int(grown)


def lines_of_text(name):
    """Lines that become a file of a form when they are repeated: first, repeated, last."""
    text = numbered(4000).replace("\n", " ")
    item = f'{{"text": "{text}"}}'
    forms = {"txt": ("", text + "\n", "end"), "jsonl": ("", item + "\n", "")}
    return forms[name] if name in forms else ("[", item + ",\n", item + "]")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from /proc")
@pytest.mark.parametrize(
    ("megabytes", "most"),
    [(40, 80), pytest.param(200, 300, marks=pytest.mark.slow)],
    ids=["40 MB", "200 MB"],
)
def test_memory_does_not_grow_with_the_text(tmp_path, megabytes, most):
    forms = ["txt", "jsonl", "json"] if megabytes > 40 else ["json"]
    for form in forms:
        first, line, last = lines_of_text(form)
        for size in (0, megabytes):
            with open(tmp_path / f"{size}.{form}", "w", encoding="utf-8") as file:
                file.write(first)
                for _ in range(1 + size * 10**6 // len(line)):
                    file.write(line)
                file.write(last)
        small, large = (growth(tmp_path / f"{size}.{form}") for size in (0, megabytes))
        assert large - small < most * 10**6
