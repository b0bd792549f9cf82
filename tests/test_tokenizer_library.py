"""Tokenizer files that are damaged or ask for more than the tokens of a text."""

import json
import subprocess
import sys
from dataclasses import dataclass

import models
import numpy as np
import pytest
from tiny_models import TEXT, byte_level_bpe, tokenizer_files
from tokenizers import Tokenizer
from tokenizers.models import Unigram, WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from edgeq.architectures.tokenizer_file import read_tokenizer
from edgeq.architectures.tokenizer_library import parse_tokenizer
from edgeq.calibration.self_text import tokens_to_write
from edgeq.calibration.texts import Text, make_calibration
from edgeq.calibration.windows import load_tokenizer, tokenize
from edgeq.decoder import TokenIds
from edgeq.errors import BadInput
from edgeq_exporters.gguf.tokenizer import why_not_tokenizer

PREFIX = "#" * 22


@dataclass
class DescribedModel:
    """A model of which only the files are known: others are refused when they are opened."""

    files: dict[str, bytes]
    name: str = "described"
    vocabulary: int = 320
    context: int | None = None
    template: str | None = None

    @property
    def record(self):
        return self

    def companions(self):
        return self.files


def source_with(tokenizer: bytes):
    model = models.tiny_llama(vocab_size=320)
    return models.MemorySource(model, companions={"tokenizer.json": tokenizer})


def changed(**parts) -> bytes:
    return json.dumps(json.loads(byte_level_bpe().to_str()) | parts).encode()


def with_model(**settings) -> bytes:
    model = json.loads(byte_level_bpe().to_str())["model"]
    return changed(model=model | settings)


def refusal(call, *arguments):
    with pytest.raises(BadInput) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_truncation_padding_and_dropout_of_a_tokenizer_file_are_not_obeyed():
    plain = byte_level_bpe()
    expected = plain.encode(TEXT * 9, add_special_tokens=False).ids
    batched = byte_level_bpe()
    batched.enable_truncation(5, stride=2)
    batched.enable_padding(length=5000, pad_id=2, pad_token="<|pad|>")
    for tokenizer in (batched.to_str().encode(), with_model(dropout=0.9)):
        source = source_with(tokenizer)
        assert tokenize(source, TEXT * 9).tolist() == expected
        [calibrated, plainly] = [
            make_calibration(
                each, [Text("a", 1, TEXT * 9)], None, samples=2, sequence_length=64, seed=0
            )
            for each in (source, source_with(plain.to_str().encode()))
        ]
        assert calibrated.record() == plainly.record()
        np.testing.assert_array_equal(
            tokens_to_write(source)[0], tokens_to_write(source_with(plain.to_str().encode()))[0]
        )


DAMAGED = {
    "empty": b"",
    "no UTF-8": b'{"a": "\xff"}',
    "no object": b"[]",
    "cut": tokenizer_files()["tokenizer.json"][:900],
    "deep": b"[" * 100_000,
    "charsmap": changed(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "prefix": with_model(continuing_subword_prefix=PREFIX),
    "half a character": changed(
        model={
            "type": "BPE",
            "vocab": {"b": 0, "é": 1},
            "merges": [["b", "é"]],
            "continuing_subword_prefix": "#",
        }
    ),
    "half a character behind an escape": changed(
        model={
            "type": "BPE",
            "vocab": {"b": 0, "é": 1},
            "merges": ["b é"],
            "continuing_subword_prefix": "#",
        }
    ).replace(b"subword_prefix", b"subword_prefi\\u0078"),
}


@pytest.mark.parametrize("tokenizer", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_tokenizer_file_is_refused_in_one_line(tokenizer, capfd):
    """Some make the library panic, some have it end the whole process."""
    files = {"tokenizer.json": tokenizer}
    described = DescribedModel(files)
    assert "tokenizer.json cannot be read" in refusal(load_tokenizer, described)
    assert "tokenizer.json cannot be read" in refusal(read_tokenizer, files)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["charsmap", "prefix", "half a character"])
def test_an_export_refuses_what_makes_the_library_panic(name, capfd):
    files = {"tokenizer.json": DAMAGED[name]}
    reason = why_not_tokenizer(files, TokenIds(), vocab_size=320)
    assert "tokenizer.json is malformed" in str(reason)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "tokenizer",
    [
        changed(pre_tokenizer={"type": "FixedLength", "length": 0}),
        Tokenizer(WordLevel({"a": 0}, unk_token="?")).to_str().encode(),
        Tokenizer(Unigram([("a", 0.0)], None, False)).to_str().encode(),
    ],
    ids=["panics", "no unknown word", "no unknown piece"],
)
def test_a_tokenizer_that_fails_on_a_text_is_refused_in_one_line(tokenizer, capfd):
    assert "its tokenizer fails on the text" in refusal(tokenize, source_with(tokenizer), "b a")
    assert capfd.readouterr().err == ""


def test_a_prefix_that_every_merge_goes_onto_is_read():
    vocabulary = {"a": 0, "##b": 1, "ab": 2}
    model = {
        "type": "BPE",
        "vocab": vocabulary,
        "merges": [["a", "##b"]],
        "continuing_subword_prefix": "##",
    }
    tokenizer = parse_tokenizer(changed(model=model, pre_tokenizer=None, added_tokens=[]))
    assert tokenizer.encode("ab").ids == [2]


def test_standard_error_works_again_and_may_be_closed():
    code = """
import os, sys
from edgeq.architectures.tokenizer_file import read_tokenizer
from edgeq.architectures.tokenizer_library import silent_standard_error
with silent_standard_error():
    os.write(2, b"hidden")
os.write(2, b"shown")
os.close(2)
with silent_standard_error():
    print("ran")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("ran\n", "shown")


def calibrate(tokenizer, text, *, sequence_length=64):
    return make_calibration(
        source_with(tokenizer),
        [Text("a.txt", 1, text)],
        None,
        samples=4,
        sequence_length=sequence_length,
        seed=0,
    )


WORDS = Tokenizer(WordLevel({"?": 0, **{f"w{n}": n for n in range(1, 40)}}, unk_token="?"))
WORDS.pre_tokenizer = WhitespaceSplit()
LETTERS = " abcdefghijklmnopqrstuvwxyz"
PIECES = Tokenizer(Unigram([("?", 0.0), *((letter, -1.0) for letter in LETTERS)], 0, False))
KNOWN = " ".join(f"w{n}" for n in range(1, 40))


@pytest.mark.parametrize(
    ("tokenizer", "text", "parts"),
    [
        (None, "<|eos|>" * 3000, ["one token over and over", "'<|eos|>'"]),
        (None, "ab" * 3000, ["only 2 different tokens", "'a', 'b'"]),
        (None, " \n" * 3000, ["different tokens"]),
        (None, "x" + "0" * 3000, ["one token over and over", "'0'"]),
        (
            None,
            f"the 12 mice{'<|pad|><|eos|><|bos|>' * 24}" * 90,
            ["% of the tokens in its sequences are special"],
        ),
        (WORDS, f"{KNOWN} {'b c d e ' * 10}" * 90, ["unknown to the tokenizer ('?')"]),
        (PIECES, f"{'кот и пес ' * 8}abcdefgh " * 50, ["unknown to the tokenizer ('?')"]),
    ],
    ids=["one", "two", "spaces", "zeros", "special", "unknown word", "unknown piece"],
)
def test_a_text_that_no_model_can_be_calibrated_on_is_refused(tokenizer, text, parts):
    data = (tokenizer or byte_level_bpe()).to_str().encode()
    message = refusal(calibrate, data, text)
    assert all(part in message for part in ["--calibration 'a.txt'", *parts])


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        (TEXT * 200, True),
        (" ".join(map(str, range(3000))), False),
        ("1234567890" * 400, True),
    ],
    ids=["a line", "numbers", "digits"],
)
def test_a_text_that_repeats_itself_is_recorded_with_what_it_holds(text, repeats):
    data = byte_level_bpe().to_str().encode()
    calibration = calibrate(data, text)
    runs = {tuple(row[at : at + 8]) for row in calibration.windows for at in range(64 - 7)}
    assert calibration.texts[0].get("runs") == (len(runs) if repeats else None)
