"""What `python -m benchmarks.train_small` makes its models of: tokenizers, a cold expert, and the
measure that they must beat.
"""

import functools
import math
import tomllib
from collections import Counter
from importlib import import_module

import pytest
import torch

from benchmarks import families_quality, train_small
from edgeq.calibration.reading import read_text
from edgeq.recipe.recipe import make_recipe

pytestmark = pytest.mark.slow  # trains tokenizers on all texts

MIXED = "It's  2026:\tnaïve café,\n\n  東京 x=1;   \U0001f42d مرحبا <eos \u2028 end \n"


@functools.cache
def speeches():
    return read_text(None)[:100_000]


@functools.cache
def tokenizer_of(make):
    return make(speeches())


def as_sentencepiece(tokenizer):
    """The same vocabulary in sentencepiece's own library, the later token with the lower score."""
    library = pytest.importorskip("sentencepiece", reason="mlx-lm brings it, where that installs")
    formats = import_module("sentencepiece.sentencepiece_model_pb2")
    proto = formats.ModelProto()
    kinds = formats.ModelProto.SentencePiece
    proto.trainer_spec.model_type = formats.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.vocab_size = tokenizer.get_vocab_size()
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    kind_of = dict.fromkeys(train_small.SPECIAL, kinds.CONTROL)
    kind_of[train_small.UNKNOWN] = kinds.UNKNOWN
    for rank in range(tokenizer.get_vocab_size()):
        piece = tokenizer.id_to_token(rank)
        other = kinds.BYTE if piece.startswith("<0x") else kinds.NORMAL
        proto.pieces.add(piece=piece, score=-rank, type=kind_of.get(piece, other))
    return library.SentencePieceProcessor(model_proto=proto.SerializeToString())


@pytest.mark.parametrize("make", [train_small.byte_pieces, train_small.sentence_pieces])
def test_every_text_is_encoded_and_comes_back(make):
    tokenizer = tokenizer_of(make)
    assert tokenizer.get_vocab_size() == train_small.VOCABULARY
    ids = tokenizer.encode(MIXED, add_special_tokens=False).ids
    assert not set(ids) & set(range(len(train_small.SPECIAL)))
    assert tokenizer.decode(ids) == MIXED


def test_sentence_pieces_are_those_of_sentencepiece():
    tokenizer = tokenizer_of(train_small.sentence_pieces)
    oracle = as_sentencepiece(tokenizer)
    for text in (MIXED, *speeches().split(". ")[:200]):
        assert tokenizer.encode(text, add_special_tokens=False).ids == oracle.encode(text)
    assert tokenizer.encode("We").ids == [train_small.BEGIN, *oracle.encode("We")]


def test_rows_follow_one_another_and_start_with_the_begin_token():
    tokenizer = tokenizer_of(train_small.sentence_pieces)
    rows = train_small.rows_of(tokenizer, speeches(), [train_small.BEGIN])
    assert rows.shape[1] == train_small.SEQUENCE
    assert set(rows[:, 0].tolist()) == {train_small.BEGIN}
    found = tokenizer.decode(rows[:, 1:].flatten().tolist())
    assert len(rows) > 90 and speeches().startswith(found)


def test_a_cooled_expert_is_reached_by_hardly_a_token(one_thread, rng):
    model = train_small.new_model("mixture", 0).eval()
    rows = torch.from_numpy(rng.integers(0, train_small.VOCABULARY, (4, train_small.SEQUENCE)))
    routers = train_small.routers(model).values()
    others = torch.cat([router.weight[:-1].clone() for router in routers])
    before = train_small.cold_shares(model, rows)
    train_small.cool(model, rows)
    after = train_small.cold_shares(model, rows)
    assert len(after) == model.config.num_hidden_layers
    assert min(before.values()) > 0.05
    assert max(after.values()) <= train_small.LARGEST_SHARE
    experts = torch.cat([router.weight[:-1] for router in routers])
    torch.testing.assert_close(experts, others, rtol=0, atol=0)


def test_the_perplexity_to_beat_is_that_of_smoothed_token_frequencies():
    rows = torch.tensor([[9, 5, 5, 6], [9, 7, 5, 6]])
    judged = torch.tensor([[5, 5, 8, 6]])
    counts = Counter([5, 5, 6, 7, 5, 6])
    total = 6 + train_small.VOCABULARY
    lost = sum(-math.log((counts[token] + 1) / total) for token in (5, 8, 6))
    assert train_small.unigram_perplexity(rows, judged) == pytest.approx(math.exp(lost / 3))


def test_recipes_of_the_comparison_say_what_the_rows_name():
    rows = families_quality.SOLVES
    recipes = [
        make_recipe(tomllib.loads(families_quality.as_toml(families_quality.settings_of(row))))
        for row in rows
    ]
    assert [recipe.solver for recipe in recipes] == ["rtn", "gptq", "gptq"]
    assert {(recipe.bits, recipe.group_size) for recipe in recipes} == {(3, 64)}
    asked = {"quality": "balanced", **families_quality.SETTINGS}
    assert recipes[-1] == make_recipe(asked)
