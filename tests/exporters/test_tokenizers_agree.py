"""Tokens of transformers, llama.cpp and onnxruntime-genai on lines of mixed text, for every kind of
tokenizer that is exported; where they differ, exactly which lines do.
"""

import copy
import dataclasses
import json
import re
import unicodedata

import pytest
from mixed_text import ALL_LINES, mixed_lines
from tiny_models import one_block_model
from tokenizer_kinds import (
    BLANKS,
    GEMMA_PIECES,
    ROWS,
    byte_level_kind,
    differing,
    in_genai,
    in_llama_cpp,
    in_transformers,
    sentencepiece_kind,
    sentencepiece_model,
    vocabulary_of,
)
from tokenizers import Tokenizer

from edgeq.architectures.word_splits import WORD_SPLITS, splits_like
from edgeq.sources import open_source
from edgeq_exporters.gguf.exporter import GgufExporter
from edgeq_exporters.gguf.tokenizer import why_not_tokenizer
from edgeq_exporters.onnx.exporter import OnnxExporter
from edgeq_exporters.onnx.tokenizer import DIFFERS

FEW = 200  # lines, where not all of them are asked for
WRITTEN = {split.name: split for split in WORD_SPLITS if split.written}
QUICK = ("llama-bpe", "smollm")
BLANK_SIGN = "\u2581"


def has_mark_or_foreign_case(line):
    kinds = [unicodedata.category(sign) for sign in line]
    foreign = [not sign.isascii() for sign in line]
    return any(
        kind[0] == "M" or (kind in ("Lu", "Ll", "Lt", "Lm", "Lo") and beyond)
        for kind, beyond in zip(kinds, foreign, strict=True)
    )


def breaks_line_between_blanks(line):
    return "\x85" in line or re.search(r"[^\S\r\n][\r\n]+[^\S\r\n]", line) is not None


def has_slash_behind_signs(line):
    return breaks_line_between_blanks(line) or re.search(r"[^\w\s][\r\n]*/", line) is not None


IN_LLAMA_CPP = {
    "tekken": has_mark_or_foreign_case,
    "gpt-4o": has_mark_or_foreign_case,
    "deepseek-v3": lambda line: "~" in line,
}
"""Ways of splitting -> whether llama.cpp may split a line differently; none without an entry."""
IN_GENAI = {
    "gpt-2": lambda line: "\x85" in line,
    "smollm": lambda line: "\x85" in line,
    "tekken": has_slash_behind_signs,
    "gpt-4o": has_slash_behind_signs,
}


def notes_of(exporter, kind):
    model = one_block_model(kind.files, rows=ROWS)
    return " ".join(exporter.notes(model.record, model.companions(), {}))


def kind_named(name):
    """falcon's tokenizer.json splits at bytes, so that no merge may cross these."""
    return byte_level_kind(WRITTEN[name], crossing=name != "falcon")


def check_words(name, tmp_path, count):
    """Compare the runtimes for one way of splitting words."""
    kind = kind_named(name)
    lines = mixed_lines(count, kind.special)
    ours = in_transformers(kind, tmp_path / "transformers")
    found = differing(ours, in_llama_cpp(kind, tmp_path / "gguf"), lines)
    expected = IN_LLAMA_CPP.get(name)
    assert found or expected is None or count < ALL_LINES
    assert all(map(expected, found)) if expected else found == []
    assert ("llama.cpp splits words" in notes_of(GgufExporter(), kind)) == bool(expected)
    notes = notes_of(OnnxExporter(), kind)
    if name not in DIFFERS:
        assert "onnxruntime-genai is not known to split text" in notes
        return
    found = differing(ours, in_genai(kind, tmp_path / "onnx"), lines)
    expected = IN_GENAI.get(name, breaks_line_between_blanks)
    assert all(map(expected, found))
    assert found or count < ALL_LINES
    assert ("splits text differently" in notes) == bool(DIFFERS[name])


@pytest.mark.parametrize("name", QUICK)
def test_tokens_of_byte_level_bpe_are_the_same_in_all_runtimes(tmp_path, name):
    check_words(name, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
def test_all_lines_for_all_ways_of_splitting_words(tmp_path, name):
    check_words(name, tmp_path, ALL_LINES)


def begins_with_blank(line):
    """Whether a line begins with a blank, or goes on so behind a special token."""
    return re.match(r"( |\u2581)|.*(<tool>|</s>|<s>)( |\u2581)", line, re.DOTALL) is not None


def behind_special(line):
    return begins_with_blank(line) or re.search(r"(<tool>|</s>|<s>).", line, re.DOTALL) is not None


SENTENCEPIECE = {
    "prepend": None,
    "gemma": None,
    "never": None,
    "always": begins_with_blank,
    "first": behind_special,
}
"""How blanks are written -> whether runtimes may split a line differently from transformers."""


def check_pieces(kind, expected, tmp_path, count):
    """Compare the runtimes for one tokenizer of SentencePiece's kind.

    expected says by exporter whether a line may differ from transformers; None for no line.
    """
    lines = mixed_lines(count, kind.special)
    ours = in_transformers(kind, tmp_path / "transformers")
    for exporter, make in ((GgufExporter(), in_llama_cpp), (OnnxExporter(), in_genai)):
        name = exporter.format.name
        found = differing(ours, make(kind, tmp_path / name), lines)
        if expected.get(name) is None:
            assert found == []
        else:
            assert found and all(map(expected[name], found))
        assert ("other tokens" in notes_of(exporter, kind)) == (expected.get(name) is not None)


@pytest.mark.parametrize("blanks", ["prepend", "gemma"])
def test_tokens_of_sentencepiece_are_the_same_in_all_runtimes(tmp_path, blanks):
    check_pieces(sentencepiece_kind(blanks), {}, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("blanks", BLANKS)
def test_all_lines_for_all_ways_of_writing_blanks(tmp_path, blanks):
    expected = dict.fromkeys(("gguf", "onnx"), SENTENCEPIECE[blanks])
    check_pieces(sentencepiece_kind(blanks), expected, tmp_path, ALL_LINES)


@pytest.mark.slow
def test_pieces_that_gemma_adds_are_the_same_where_text_holds_no_sign_for_blanks(tmp_path):
    kind = sentencepiece_kind("gemma", GEMMA_PIECES)
    check_pieces(kind, {"gguf": lambda line: BLANK_SIGN in line}, tmp_path, ALL_LINES)


@pytest.mark.slow
def test_transformers_class_for_llama_differs_from_the_file_that_runtimes_follow(tmp_path):
    kind = sentencepiece_kind("prepend")
    lines = mixed_lines(ALL_LINES, kind.special)
    named = dataclasses.replace(kind, named=kind.named | {"tokenizer_class": "LlamaTokenizer"})
    theirs = in_transformers(named, tmp_path / "class")
    found = differing(in_transformers(kind, tmp_path / "file"), theirs, lines)
    assert found and all(map(behind_special, found))


def test_sentencepiece_itself_gives_the_same_tokens(tmp_path):
    """Without tokens of the user's own, behind which it writes no blank."""
    kind = sentencepiece_kind("prepend", ())
    lines = mixed_lines(FEW)
    assert differing(sentencepiece_model().encode, in_llama_cpp(kind, tmp_path / "m"), lines) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: sentencepiece_kind("prepend"),
        lambda: sentencepiece_kind("gemma", GEMMA_PIECES),
        lambda: kind_named("smollm"),
    ],
)
def test_a_file_that_is_read_again_gives_the_same_tokens(tmp_path, make):
    kind = make()
    path, *_ = GgufExporter().write(one_block_model(kind.files, rows=ROWS), tmp_path)
    read = Tokenizer.from_buffer(open_source(str(path)).companions()["tokenizer.json"])
    lines = [line for line in mixed_lines(FEW, kind.special) if BLANK_SIGN not in line]
    theirs = in_llama_cpp(kind, tmp_path / "again")
    ours = kind.tokenizer()
    for line in lines:
        ids = read.encode(line, add_special_tokens=False).ids
        assert ids == theirs(line) == ours.encode(line, add_special_tokens=False).ids
        assert read.encode(line).ids == ours.encode(line).ids


def test_runtimes_normalize_nothing_which_notes_say(tmp_path):
    kind = byte_level_kind(WRITTEN["gpt-2"], normalizer={"type": "NFC"})
    lines = [line for line in mixed_lines(2 * FEW) if "\x85" not in line]
    composed = [line for line in lines if unicodedata.is_normalized("NFC", line)]
    assert len(composed) < len(lines)
    ours = in_transformers(kind, tmp_path / "transformers")
    for exporter, make in ((GgufExporter(), in_llama_cpp), (OnnxExporter(), in_genai)):
        theirs = make(kind, tmp_path / exporter.format.name)
        assert set(differing(ours, theirs, lines)) == set(lines) - set(composed)
        assert "NFC" in notes_of(exporter, kind)


def test_older_spellings_of_a_splitting_are_the_same():
    written = json.loads(kind_named("qwen2").files["tokenizer.json"])["pre_tokenizer"]
    split, byte_level = written["pretokenizers"]
    removing = split | {"behavior": "Removed", "invert": True}
    literal = {"Regex": split["pattern"]["Regex"].replace(r"\r\n", "\r\n")}
    for changed in (removing, split | {"pattern": literal}):
        assert splits_like([changed, byte_level]) == [WRITTEN["qwen2"]]
    assert splits_like([split | {"behavior": "Removed"}, byte_level]) == []
    assert splits_like([split, byte_level | {"add_prefix_space": True}]) == []


PUBLISHED = {
    "smaug-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen35": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "seed-coder": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}"
    "| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    "bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+",  # noqa: RUF001
}
"""Names of llama.cpp -> the expression in tokenizer.json of models that it names them after."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_expressions_of_published_tokenizers_are_known(name):
    split = {"type": "Split", "pattern": {"Regex": PUBLISHED[name]}, "behavior": "Isolated"}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    assert WRITTEN[name] in splits_like([split, byte_level | {"trim_offsets": True}])


def changed_kind(kind, **changes):
    """A copy of a tokenizer with parts of it, and of its model, replaced."""
    content = copy.deepcopy(kind.content)
    content["model"] |= changes.pop("model", {})
    return dataclasses.replace(kind, content=content | changes)


def without_merge(kind, place):
    merges = kind.content["model"]["merges"]
    return changed_kind(kind, model={"merges": merges[:place] + merges[place + 1 :]})


def with_late_pair(kind):
    """Of a token that two pairs make, the second is merged last of all."""
    merges = kind.content["model"]["merges"]
    places = range(1, len(merges))
    place = next(at for at in places if "".join(merges[at]) == "".join(merges[at - 1]))
    others = merges[:place] + merges[place + 1 :]
    return changed_kind(kind, model={"merges": [*others, merges[place]]})


def without_byte(kind):
    vocabulary = dict(kind.content["model"]["vocab"])
    vocabulary["<none>"] = vocabulary.pop("<0x41>")
    return changed_kind(kind, model={"vocab": vocabulary})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda kind: without_merge(kind, 0), "no merge joins"),
        (lambda kind: without_merge(kind, 900), "no merge joins"),
        (with_late_pair, "lie apart"),
        (without_byte, "no token <0x41>"),
        (lambda kind: changed_kind(kind, normalizer={"type": "NFKC"}), "NFKC"),
        (lambda kind: changed_kind(kind, pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
        (
            lambda kind: changed_kind(
                kind,
                normalizer=None,
                pre_tokenizer=BLANKS["first"][1] | {"split": True},
            ),
            "Metaspace",
        ),
        (lambda kind: changed_kind(kind, model={"ignore_merges": True}), "ignore_merges"),
    ],
)
def test_sentencepiece_that_llama_cpp_would_cut_otherwise_is_refused(make, words):
    model = one_block_model(make(sentencepiece_kind("prepend")).files, rows=ROWS)
    reason = why_not_tokenizer(model.companions(), model.record.tokens, vocab_size=ROWS)
    assert words in reason
    assert "\n" not in reason and len(reason) < 600


def test_runs_of_blanks_that_merges_make_late_are_pieces_as_others(tmp_path):
    """Of equal scores, an older conversion lists the shorter pairs first."""
    kind = sentencepiece_kind("gemma", ("▁▁", "▁▁▁", "▁▁▁▁"))
    runs = [pair for pair in kind.content["model"]["merges"] if not "".join(pair).strip("▁")]
    others = [pair for pair in kind.content["model"]["merges"] if pair not in runs]
    ordered = sorted(runs, key=lambda pair: len("".join(pair)))
    late = changed_kind(kind, model={"merges": [*others, *ordered]})
    lines = [line for line in mixed_lines(FEW, kind.special) if BLANK_SIGN not in line]
    ours = in_transformers(late, tmp_path / "transformers")
    assert differing(ours, in_llama_cpp(late, tmp_path / "gguf"), lines) == []


def test_a_token_over_digits_that_falcon_splits_off_is_refused():
    model = one_block_model(byte_level_kind(WRITTEN["falcon"]).files, rows=ROWS)
    reason = why_not_tokenizer(model.companions(), model.record.tokens, vocab_size=ROWS)
    assert "joins digits and other signs" in reason and "under the name falcon" in reason


@pytest.mark.parametrize("name", ["gpt-4o", pytest.param("tekken", marks=pytest.mark.slow)])
def test_words_are_looked_up_or_merged_where_merges_lead_to_all_of_them(tmp_path, name):
    """llama.cpp looks words up under the name tekken, and merges under gpt-4o."""
    other = not WRITTEN[name].whole_words
    kind = changed_kind(byte_level_kind(WRITTEN[name]), model={"ignore_merges": other})
    lines = [line for line in mixed_lines(FEW) if not has_mark_or_foreign_case(line)]
    ours = in_transformers(kind, tmp_path / "transformers")
    assert differing(ours, in_llama_cpp(kind, tmp_path / "gguf"), lines) == []


def test_tokens_that_take_blanks_or_are_found_in_normalized_text_are_noted():
    kind = sentencepiece_kind("prepend")
    added = [dict(token) for token in kind.content["added_tokens"]]
    added[2]["rstrip"] = True
    added[-1]["normalized"] = True
    notes = notes_of(GgufExporter(), changed_kind(kind, added_tokens=added))
    assert "token '</s>' takes blanks beside it" in notes
    assert "token '<tool>' is found by transformers behind a blank alone" in notes


def phi_3(kind):
    """Phi-3's special tokens, which take the blanks behind them."""
    content = copy.deepcopy(kind.content)
    vocabulary = content["model"]["vocab"]
    for text in ("<|endoftext|>", "<|user|>", "<|end|>"):
        vocabulary[text] = len(vocabulary)
        token = content["added_tokens"][0] | {"id": vocabulary[text], "content": text}
        content["added_tokens"].append(token)
    for token in content["added_tokens"]:
        token["rstrip"] = token["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    return dataclasses.replace(kind, content=content, special=("<|user|>", "<|end|>", "<tool>"))


@pytest.mark.parametrize("make", [lambda kind: kind, phi_3])
def test_a_model_of_the_name_of_phi_3_has_its_own_special_tokens(tmp_path, make):
    kind = make(sentencepiece_kind("prepend"))
    model = dataclasses.replace(one_block_model(kind.files, rows=ROWS), name="Phi-3-mini")
    path, *_ = GgufExporter().write(model, tmp_path)
    _, vocabulary = kept = vocabulary_of(path)
    others = re.compile(r"[^\S \t\r\n]")  # blanks that llama.cpp does not take for such
    tokenizer = kind.tokenizer()
    for line in mixed_lines(2 * FEW, kind.special):
        if others.search(line):
            continue
        found = vocabulary.tokenize(line, add_special=False, parse_special=True)
        assert list(found) == tokenizer.encode(line, add_special_tokens=False).ids
    notes = " ".join(GgufExporter().notes(model.record, model.companions(), {}))
    assert ("the file states the name 'phi_3-mini'" in notes) == (make is not phi_3)
    del kept
