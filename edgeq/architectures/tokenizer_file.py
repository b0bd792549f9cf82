"""Read tokenizer.json with the tokens that other files of a model add to it, as transformers does.

Fine-tuning often adds tokens to tokenizer_config.json alone. A runtime that reads tokenizer.json
would not know them, so that a model could never end its turn.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer

from edgeq.architectures.json_objects import json_object
from edgeq.architectures.tokenizer_library import load_tokenizer_file
from edgeq.errors import BadInput, reason_of

TOKENIZER_FILE = "tokenizer.json"
ADDED_FILE = "added_tokens.json"
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")

Files = Mapping[str, bytes]
IdOf = Callable[[str], int | None]
"""Finds the id of a token by its text; None for one that is not in the vocabulary."""


def read_tokenizer(files: Files) -> Tokenizer | None:
    """Load tokenizer.json; None for a model without one.

    Raises: BadInput when the library cannot load it.
    """
    data = files.get(TOKENIZER_FILE)
    if data is None:
        return None
    try:
        return load_tokenizer_file(data)
    except ValueError as error:
        raise BadInput(
            f"{TOKENIZER_FILE} cannot be read ({reason_of(error)}); fetch it again"
        ) from error


def unite(files: Files, rows: int) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Add to tokenizer.json what the other files know, and say what could not be added.

    rows are those of the embedding: a token beyond them can be neither read nor written. Files
    that add nothing keep their bytes.

    Raises: BadInput for a damaged file.
    """
    tokenizer = read_tokenizer(files)
    if tokenizer is None:
        return dict(files), ()
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    notes = []
    changed = False
    for stated, token in added_tokens(files):
        if token.content in known:
            continue
        known.add(token.content)
        found = tokenizer.token_to_id(token.content)
        # the library gives the next id by counting tokens
        new = tokenizer.get_vocab_size() if found is None else found
        if found is None and tokenizer.id_to_token(new) is not None:
            raise BadInput(
                f"token {token.content!r} of the tokenizer's files would get id {new}, "
                f"which is taken in {TOKENIZER_FILE}; save the tokenizer again"
            )
        if new >= rows:
            notes.append(
                f"token {token.content!r} of the tokenizer's files is left out: "
                f"its id would be {new}, and the embedding has {rows} rows"
            )
            continue
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        changed = True
        if stated is not None and stated != new:
            notes.append(
                f"token {token.content!r} has id {stated} in the tokenizer's files, "
                f"but {new} by its vocabulary; {new} is used, as in transformers"
            )
    if not changed:
        return dict(files), tuple(notes)
    return {**files, TOKENIZER_FILE: tokenizer.to_str().encode()}, tuple(notes)


def added_tokens(files: Files) -> Iterator[tuple[int | None, AddedToken]]:
    """List tokens that files beside tokenizer.json state, with their ids, in transformers' order.

    Raises: BadInput for entries that are none.
    """
    settings = json_object(files, "tokenizer_config.json")
    entries = settings.get("added_tokens_decoder") or {}
    if not isinstance(entries, dict) or not all(map(_is_entry, entries.items())):
        raise BadInput(
            "tokenizer_config.json: added_tokens_decoder must be an object of ids and tokens; "
            "fetch it again"
        )
    for id, entry in sorted((int(id), entry) for id, entry in entries.items()):
        flags = {flag: bool(entry.get(flag, False)) for flag in FLAGS}
        yield id, AddedToken(entry["content"], special=bool(entry.get("special")), **flags)
    for content in (settings, json_object(files, "special_tokens_map.json")):
        yield from ((None, token) for token in _named(content))
    # of the time before tokenizer_config.json had them
    beside = {} if entries else json_object(files, ADDED_FILE)
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in beside.values()):
        raise BadInput(f"{ADDED_FILE} must be an object of tokens and ids; fetch it again")
    for text, id in sorted(beside.items(), key=lambda item: item[1]):
        yield id, AddedToken(text, special=False, normalized=False)


def _is_entry(item: tuple[str, Any]) -> bool:
    id, entry = item
    named = isinstance(entry, dict) and isinstance(entry.get("content"), str) and entry["content"]
    return id.isascii() and id.isdigit() and len(id) < 10 and bool(named)


def _named(content: Mapping[str, Any]) -> Iterator[AddedToken]:
    """List the special tokens that a file names, each by its text or by a description with it."""
    several = content.get("additional_special_tokens") or content.get("extra_special_tokens")
    if isinstance(several, dict):
        several = list(several.values())
    listed = several if isinstance(several, list) else []
    for token in [*(content.get(name) for name in NAMED), *listed]:
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text:
            flags = {}
            if isinstance(token, dict):
                flags = {flag: bool(token.get(flag, False)) for flag in FLAGS}
            yield AddedToken(text, special=True, **({"normalized": False} | flags))
