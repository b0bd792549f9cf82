"""Translate byte-level BPE from tokenizer.json to GGUF metadata: words, vocabulary, merges."""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from edgeq.architectures.tokenizer_library import parse_tokenizer, tamed
from edgeq.architectures.word_splits import WordSplit, splits_like, steps_of

Json = Mapping[str, Any]
FILE = "tokenizer.json"


def why_not_byte_level(tokenizer: Json, data: bytes) -> str | None:
    """Say what keeps a BPE without byte_fallback out of GGUF, or None. data is its file."""
    split = word_split(tokenizer, data)
    if split is None:
        return _unknown_splitting(tokenizer)
    if not split.digits_apart:
        return None
    mixed = next(filter(_mixes_digits, tokenizer["model"]["vocab"]), None)
    if mixed is not None:
        return (
            f"token {mixed!r} joins digits and other signs, which the tokenizer splits "
            f"and llama.cpp does not under the name {split.name}"
        )
    return None


def _mixes_digits(token: str) -> bool:
    """Say whether a token holds digits and others, among them what ByteLevel writes for bytes."""
    digits = sum(sign.isnumeric() for sign in token)
    return 0 < digits < len(token)


def word_split(tokenizer: Json, data: bytes) -> WordSplit | None:
    """Find how a tokenizer splits text into words, and llama.cpp alike; None if it cannot.

    Whether words are looked up before they are merged must agree too, unless it changes nothing.
    """
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):
        return None
    found = splits_like(steps_of(tokenizer.get("pre_tokenizer")))
    looks_up = bool(tokenizer["model"].get("ignore_merges"))
    for split in found:
        if split.whole_words == looks_up:
            return split
    return found[0] if found and merges_find_words(data) else None


@lru_cache(maxsize=2)
def merges_find_words(data: bytes) -> bool:
    """Say whether merges lead to every token, so that looking whole words up changes nothing.

    data is the content of tokenizer.json.
    """
    model = parse_tokenizer(data).model
    vocabulary = json.loads(data)["model"]["vocab"]
    added = {token["content"] for token in json.loads(data).get("added_tokens") or []}
    with tamed():
        model.ignore_merges = False
        return all(len(model.tokenize(token)) == 1 for token in vocabulary if token not in added)


def byte_level_keys(tokenizer: Json, data: bytes) -> Iterator[tuple[str, str | list[str]]]:
    """Make the keys of a tokenizer that `why_not_byte_level` accepts, but for its vocabulary."""
    split = word_split(tokenizer, data)
    assert split is not None
    yield "tokenizer.ggml.model", "gpt2"
    yield "tokenizer.ggml.pre", split.name
    merges = [_merge_line(merge) for merge in tokenizer["model"]["merges"]]
    if merges:  # the container has no empty lists
        yield "tokenizer.ggml.merges", merges


def byte_level_notes(tokenizer: Json, data: bytes) -> Iterator[str]:
    """Note text that llama.cpp splits differently from the tokenizer."""
    split = word_split(tokenizer, data)
    if split is not None and split.differs:
        yield (
            f"llama.cpp splits words of the {split.name} kind differently from transformers "
            f"at {split.differs}: such text gets other tokens"
        )
    if (tokenizer.get("normalizer") or {}).get("type") == "NFC":
        yield (
            "text whose accents are characters of their own, such as e + U+0301 (not NFC), gets "
            "other tokens in llama.cpp than in transformers; usual text, with accented letters of "
            "one character, gets the same"
        )


def _unknown_splitting(tokenizer: Json) -> str:
    """Describe an unknown way of splitting in one line, cut to what a terminal can show."""
    parts = {key: tokenizer.get(key) for key in ("normalizer", "pre_tokenizer")}
    found = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    merges = ", ignore_merges" if tokenizer["model"].get("ignore_merges") else ""
    return f"the tokenizer splits text in an unknown way ({found[:300]}{merges})"


def _merge_line(merge: str | list[str]) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)
