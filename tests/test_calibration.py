import json

import models
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from edgeq.calibration.reading import read_text
from edgeq.calibration.windows import (
    first_windows,
    load_tokenizer,
    sample_windows,
    tokenize,
)
from edgeq.errors import BadInput


def refusal(call, *args, **options):
    with pytest.raises(BadInput) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def source_with(companions):
    return models.MemorySource(models.tiny_llama(), companions=companions)


def test_windows_are_stretches_of_the_text_one_from_each_part():
    tokens = np.arange(1000, 2000)
    windows = sample_windows(tokens, samples=8, sequence_length=50, seed=3)
    assert windows.shape == (8, 50)
    assert (np.diff(windows, axis=1) == 1).all()
    starts = windows[:, 0] - 1000
    edges = np.linspace(0, 951, 9)
    assert ((edges[:-1] - 1 < starts) & (starts < edges[1:])).all()


def test_the_seed_alone_decides_where_windows_start():
    tokens = np.arange(1000)
    first, again, other = (
        sample_windows(tokens, samples=8, sequence_length=50, seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_every_token_of_a_text_can_be_reached():
    tokens, seen = np.arange(40), set()
    for seed in range(200):
        seen |= set(
            sample_windows(tokens, samples=2, sequence_length=8, seed=seed).ravel().tolist()
        )
    assert seen == set(range(40))


def test_every_sequence_of_a_short_text_is_taken_once():
    windows = sample_windows(np.arange(20), samples=5, sequence_length=16, seed=0)
    np.testing.assert_array_equal(windows[:, 0], np.arange(5))


def test_more_samples_than_different_sequences_are_refused_with_the_largest_sensible_number():
    message = refusal(sample_windows, np.arange(40), samples=26, sequence_length=16, seed=0)
    assert "25 different sequences of 16, not 26" in message
    assert "at most 2," in message


def test_a_text_shorter_than_a_window_is_refused():
    message = refusal(sample_windows, np.arange(15), samples=1, sequence_length=16, seed=0)
    assert "15 tokens" in message
    assert "--sequence-length" in message
    assert "15 tokens" in refusal(first_windows, np.arange(15), windows=1, sequence_length=16)


def test_evaluation_windows_follow_one_another_from_the_start():
    windows = first_windows(np.arange(50), windows=9, sequence_length=16)
    np.testing.assert_array_equal(windows, np.arange(48).reshape(3, 16))
    assert first_windows(np.arange(50), windows=2, sequence_length=16).shape == (2, 16)


def test_texts_that_ship_with_edgeq_are_different_and_long():
    calibration, evaluation = read_text(None), read_text(None, default="evaluation.txt")
    assert min(len(calibration), len(evaluation)) > 50_000
    assert calibration[:2000] not in evaluation
    assert evaluation[:2000] not in calibration


def test_a_text_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text('{"text": "näive"}\n\nend', encoding="utf-8")
    assert read_text(str(path)) == '{"text": "näive"}\n\nend'


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson"])
def test_json_lines_give_their_texts(tmp_path, suffix):
    path = tmp_path / f"text{suffix}"
    lines = [
        json.dumps({"text": "one\ntwo", "id": 1}),
        "",
        json.dumps({"text": "für vier"}, ensure_ascii=False),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert read_text(str(path)) == "one\ntwo\n\nfür vier"


def test_line_separators_inside_of_a_json_string_do_not_end_its_line(tmp_path):
    path, text = tmp_path / "text.jsonl", "one\u2028two\x85three\u2029four"
    path.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert read_text(str(path)) == text


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("empty.txt", b" \n\t", "empty"),
        ("latin.txt", b"caf\xe9", "not UTF-8 at byte 3"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": ', "line 2: not JSON"),
        ("list.jsonl", b'["a"]', 'line 1: no "text" string'),
        ("number.jsonl", b'{"text": 3}', 'line 1: no "text" string'),
        ("missing.jsonl", b'{"text": "a"}\n\n{"content": "b"}', "line 3"),
        ("none.jsonl", b"\n\n", "empty"),
        (
            "surrogate.jsonl",
            b'{"text": "a"}\n{"text": "\\ud83d"}',
            "line 2: half of a surrogate pair",
        ),
        ("deep.jsonl", b"[" * 100_000, "line 1: not JSON (too deeply nested)"),
        ("digits.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "line 1: not JSON"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused_with_the_place(tmp_path, name, content, part):
    (tmp_path / name).write_bytes(content)
    message = refusal(read_text, str(tmp_path / name))
    assert part in message
    assert name in message


def test_a_missing_text_or_a_directory_is_refused(tmp_path):
    assert "no such file" in refusal(read_text, str(tmp_path / "nowhere.txt"))
    assert "is a directory" in refusal(read_text, str(tmp_path))


def test_text_becomes_the_ids_of_the_models_own_tokenizer():
    tokenizer = Tokenizer(WordLevel({"<s>": 0, "a": 1, "b": 2, "?": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    source = source_with({"tokenizer.json": tokenizer.to_str().encode()})
    ids = tokenize(source, "a b c a")
    assert ids.dtype == np.int64
    assert ids.tolist() == [1, 2, 3, 1]


def test_a_token_that_the_embedding_has_no_row_for_is_refused():
    tokenizer = Tokenizer(WordLevel({"a": 1, "b": 40}, unk_token="a"))
    tokenizer.pre_tokenizer = Whitespace()
    source = source_with({"tokenizer.json": tokenizer.to_str().encode()})
    assert tokenize(source, "a a").tolist() == [1, 1]
    assert "id 40, but the embedding has 40 rows" in refusal(tokenize, source, "a b")


def test_a_model_without_a_readable_tokenizer_is_refused():
    assert "no tokenizer.json" in refusal(load_tokenizer, source_with({}))
    assert "cannot be read" in refusal(source_with, {"tokenizer.json": b"{}"})
