"""Rebuild BPE of SentencePiece's kind, the model "llama" of GGUF files, as parts of tokenizer.json.

llama.cpp merges any two pieces that make a token, the token with the highest score first.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import models

from edgeq.architectures.sentencepiece import (
    BLANK,
    BYTES,
    LONGEST,
    Pair,
    cuts,
    too_long,
    unlisted_pair,
    written_blanks,
)
from edgeq.errors import BadInput, UnsupportedModel

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6  # GGUF token types
FOUND_IN_TEXT = (UNKNOWN, CONTROL, USER_DEFINED)  # before it is cut into pieces

Metadata = Mapping[str, Any]


def sentencepiece_model(
    metadata: Metadata, vocabulary: Mapping[str, int], types: Sequence[int], unknown: str | None
) -> models.BPE:
    """Build the model of a tokenizer: vocabulary, and merges from scores.

    types are those of all ids, unknown is the token of what has none.

    Raises: BadInput for a damaged vocabulary; UnsupportedModel for one that merges cannot express.
    """
    bytes_there = {token for token, id in vocabulary.items() if types[id] == BYTE}
    missing = next((byte for byte in BYTES if byte not in bytes_there), None)
    if missing is not None:
        raise UnsupportedModel(
            f"the GGUF's vocabulary has no token {missing} of type byte, which llama.cpp needs "
            "for text without tokens; give the model's safetensors"
        )
    merges = read_merges(metadata, pieces_of(vocabulary, types))
    return models.BPE(
        vocab=dict(vocabulary),
        merges=merges,
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )


def pieces_of(vocabulary: Mapping[str, int], types: Sequence[int]) -> dict[str, int]:
    """Choose the tokens that merges may lead to.

    Others are bytes, and those that are found in a text before it is cut; one that holds what
    stands for a blank may come from a text with blanks.
    """
    return {
        token: id
        for token, id in vocabulary.items()
        if types[id] != BYTE and (types[id] not in FOUND_IN_TEXT or BLANK in token)
    }


def read_merges(metadata: Metadata, pieces: Mapping[str, int]) -> list[Pair]:
    """List the pairs that make a piece, those of the highest score first.

    Raises: BadInput without a score for each token; UnsupportedModel where two pieces have one
    score, or where a character has no token.
    """
    scores = read_scores(metadata)
    long = too_long(pieces)
    if long is not None:
        raise UnsupportedModel(
            f"the GGUF has a token of {len(long)} characters, {long[:20]!r}...; "
            f"SentencePiece tokens of at most {LONGEST} are supported"
        )
    made = {token: pairs for token in pieces if (pairs := pairs_of(token, pieces))}
    order = sorted(made, key=lambda token: -scores[pieces[token]])
    for before, after in itertools.pairwise(order):
        if scores[pieces[before]] == scores[pieces[after]]:
            raise UnsupportedModel(
                f"the GGUF's tokens {before!r} and {after!r} have the same score, which "
                "tokenizer.json cannot say; give the model's safetensors"
            )
    merges = [pair for token in order for pair in made[token]]
    unlisted = unlisted_pair(pieces, merges)
    if unlisted is not None:
        raise UnsupportedModel(
            f"the GGUF's pieces {unlisted[0]!r} and {unlisted[1]!r} make a token, but one of them "
            "is none; give the model's safetensors"
        )
    return merges


def read_scores(metadata: Metadata) -> list[float]:
    """Read the scores of all tokens, in order of ids.

    Raises: BadInput without a number for each.
    """
    count = len(metadata["tokenizer.ggml.tokens"])
    stated = metadata.get("tokenizer.ggml.scores")
    scores = stated if isinstance(stated, list) else []
    if len(scores) != count or not all(isinstance(score, float) for score in scores):
        raise BadInput(
            f"the GGUF has {count} tokens but no score for each in tokenizer.ggml.scores; "
            "convert the model again"
        )
    return scores


def pairs_of(token: str, pieces: Mapping[str, int]) -> list[Pair]:
    """List the pairs of pieces that make a token, in the order of their ids."""
    pairs = [pair for pair in cuts(token) if pair[0] in pieces and pair[1] in pieces]
    return sorted(pairs, key=lambda pair: (pieces[pair[0]], pieces[pair[1]]))


def sentencepiece_parts(metadata: Metadata) -> dict[str, Any]:
    """Write the parts of tokenizer.json around the model: how blanks are written and read."""
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    normalizer, pre_tokenizer = written_blanks(prefix=prefix)
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "decoder": {"type": "Sequence", "decoders": steps},
    }
