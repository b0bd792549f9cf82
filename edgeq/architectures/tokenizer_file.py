"""Read tokenizer.json with the tokens that other files of a model add to it, as transformers does.

Fine-tuning often adds tokens to tokenizer_config.json alone. A runtime that reads tokenizer.json
would not know them, so that a model could never end its turn.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer

from edgeq.architectures.json_objects import json_object
from edgeq.architectures.tokenizer_library import load_tokenizer_file, tamed
from edgeq.errors import BadInput, reason_of

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
NAMED_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
DECODER = "added_tokens_decoder"
EXTRA = "extra_special_tokens"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
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


def added_around(tokenizer: Tokenizer) -> list[int]:
    """List the ids that a tokenizer puts around every text."""
    try:
        with tamed():
            return list(tokenizer.encode("").ids)
    except ValueError as error:
        raise BadInput(
            f"{TOKENIZER_FILE} cannot be used ({reason_of(error)}); fetch it again"
        ) from error


def unite(files: Files, rows: int) -> tuple[dict[str, bytes], Tokenizer | None, tuple[str, ...]]:
    """Add to tokenizer.json what the other files know, and say what could not be added.

    Gives all files, and the tokenizer as it then is. rows are those of the embedding: a token
    beyond them can be neither read nor written. Files that add nothing keep their bytes.

    Raises: BadInput for a damaged file.
    """
    tokenizer = read_tokenizer(files)
    if tokenizer is None:
        return dict(files), None, ()
    before = states_of_added(tokenizer)
    notes = []
    for stated, token in added_tokens(files, tokenizer.get_added_tokens_decoder()):
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
        tokenizer.add_tokens([token])
        if stated is not None and stated != new:
            notes.append(
                f"token {token.content!r} has id {stated} in the tokenizer's files, "
                f"but {new} by its vocabulary; {new} is used, as in transformers"
            )
    if states_of_added(tokenizer) == before:
        return dict(files), tokenizer, tuple(notes)
    united = {**files, TOKENIZER_FILE: tokenizer.to_str().encode()}
    return united, tokenizer, tuple(notes)


def states_of_added(tokenizer: Tokenizer) -> dict[int, str]:
    """Describe the tokens that are found in a text before anything else happens to it."""
    return {id: repr(token) for id, token in tokenizer.get_added_tokens_decoder().items()}


def tokenizer_settings(files: Files) -> dict[str, Any]:
    """Read tokenizer_config.json, and what special_tokens_map.json says instead, as transformers.

    That file counts where the config has no added_tokens_decoder, and wins there.

    Raises: BadInput for a file that is no JSON object.
    """
    settings = json_object(files, SETTINGS_FILE)
    if DECODER in settings:
        return settings
    named = json_object(files, NAMED_FILE)
    first, second = settings.get(EXTRA), named.get(EXTRA)
    if isinstance(first, list) and isinstance(second, list):
        named = {**named, EXTRA: [*first, *(each for each in second if each not in first)]}
    return settings | named


def added_tokens(
    files: Files, own: Mapping[int, AddedToken]
) -> Iterator[tuple[int | None, AddedToken]]:
    """List tokens that files beside tokenizer.json add, with their ids, in transformers' order.

    own are those of tokenizer.json. One with other flags in added_tokens_decoder, or with a name
    and not special, is listed too: so it is in transformers.

    Raises: BadInput for entries that are none.
    """
    settings = tokenizer_settings(files)
    named = named_specials(settings)
    states = {token.content: repr(token) for token in own.values()}
    listed = set(states)
    for id, token in _decoder_entries(files, settings, own):
        if token.content in named:
            token.special = True
        if states.get(token.content) != repr(token):
            listed.add(token.content)
            yield id, token
    for text, token in {**named, **_extra_specials(settings)}.items():
        if text not in listed:
            listed.add(text)
            yield None, token


def named_specials(settings: Mapping[str, Any]) -> dict[str, AddedToken]:
    """List the tokens that settings give a name, such as eos_token, by their texts."""
    others = [key for key in settings if key.endswith("_token") and key not in NAMED]
    values = [settings.get(key) for key in (*NAMED, *others)]
    for key in (EXTRA, "model_specific_special_tokens"):
        named = settings.get(key)
        values += list(named.values()) if isinstance(named, dict) else []
    return _specials(values)


def _extra_specials(settings: Mapping[str, Any]) -> dict[str, AddedToken]:
    """List the special tokens without a name of their own; the newer of two keys counts."""
    newer = settings.get(EXTRA)
    is_older = EXTRA not in settings or isinstance(newer, dict)
    several = settings.get("additional_special_tokens") if is_older else newer
    return _specials(several if isinstance(several, list) else [])


def _specials(values: Sequence[Any]) -> dict[str, AddedToken]:
    """Read special tokens, each given by its text or by a description with it."""
    found = {}
    for value in values:
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and text:
            flags = {}
            if isinstance(value, dict):
                flags = {flag: bool(value[flag]) for flag in FLAGS if flag in value}
            found[text] = AddedToken(text, special=True, **flags)
    return found


def _decoder_entries(
    files: Files, settings: Mapping[str, Any], own: Mapping[int, AddedToken]
) -> Iterator[tuple[int, AddedToken]]:
    """List tokens by their ids: those of tokenizer_config.json.

    Of the time before it had them, those of added_tokens.json and tokenizer.json.
    """
    if DECODER not in settings:
        beside = json_object(files, ADDED_FILE)
        if not all(isinstance(id, int) and not isinstance(id, bool) for id in beside.values()):
            raise BadInput(f"{ADDED_FILE} must be an object of tokens and ids; fetch it again")
        special = {**named_specials(settings), **_extra_specials(settings)}
        older = {
            id: AddedToken(text, special=text in special, normalized=text not in special)
            for text, id in beside.items()
        }
        yield from sorted({**older, **own}.items(), key=lambda item: item[0])
        return
    entries = settings[DECODER] or {}
    if not isinstance(entries, dict) or not all(map(_is_entry, entries.items())):
        raise BadInput(
            f"{SETTINGS_FILE}: {DECODER} must be an object of ids and tokens; fetch it again"
        )
    for id, entry in sorted((int(id), entry) for id, entry in entries.items()):
        flags = {flag: bool(entry[flag]) for flag in FLAGS if flag in entry}
        yield id, AddedToken(entry["content"], special=bool(entry.get("special")), **flags)


def _is_entry(item: tuple[str, Any]) -> bool:
    id, entry = item
    named = isinstance(entry, dict) and isinstance(entry.get("content"), str) and entry["content"]
    return id.isascii() and id.isdigit() and len(id) < 10 and bool(named)
