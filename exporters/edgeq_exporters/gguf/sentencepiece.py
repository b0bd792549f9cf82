"""Translate BPE of SentencePiece's kind from tokenizer.json to GGUF metadata: pieces and scores.

tokenizer.json lists pairs to merge, most urgent first. llama.cpp merges any pair that makes a
token, the token with the highest score first. Both do the same where every such pair is listed, and
all pairs of a token together; then a token's score is its place in the list.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from edgeq.architectures.sentencepiece import (
    BLANK,
    BYTE,
    BYTES,
    LONGEST,
    Pair,
    blanks_of,
    too_long,
    unlisted_pair,
)
from edgeq.architectures.tokenizer_library import parse_tokenizer, tamed

BYTE_TYPE, UNKNOWN_TYPE, NORMAL_TYPE = 6, 2, 1  # token types of GGUF

Json = Mapping[str, Any]


def why_not_sentencepiece(tokenizer: Json, data: bytes) -> str | None:
    """Say what keeps a BPE with byte_fallback out of GGUF, or None. data is its file."""
    if blanks_of(tokenizer) is None:
        parts = {key: tokenizer.get(key) for key in ("normalizer", "pre_tokenizer")}
        found = json.dumps(parts, ensure_ascii=False, sort_keys=True)
        return f"the tokenizer writes blanks in an unknown way ({found[:300]})"
    missing = next((byte for byte in BYTES if byte not in tokenizer["model"]["vocab"]), None)
    if missing is not None:
        return f"the tokenizer has no token {missing}, without which llama.cpp cannot write bytes"
    if tokenizer["model"].get("ignore_merges"):
        return "the tokenizer is SentencePiece BPE with ignore_merges"
    return why_not_merges(data)


@lru_cache(maxsize=2)
def why_not_merges(data: bytes) -> str | None:
    """Say where merging by scores would differ from the merges of a tokenizer.json, or None."""
    content = json.loads(data)
    runs = runs_in_text(data)
    # added tokens are found in a text before it is cut, unless they hold what stands for a blank
    added = (token["content"] for token in content.get("added_tokens") or [])
    found = {token for token in added if BLANK not in token or token in runs}
    results: set[str] = set()
    last, merges = "", [pair for pair in _merges(content) if "".join(pair) not in found]
    for left, right in merges:
        token = left + right
        if token != last and token in results:
            return f"the merges to token {token!r} lie apart, and llama.cpp takes them together"
        if BYTE.fullmatch(left) or BYTE.fullmatch(right):
            return f"the tokenizer merges {left!r} with {right!r}, and llama.cpp merges no bytes"
        results.add(token)
        last = token
    pieces = content["model"]["vocab"].keys() - found
    long = too_long(pieces)
    if long is not None:
        return f"the tokenizer has a token of {len(long)} characters; at most {LONGEST} are known"
    unlisted = unlisted_pair(pieces, merges)
    if unlisted is not None:
        return (
            f"no merge joins {unlisted[0]!r} and {unlisted[1]!r}, which make a token and which "
            "llama.cpp would join: its merges are not SentencePiece's"
        )
    return None


@lru_cache(maxsize=2)
def runs_in_text(data: bytes) -> frozenset[str]:
    """List the added tokens of several blanks that llama.cpp may find in a text as they stand.

    There are none with a blank before every text, and where merges do not make the longest runs
    from the left, before anything else that begins with a blank. They are pieces as others then.
    """
    content = json.loads(data)
    blanks = blanks_of(content)
    added = (token for token in content.get("added_tokens") or [] if not token["special"])
    contents = (token["content"] for token in added)
    runs = {token for token in contents if len(token) > 1 and not token.strip(BLANK)}
    if not runs or blanks is None or blanks.prefix:
        return frozenset()
    made = [left + right for left, right in _merges(content)]
    last = max((place for place, token in enumerate(made) if token in runs), default=0)
    is_late = any(token[0] == BLANK and token not in runs for token in made[:last])
    vocabulary = content["model"]["vocab"]
    is_taken = any(" " * len(token) in vocabulary for token in runs)
    if is_late or is_taken or any(map(_goes_on, vocabulary)):
        return frozenset()
    model, longest = parse_tokenizer(data).model, max(map(len, runs))
    with tamed():
        for length in range(1, 2 * longest + 2):
            found = [token.value for token in model.tokenize(BLANK * length)]
            if found != _longest_first(length, runs):
                return frozenset()
    return frozenset(runs)


def _goes_on(token: str) -> bool:
    """Say whether a token holds a run of blanks and more, which llama.cpp would cut off."""
    return 2 * BLANK in token and bool(token.strip(BLANK))


def _longest_first(length: int, runs: Collection[str]) -> list[str]:
    """Cut a run of blanks into the longest tokens there are, from the left."""
    cut: list[str] = []
    while length:
        size = next((size for size in range(length, 1, -1) if BLANK * size in runs), 1)
        cut.append(BLANK * size)
        length -= size
    return cut


def sentencepiece_vocabulary(
    tokenizer: Json, data: bytes, tokens: Sequence[str], types: Sequence[int]
) -> tuple[list[str], list[int]]:
    """Give a vocabulary's tokens and types, from those that byte-level BPE would have.

    Types of bytes and of the unknown token are SentencePiece's own. Runs of blanks that
    tokenizer.json adds are written as they stand in a text.
    """
    unknown = tokenizer["model"].get("unk_token")
    added = {token["content"]: token["special"] for token in tokenizer.get("added_tokens") or []}
    results = {left + right for left, right in _merges(tokenizer)}
    runs = runs_in_text(data)
    texts, kinds = list(tokens), list(types)
    for id, token in enumerate(tokens):
        if BYTE.fullmatch(token) and token not in added:
            kinds[id] = BYTE_TYPE
        elif token == unknown and added.get(token):
            kinds[id] = UNKNOWN_TYPE
        elif token in runs:
            texts[id] = " " * len(token)
        elif token in results and added.get(token) is False and not token.strip(BLANK):
            kinds[id] = NORMAL_TYPE
    return texts, kinds


def sentencepiece_keys(
    tokenizer: Json, tokens: Sequence[str]
) -> Iterator[tuple[str, str | bool | list[float]]]:
    """Make the keys of a tokenizer that `why_not_sentencepiece` accepts, but for its vocabulary."""
    blanks = blanks_of(tokenizer)
    assert blanks is not None
    order: dict[str, int] = {}
    for left, right in _merges(tokenizer):
        order.setdefault(left + right, len(order))
    yield "tokenizer.ggml.model", "llama"
    yield "tokenizer.ggml.pre", "default"
    yield "tokenizer.ggml.scores", [-float(order.get(token, 0)) for token in tokens]
    yield "tokenizer.ggml.add_space_prefix", blanks.prefix


def sentencepiece_notes(tokenizer: Json) -> Iterator[str]:
    """Note text that llama.cpp splits differently from the tokenizer."""
    blanks = blanks_of(tokenizer)
    if blanks is None:
        return
    if blanks.differs:
        yield (
            "llama.cpp begins every text with a blank of its own, also behind special tokens: "
            f"{blanks.differs}, transformers has none, and other tokens"
        )
    added = [token for token in tokenizer.get("added_tokens") or [] if not token["special"]]
    if any(not token["content"].strip(BLANK) for token in added):
        yield f"text that holds the sign {BLANK} itself gets other tokens in llama.cpp"
    if tokenizer.get("normalizer") and blanks.prefix:
        for token in added:
            if token.get("normalized"):
                yield (
                    f"token {token['content']!r} is found by transformers behind a blank alone "
                    "(normalized), by llama.cpp anywhere"
                )


def _merges(tokenizer: Json) -> list[Pair]:
    """List the pairs to merge; older files write a pair as a line."""
    listed = tokenizer["model"]["merges"]
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in listed)
    return [(left, right) for left, right in pairs]
