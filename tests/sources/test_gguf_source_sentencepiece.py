"""SentencePiece tokenizers in GGUF files, with the scores that SentencePiece itself gives, against
llama.cpp.
"""

import json

import numpy as np
import pytest
from mixed_text import ALL_LINES, mixed_lines
from tokenizer_kinds import GEMMA_PIECES, differing, sentencepiece_model, vocabulary_of
from tokenizers import Tokenizer

from edgeq.errors import BadInput, UnsupportedModel
from edgeq.sources.gguf_tokenizer import tokenizer_files

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
FEW = 200


def kind_of(model, id):
    if model.is_control(id):
        return CONTROL
    if model.is_unknown(id):
        return UNKNOWN
    if model.is_byte(id):
        return BYTE
    return NORMAL


def metadata_of(pieces=("<tool>",), **changes):
    """What llama.cpp's converter writes: pieces of the user's own as they stand in a text."""
    model = sentencepiece_model(pieces)
    ids = range(model.get_piece_size())
    tokens = [model.id_to_piece(id) for id in ids]
    types = [USER_DEFINED if tokens[id] in pieces else kind_of(model, id) for id in ids]
    texts = [
        token.replace("\u2581", " ") if kind == USER_DEFINED else token
        for token, kind in zip(tokens, types, strict=True)
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": [float(model.get_score(id)) for id in ids],
        "tokenizer.ggml.token_type": types,
    } | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


@pytest.fixture
def make_model(make_gguf, tiny_metadata, tiny_tensors):
    """A random model with a given vocabulary, as a GGUF file."""

    def make(metadata):
        table = np.zeros((len(metadata["tokenizer.ggml.tokens"]), 64), np.float32)
        return make_gguf(
            tiny_metadata | metadata,
            tiny_tensors | {"token_embd.weight": table, "output.weight": table},
        )

    return make


def check(metadata, path, lines):
    """Compare with llama.cpp, with the tokens that it puts around a text."""
    model, vocabulary = vocabulary_of(path)
    tokenizer = Tokenizer.from_buffer(tokenizer_files(metadata)["tokenizer.json"])

    def theirs(line):
        ids = vocabulary.tokenize(line, add_special=True, parse_special=True)
        return [int(id) for id in ids]

    assert differing(lambda line: tokenizer.encode(line).ids, theirs, lines) == []
    del model


CASES = {
    "silent": {},
    "no prefix": {"add_space_prefix": False, "add_bos_token": False},
    "eos": {"add_eos_token": True, "bos_token_id": 1, "eos_token_id": 2},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("count", [FEW, pytest.param(ALL_LINES, marks=pytest.mark.slow)])
def test_text_is_cut_as_llama_cpp_does(case, count, make_model):
    metadata = metadata_of(**CASES[case])
    check(metadata, make_model(metadata), mixed_lines(count, ("</s>", "<unk>", "<tool>")))


@pytest.mark.slow
def test_runs_of_blanks_that_gemma_adds_are_found_in_a_text(make_model):
    metadata = metadata_of(GEMMA_PIECES, add_space_prefix=False)
    check(metadata, make_model(metadata), mixed_lines(ALL_LINES, ("</s>", "[x]", "<table>")))


def test_special_tokens_without_keys_are_those_that_llama_cpp_takes():
    files = tokenizer_files(metadata_of())
    settings = json.loads(files["tokenizer_config.json"])
    named = [settings[f"{name}_token"] for name in ("unk", "bos", "eos")]
    assert named == ["<unk>", "<s>", "</s>"]
    assert settings["add_bos_token"] is True
    assert json.loads(files["generation_config.json"])["eos_token_id"] == 2


def changed(metadata, key, place, value):
    values = list(metadata[f"tokenizer.ggml.{key}"])
    values[place] = value
    return metadata | {f"tokenizer.ggml.{key}": values}


def with_equal_scores(metadata):
    """Two tokens of several characters, which scores cannot tell apart."""
    scores = metadata["tokenizer.ggml.scores"]
    return changed(metadata, "scores", 300, scores[301])


def without_a_character(metadata):
    """A token whose last character is none."""
    tokens = metadata["tokenizer.ggml.tokens"]
    place = next(at for at in range(300, len(tokens)) if len(tokens[at]) == 2)
    return changed(metadata, "tokens", place, tokens[place][0] + "\ue000")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (with_equal_scores, UnsupportedModel, "have the same score"),
        (without_a_character, UnsupportedModel, "make a token, but one of them is none"),
        (
            lambda metadata: changed(metadata, "token_type", 100, NORMAL),
            UnsupportedModel,
            "of type byte",
        ),
        (
            lambda metadata: changed(metadata, "tokens", 300, "x" * 100_000),
            UnsupportedModel,
            "a token of 100000 characters",
        ),
        (
            lambda metadata: changed(metadata, "scores", 300, "x"),
            BadInput,
            "no score for each",
        ),
        (
            lambda metadata: metadata | {"tokenizer.ggml.scores": [0.0]},
            BadInput,
            "no score for each",
        ),
        (
            lambda metadata: {key: value for key, value in metadata.items() if "scores" not in key},
            BadInput,
            "no score for each",
        ),
    ],
)
def test_a_vocabulary_that_merges_cannot_express_is_refused_in_one_line(make, error, words):
    with pytest.raises(error) as caught:
        tokenizer_files(make(metadata_of()))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
