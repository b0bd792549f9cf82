"""Calibration texts: how options name them, how windows are divided among them, and what is
recorded.
"""

import hashlib
import itertools
from fractions import Fraction

import models
import numpy as np
import pytest
from tiny_models import TEXT, tokenizer_files

from edgeq.calibration.reading import read_text
from edgeq.calibration.texts import Text, divide, hash_tokens, make_calibration, read_texts
from edgeq.calibration.windows import sample_windows, tokenize
from edgeq.errors import BadInput


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def source():
    return models.MemorySource(models.tiny_llama(vocab_size=320), companions=tokenizer_files())


def refusal(*values):
    with pytest.raises(BadInput) as caught:
        read_texts(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def calibrate(source, texts, *, samples, write=None):
    return make_calibration(source, texts, write, samples=samples, sequence_length=8, seed=3)


def test_speeches_are_a_text_that_ships_with_edgeq():
    assert read_texts(("speeches",)) == (Text("speeches", 1.0, read_text(None), is_shipped=True),)


def test_words_and_files_take_a_share(here):
    (here / "book.txt").write_text("a book")
    assert read_texts(("self=0.5", "book.txt=3", "speeches")) == (
        Text("self", 0.5, None),
        Text("book.txt", 3.0, "a book"),
        Text("speeches", 1.0, read_text(None), is_shipped=True),
    )


@pytest.mark.parametrize("name", ["a=2", "a=b.txt", "x:y.txt", "C=1:2.txt"])
def test_a_file_whose_name_looks_like_a_share_is_that_file_and_can_have_a_share(here, name):
    (here / name).write_text("this one")
    assert read_texts((name,)) == (Text(name, 1.0, "this one"),)
    assert read_texts((f"{name}=4",)) == (Text(name, 4.0, "this one"),)


def test_a_file_named_as_a_word_is_read_by_its_path(here):
    (here / "self").write_text("a file")
    assert read_texts(("self",))[0].content is None
    assert read_texts(("./self",)) == (Text("self", 1.0, "a file"),)
    for name in ("mix", "code", "default"):
        (here / name).write_text("a file")
        assert all(text.is_shipped for text in read_texts((name,)))
        assert read_texts((f"./{name}=2",)) == (Text(name, 2.0, "a file"),)


def test_only_the_last_part_of_a_path_is_recorded(here):
    (here / "folder").mkdir()
    (here / "folder" / "book.txt").write_text("a book")
    assert read_texts((str(here / "folder" / "book.txt"),))[0].name == "book.txt"


@pytest.mark.parametrize("share", ["0", "-1", "nan", "inf", "2000000", "much", ""])
def test_what_is_no_share_is_refused(here, share):
    line = refusal(f"self={share}")
    assert f"'self={share}'" in line and "above 0" in line


def test_a_share_without_a_text_is_refused(here):
    assert "write TEXT=2, such as self=2" in refusal("=2")


def test_an_empty_name_is_refused(here):
    with pytest.raises(
        BadInput, match="--calibration '': expected a file, 'default', 'mix' or 'self'"
    ):
        read_texts([""])


def test_a_text_named_twice_is_refused_however_it_is_written(here):
    (here / "book.txt").write_text("a book")
    assert "given twice" in refusal("default", "default=2")
    assert "given twice" in refusal("book.txt", "self", "./book.txt=2")


def test_a_missing_file_is_named_without_its_share(here):
    assert "'nowhere.txt': no such file" in refusal("nowhere.txt=2")


def test_windows_are_divided_by_largest_remainder():
    """Against the definition: whole quotas are kept, and no other division has a smaller sum of
    squared differences.
    """
    shared: tuple[list[float], ...] = ([1, 1], [1, 2, 3], [5, 1, 1], [0.1, 0.2, 0.7])
    for samples, shares in itertools.product((1, 2, 7, 10), shared):
        counts = divide(samples, shares)
        quotas = [
            Fraction(str(share)) * samples / sum(Fraction(str(share)) for share in shares)
            for share in shares
        ]
        others = (
            c
            for c in itertools.product(range(samples + 1), repeat=len(shares))
            if sum(c) == samples
        )
        best = min(
            sum((c - q) ** 2 for c, q in zip(other, quotas, strict=True)) for other in others
        )
        assert sum(counts) == samples
        assert sum((c - q) ** 2 for c, q in zip(counts, quotas, strict=True)) == best
    assert divide(3, [1, 1]) == [2, 1]


def test_windows_stand_in_the_order_of_the_texts_and_are_those_of_each_text_alone(source):
    texts = [Text("own", 1, None), Text("b", 2, TEXT * 3), Text("a", 1, TEXT * 9)]
    own = np.arange(8).reshape(1, 8)
    calibration = calibrate(source, texts, samples=4, write=lambda count, length, seed: own)
    alone = [
        sample_windows(tokenize(source, TEXT * times), samples=count, sequence_length=8, seed=3)
        for times, count in ((3, 2), (9, 1))
    ]
    np.testing.assert_array_equal(calibration.windows, np.concatenate([own, *alone]))


def test_the_record_names_every_text_with_its_hash(source):
    texts = [Text("own", 1, None), Text("b", 3, TEXT * 3)]
    calibration = calibrate(
        source, texts, samples=4, write=lambda count, length, seed: np.arange(8).reshape(1, 8)
    )
    tokens = len(tokenize(source, TEXT * 3))
    own = hashlib.sha256(b"".join(i.to_bytes(4, "little") for i in range(8))).hexdigest()
    whole = b"".join(int(token).to_bytes(4, "little") for token in calibration.windows.ravel())
    assert calibration.record() == {
        "sha256": hashlib.sha256(whole).hexdigest(),
        "texts": [
            {"name": "own", "share": 1, "samples": 1, "tokens": 8, "sha256": own},
            {
                "name": "b",
                "share": 3,
                "samples": 3,
                "tokens": tokens,
                "sha256": hashlib.sha256((TEXT * 3).encode()).hexdigest(),
            },
        ],
    }
    assert calibration.tokens == 8 + tokens
    assert hash_tokens(calibration.windows) == calibration.record()["sha256"]


def test_a_text_that_gets_no_window_is_refused_before_anything_is_read(source):
    with pytest.raises(BadInput, match="none of the 4 sequences"):
        calibrate(source, [Text("much", 9, TEXT), Text("own", 1, None)], samples=4)


def test_a_short_text_is_refused_by_name_before_the_model_writes(source):
    with pytest.raises(
        BadInput, match=r"--calibration 'short': calibration text: \d+ tokens; at least"
    ):
        calibrate(source, [Text("own", 1, None), Text("short", 1, "it")], samples=4)
