"""Windows of calibration and evaluation begin as transformers begins a text by the model's own
tokenizer: with <bos>, with several tokens, or with none.
"""

import json

import models
import numpy as np
import pytest
from tiny_models import TEXT, tokenizer_files
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from edgeq.calibration.long_windows import sample_long
from edgeq.calibration.reading import open_text
from edgeq.calibration.self_text import written_windows
from edgeq.calibration.texts import Text, make_calibration
from edgeq.calibration.windows import begin_ids, tokenize
from edgeq.errors import BadInput
from edgeq.measuring.texts import cut_windows

LENGTH = 24
CONTENT = TEXT * 40


def with_template(single, named=("<|bos|>", "<|eos|>", "<|pad|>")):
    """Files of a tokenizer that puts tokens around a text, as its template says."""
    files = tokenizer_files(pad_token="<|pad|>")
    tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
    special = [(token, tokenizer.token_to_id(token)) for token in named]
    template = processors.TemplateProcessing(single=single, pair=None, special_tokens=special)
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template])
    return files | {"tokenizer.json": tokenizer.to_str().encode()}


FILES = {
    "none": tokenizer_files(pad_token="<|pad|>"),
    "asked for in settings alone": tokenizer_files(add_bos_token=True, pad_token="<|pad|>"),
    "bos": with_template("<|bos|> $A"),
    "bos and eos": with_template("<|bos|> $A <|eos|>"),
    "eos": with_template("$A <|eos|>"),
    "several": with_template("<|pad|> <|bos|> $A"),
}
COUNTS = {"bos": 1, "bos and eos": 1, "several": 2}


def source_of(files):
    return models.MemorySource(models.tiny_llama(vocab_size=320), companions=files)


def beginning(files, folder):
    """What transformers puts before a text."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole = tokenizer(TEXT)["input_ids"]
    text = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    return whole[: next(at for at in range(9) if whole[at : at + len(text)] == text)]


def holds(text, window):
    """Whether a window lies in a text."""
    return any(np.array_equal(part, window) for part in sliding(text, len(window)))


def sliding(text, length):
    return np.lib.stride_tricks.sliding_window_view(text, length)


@pytest.mark.parametrize("kind", FILES)
def test_every_window_begins_as_in_transformers(tmp_path, kind):
    source = source_of(FILES[kind])
    begin = beginning(FILES[kind], tmp_path)
    assert len(begin) == COUNTS.get(kind, 0)
    assert list(begin_ids(source)) == begin
    ids = tokenize(source, CONTENT)
    options = {"samples": 5, "sequence_length": LENGTH, "seed": 3}
    calibrated = make_calibration(source, [Text("t", 1.0, CONTENT)], None, **options).windows
    (tmp_path / "text.txt").write_text(CONTENT)
    evaluated = cut_windows(
        [source], [str(tmp_path / "text.txt")], windows=3, sequence_length=LENGTH
    ).ids
    for windows in (calibrated, evaluated):
        assert windows.shape[1] == LENGTH
        for window in windows:
            assert window[: len(begin)].tolist() == begin
            assert holds(ids, window[len(begin) :])
    joined = evaluated[:, len(begin) :].ravel()
    np.testing.assert_array_equal(joined, ids[: len(joined)])


@pytest.mark.parametrize("kind", ["none", "bos", "several"])
def test_windows_of_a_long_text_begin_alike(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("edgeq.calibration.reading.LONGEST_WHOLE", 1000)
    source = source_of(FILES[kind])
    (tmp_path / "text.txt").write_text(CONTENT)
    text = open_text(str(tmp_path / "text.txt"), source)
    options = {"samples": 4, "sequence_length": LENGTH, "seed": 1}
    windows, _ = sample_long(source, text, **options)
    begin = list(begin_ids(source))
    assert windows.shape == (4, LENGTH)
    assert all(window[: len(begin)].tolist() == begin for window in windows)
    ids = tokenize(source, CONTENT)
    assert all(holds(ids, window[len(begin) :]) for window in windows)


class Counting:
    """Writes the ids after the one that it was given."""

    def __init__(self, source, allowed, seed):
        self.first = None

    def continue_text(self, first):
        while True:
            first = first + 1
            yield first


@pytest.mark.parametrize("kind", ["bos", "several"])
def test_text_that_the_model_writes_begins_alike(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = source_of(FILES[kind])
    options = {"framework": "none", "count": 3, "length": 8, "seed": 0}
    windows = written_windows(source, Counting, lambda *now: None, **options)
    begin = list(begin_ids(source))
    expected = [*begin, *range(begin[-1] + 1, begin[-1] + 9 - len(begin))]
    assert windows.tolist() == [expected] * 3
    again = written_windows(source, None, lambda *now: None, **options)  # from the cache
    np.testing.assert_array_equal(again, windows)


def test_a_sequence_without_room_for_text_is_refused(tmp_path):
    source = source_of(FILES["several"])
    options = {"samples": 1, "sequence_length": 2, "seed": 0}
    with pytest.raises(BadInput, match=r"sequence length 2: .* begins a text with 2 tokens"):
        make_calibration(source, [Text("t", 1.0, CONTENT)], None, **options)


def test_a_beginning_that_the_embedding_has_no_row_for_is_refused():
    files = with_template("<|bos|> $A")
    content = json.loads(files["tokenizer.json"])
    (template,) = content["post_processor"]["processors"][1:]
    template["special_tokens"]["<|bos|>"]["ids"] = [5000]
    source = source_of(files | {"tokenizer.json": json.dumps(content).encode()})
    with pytest.raises(BadInput, match="gives id 5000, but the embedding has 320 rows"):
        begin_ids(source)
