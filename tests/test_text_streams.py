"""Pieces of text as tokens come, and how a token is chosen."""

import functools

import numpy as np
import pytest
import tokenizer_kinds
from tiny_models import byte_level_bpe, one_block_model
from tokenizers import Tokenizer, decoders, models, normalizers

from edgeq.errors import BadInput
from edgeq.talking.choosing import Choice
from edgeq.talking.kept import KeptText
from edgeq.talking.text_stream import BROKEN, TextStream
from edgeq_backends.llama_cpp import load_model
from edgeq_backends.llama_cpp_speaking import LlamaCppTexts
from edgeq_exporters.gguf.exporter import GgufExporter

TEXT = (
    "It's 中文, \U0001f42d\U0001f468‍\U0001f469‍\U0001f467 é!\n\n  They'LL run\taway 日本\U0001f600"
)


@functools.cache
def byte_level():
    return byte_level_bpe()


@functools.cache
def sentencepiece():
    """BPE with blanks as ▁ and bytes as <0xE4>; its decoder strips the blank of the first word."""
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", *"abcdefghijklmnopqrstuvwxyzTIL',!", "▁r", "▁ru", "▁run"]
    merges = [("▁", "r"), ("▁r", "u"), ("▁ru", "n")]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


KINDS = {"byte level": byte_level, "sentencepiece": sentencepiece}


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


def pieces_of(tokenizer, prompt, ids):
    stream = TextStream(tokenizer.decode, prompt)
    return [*(stream.push(token) for token in ids), stream.rest()]


@pytest.mark.parametrize("start", [0, 1, 5, 9, 12, 20, 33])
def test_pieces_make_up_the_text_behind_a_prompt_and_none_is_half_a_character(tokenizer, start):
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    while tokenizer.decode(ids[:start]).endswith(BROKEN):  # inside of a character
        start += 1
    before = tokenizer.decode(ids[:start])
    pieces = pieces_of(tokenizer, ids[:start], ids[start:])
    assert "".join(pieces) == tokenizer.decode(ids)[len(before) :]
    assert BROKEN not in "".join(pieces)
    assert pieces[-1] == ""
    assert sum(map(bool, pieces)) > len(pieces) / 3


@pytest.mark.slow
@pytest.mark.parametrize("blanks", tokenizer_kinds.BLANKS)
def test_llama_cpp_gives_the_same_text_behind_every_prompt(tmp_path, blanks):
    kind = tokenizer_kinds.sentencepiece_kind(blanks)
    path = GgufExporter().write(one_block_model(kind.files, rows=tokenizer_kinds.ROWS), tmp_path)[0]
    loaded = load_model(path)
    texts = LlamaCppTexts(loaded, path)
    own = Tokenizer.from_str(kind.files["tokenizer.json"].decode())
    ids = texts.encode(TEXT, begin=False)
    for start in (0, 1, 3, 9):
        while own.decode(ids[:start]).endswith(BROKEN):
            start += 1  # noqa: PLW2901
        expected = pieces_of(own, ids[:start], ids[start:])
        assert pieces_of(texts, ids[:start], ids[start:]) == expected


def test_a_blank_before_a_word_comes_with_the_word():
    tokenizer = sentencepiece()
    run = tokenizer.token_to_id("▁run")
    assert pieces_of(tokenizer, [run], [run, run]) == [" run", " run", ""]


def test_special_tokens_have_no_text_and_take_no_blank_with_them():
    tokenizer = sentencepiece()
    run, special = tokenizer.token_to_id("▁run"), tokenizer.token_to_id("<s>")
    pieces = pieces_of(tokenizer, [run], [special, run, *[special] * 9, run])
    assert "".join(pieces) == " run run"
    assert pieces[1] == " run"


def bytes_of(kind, content):
    names = ["a" if byte == ord("a") else f"<0x{byte:02X}>" for byte in content]
    if kind == "byte level":
        return byte_level().encode("ab").ids, [byte_token(byte) for byte in content]
    return [sentencepiece().token_to_id("▁run")], [
        sentencepiece().token_to_id(name) for name in names
    ]


def byte_token(byte):
    """The token of one byte: GPT-2's letters for bytes, as its own code has them."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [each for each in range(256) if each not in shown]
    letter = chr(byte) if byte in shown else chr(256 + hidden.index(byte))
    return byte_level().token_to_id(letter)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "content", [b"\xff" * 40, b"\xe4" * 40, b"\xf0\x9f\x90" * 10, b"\xe4\xb8" + b"a" * 9, b"\x80"]
)
def test_bytes_that_are_no_character_come_through_as_such(kind, content):
    prompt, ids = bytes_of(kind, content)
    pieces = pieces_of(KINDS[kind](), prompt, ids)
    assert BROKEN in "".join(pieces)
    assert "".join(pieces).count("a") == content.count(b"a")
    waits = [len(run) for run in "".join("x" if piece else " " for piece in pieces[:-1]).split("x")]
    assert max(waits) < 8


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_character_at_the_end_is_shown_as_broken(kind):
    prompt, ids = bytes_of(kind, "a\U0001f42d".encode()[:-1])
    *pieces, last = pieces_of(KINDS[kind](), prompt, ids)
    assert "".join(pieces) == "a"
    assert set(last) == {BROKEN}


def test_the_likeliest_token_is_the_first_of_equal_ones():
    assert Choice().token(np.array([1.0, 3.0, 3.0, -np.inf], np.float32)) == 1


def frequencies(logits, count=4000, **options):
    choice = Choice(**options)
    found = [choice.token(logits) for _ in range(count)]
    return np.bincount(found, minlength=len(logits)) / count


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = np.log(np.array([0.1, 0.5, 0.15, 0.25], np.float32))
    np.testing.assert_allclose(
        frequencies(logits, temperature=1.0), [0.1, 0.5, 0.15, 0.25], atol=0.03
    )
    colder = np.array([0.1, 0.5, 0.15, 0.25]) ** 2
    np.testing.assert_allclose(
        frequencies(logits, temperature=0.5), colder / colder.sum(), atol=0.03
    )
    np.testing.assert_allclose(
        frequencies(logits, temperature=1.0, top_p=0.7), [0, 2 / 3, 0, 1 / 3], atol=0.03
    )
    assert frequencies(logits, temperature=1.0, top_p=0.5)[1] == 1
    assert frequencies(np.full(3, -1e30, np.float32), temperature=1.0).min() > 0.25


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_no_prediction_is_refused(value, temperature):
    with pytest.raises(BadInput, match="NaN or infinity"):
        Choice(temperature=temperature).token(np.array([0.0, value, 1.0], np.float32))


@pytest.mark.parametrize(
    "options",
    [{"temperature": value} for value in (-1.0, np.nan, 1e9)]
    + [{"top_p": value} for value in (0.0, 1.5, np.nan)],
)
def test_values_by_which_nothing_can_be_chosen_are_refused(options):
    with pytest.raises(BadInput, match="give "):
        Choice(**options)


class Counting:
    """A speaker that knows what it was given; its logits say what it holds."""

    library, longest = "none", None

    def __init__(self, cuts=True):
        self.cuts, self.held, self.room, self.read_tokens = cuts, [], 0, 0
        self.fails = False

    def begin(self, room):
        self.held, self.room = [], room

    def cut(self, length):
        if self.cuts:
            self.held = self.held[:length]
        return self.cuts

    def read(self, ids):
        if self.fails:
            self.held += ids[:1]
            raise KeyboardInterrupt
        self.held += ids
        self.read_tokens += len(ids)
        assert 0 < len(self.held) <= self.room
        return np.array(self.held, np.float32)

    def close(self):
        pass


@pytest.mark.parametrize("cuts", [True, False])
def test_only_what_is_new_is_read_and_any_text_is_predicted_behind(rng, cuts):
    speaker = Counting(cuts)
    kept = KeptText(speaker, context=2000)
    text = [1, 2, 3]
    for _ in range(60):
        text = [*text[: rng.integers(1, len(text) + 1)], *rng.integers(0, 3, rng.integers(0, 40))]
        np.testing.assert_array_equal(kept.predict(text, room=8), text)
    before = speaker.read_tokens
    kept.predict([*text, 7], room=8)
    assert speaker.read_tokens == before + 1


def test_after_an_interruption_everything_is_read_anew():
    speaker = Counting()
    kept = KeptText(speaker, context=None)
    kept.predict([1, 2], room=8)
    speaker.fails = True
    with pytest.raises(KeyboardInterrupt):
        kept.predict([1, 2, 3, 4], room=8)
    speaker.fails = False
    np.testing.assert_array_equal(kept.predict([1, 2, 3, 4], room=8), [1, 2, 3, 4])
