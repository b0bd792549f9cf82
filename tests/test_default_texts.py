"""The texts that are taken where none is named: kinds that a model cannot use are left out."""

from dataclasses import replace

import models
import numpy as np
import pytest
from short_texts import take_short_texts, write_short_texts
from tiny_models import english_tokenizer, tokenizer_files
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from edgeq.calibration.shipped import DIALOGUE, KINDS, SHARES, read_kind
from edgeq.calibration.texts import Text, choose_texts, make_calibration, read_texts
from edgeq.errors import BadInput

ALL = sum(SHARES.values())
REFUSING = "{{ raise_exception('only tools') }}"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shelf")
    write_short_texts(folder)
    return folder


@pytest.fixture
def short(shelf, monkeypatch):
    take_short_texts(monkeypatch, shelf)


def source_with(tokenizer=None, template=None, rows=320):
    files = tokenizer_files()
    if tokenizer is not None:
        files["tokenizer.json"] = tokenizer.to_str().encode()
    source = models.MemorySource(models.tiny_llama(vocab_size=rows), companions=files)
    source.record = replace(source.record, template=template)
    return source


@pytest.fixture(scope="module")
def english():
    return source_with(english_tokenizer())


def unknown_share(tokenizer, text):
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids)
    return float((ids == tokenizer.token_to_id("?")).mean())


def calibrate(source, texts, *, samples=64):
    options = {"samples": samples, "sequence_length": 16, "seed": 0}
    return make_calibration(source, texts, None, **options)


def test_without_options_the_mix_is_taken_and_default_is_its_other_name():
    source = source_with()
    chosen = choose_texts((), source)
    assert [text.name for text in chosen.texts] == list(KINDS)
    assert chosen == choose_texts(("default",), source) and not chosen.notes
    named = [replace(text, is_usable=False) for text in chosen.texts]
    assert read_texts(("mix",), source) == tuple(named)
    assert sum(text.share for text in chosen.texts) == pytest.approx(1)


def test_kinds_that_a_tokenizer_cannot_write_are_left_out_and_the_others_take_their_share(
    english, short
):
    """Against the share of unknown tokens in the whole of each kind."""
    chosen = choose_texts((), english)
    tokenizer = Tokenizer.from_str(english.companions()["tokenizer.json"].decode())
    unknown = {kind: unknown_share(tokenizer, read_kind(kind, english)) for kind in KINDS}
    left_out = [kind for kind, share in unknown.items() if share > 0.4]
    assert left_out == ["russian", "chinese"]
    assert all(share < 0.3 for kind, share in unknown.items() if kind not in left_out)
    names = [text.name for text in chosen.texts]
    assert names == [kind for kind in KINDS if kind not in left_out]
    left = ALL - sum(SHARES[kind] for kind in left_out)
    for text in chosen.texts:
        assert text.share == pytest.approx(SHARES[text.name] / left)
    [note] = chosen.notes
    assert "\n" not in note
    assert all(f"{kind} (" in note and "unknown to the tokenizer" in note for kind in left_out)


def test_the_default_is_drawn_from_where_the_named_mix_is_refused(english, short):
    chosen = choose_texts((), english)
    calibration = calibrate(english, chosen.texts)
    assert len(calibration.windows) == 64
    assert [entry["name"] for entry in calibration.texts] == [text.name for text in chosen.texts]
    for named in ("mix", "russian"):
        with pytest.raises(BadInput, match=r"'russian': .*unknown to the tokenizer"):
            calibrate(english, read_texts((named,), english))


def test_a_named_kind_beside_the_default_is_asked_for(english, short):
    chosen = choose_texts(("russian", "default", "self=2"), english)
    russian, own, *others = chosen.texts
    part = SHARES["russian"] / (ALL - SHARES["chinese"])
    assert (russian.name, russian.share) == ("russian", pytest.approx(1 + part))
    assert own == Text("self", 2.0, None)
    assert "chinese" not in [text.name for text in others]
    assert sum(text.share for text in chosen.texts) == pytest.approx(4)
    assert "chinese (" in chosen.notes[0] and "russian" not in chosen.notes[0]
    with pytest.raises(BadInput, match=r"'russian': .*unknown to the tokenizer"):
        calibrate(english, [russian])


def test_dialogue_is_left_out_where_the_template_refuses_it(short):
    refusing = source_with(template=REFUSING)
    chosen = choose_texts((), refusing)
    assert [text.name for text in chosen.texts] == [kind for kind in KINDS if kind != DIALOGUE]
    assert sum(text.share for text in chosen.texts) == pytest.approx(1)
    [note] = chosen.notes
    assert "dialogue (the model's chat template refuses the messages (only tools))" in note
    for named in (("mix",), (DIALOGUE,), (DIALOGUE, "default")):
        with pytest.raises(BadInput, match=r"dialogue: .*only tools.*name kinds without it"):
            choose_texts(named, refusing)


def test_kinds_that_are_too_short_for_the_sequences_are_left_out(short):
    source = source_with()
    tokenizer = Tokenizer.from_str(source.companions()["tokenizer.json"].decode())
    counts = {kind: len(tokenizer.encode(read_kind(kind, source)).ids) for kind in KINDS}
    needed = sorted(counts.values())[4]
    assert len(set(counts.values())) > 5
    chosen = choose_texts((), source, fewest_tokens=needed)
    expected = [kind for kind, count in counts.items() if count >= needed]
    assert [text.name for text in chosen.texts] == expected
    left_out = [kind for kind in KINDS if kind not in expected]
    assert len(left_out) == 4
    for kind in left_out:
        assert f"{kind} (its {counts[kind]} tokens are too few" in chosen.notes[0]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (lambda: source_with(words()), "unknown to the tokenizer ('?')"),
        (lambda: source_with(rows=60), "but the embedding has 60 rows; use the tokenizer.json"),
    ],
    ids=["words", "rows"],
)
def test_one_line_says_that_not_even_one_kind_can_be_used(short, source, reason):
    with pytest.raises(BadInput) as caught:
        choose_texts((), source())
    line = str(caught.value)
    assert line.startswith("--calibration default: the model can use none of its 10 kinds")
    assert "'speeches': " in line and reason in line and "\n" not in line


def words():
    tokenizer = Tokenizer(WordLevel({"?": 0, **{f"w{n}": n for n in range(1, 40)}}, unk_token="?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


def test_too_few_tokens_in_all_kinds_are_refused_with_what_helps(short):
    with pytest.raises(BadInput, match=r"too few for the sequences; .*--sequence-length"):
        choose_texts((), source_with(), fewest_tokens=10**7)


def test_a_token_without_a_row_anywhere_in_a_kind_leaves_it_out(short):
    """Between the pieces that are tried, too."""
    tokenizer = english_tokenizer()
    rows = tokenizer.get_vocab_size()
    rare = read_kind("prose", None)[1000:1020]
    assert not any(rare in read_kind(kind, None) for kind in KINDS if kind != "prose")
    tokenizer.add_tokens([rare])
    source = source_with(tokenizer, rows=rows)
    chosen = choose_texts(("prose=0.1", "default"), source)
    assert [text.name for text in chosen.texts][:2] == ["prose", "speeches"]
    chosen = choose_texts((), source)
    assert "prose" not in [text.name for text in chosen.texts]
    assert f"prose (model 'in memory': the tokenizer gives id {rows}" in chosen.notes[0]
    assert len(calibrate(source, chosen.texts).windows) == 64


def test_without_a_tokenizer_nothing_is_left_out(short):
    """A plan needs no more than config.json."""
    source = models.MemorySource(models.tiny_llama(vocab_size=320), companions={})
    chosen = choose_texts((), source)
    assert [text.name for text in chosen.texts] == list(KINDS) and not chosen.notes


@pytest.mark.parametrize("values", [("mix", "default"), ("default", "default=2")])
def test_the_mix_under_both_names_is_refused(values):
    with pytest.raises(BadInput, match="given twice"):
        read_texts(values)
