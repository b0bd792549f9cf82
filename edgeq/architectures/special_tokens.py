"""Read which tokens begin, end and pad a text: all that config and files say of it, united.

A model stops at each end that any of its files knows. Which tokens exist is said by
`edgeq.architectures.tokenizer_file`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgeq.architectures.generation_settings import check_choices
from edgeq.architectures.json_objects import json_object
from edgeq.architectures.tokenizer_file import (
    NAMED_FILE,
    SETTINGS_FILE,
    IdOf,
    tokenizer_settings,
)
from edgeq.decoder import TokenIds
from edgeq.errors import BadInput

GENERATION_FILE = "generation_config.json"
KINDS = {"bos": "begin", "eos": "end", "pad": "pad", "unk": "unknown"}
"""Hugging Face's names of special tokens -> the field of `TokenIds` with their ids."""
OTHER_ENDS = ("eot", "eom")
"""Further names that tokenizer files give to tokens which end a turn or a message."""

Files = Mapping[str, bytes]
Json = Mapping[str, Any]


def read_tokens(config: Json, files: Files, id_of: IdOf) -> TokenIds:
    """Unite the ids of special tokens: tokenizer files first, then generation config, config.

    id_of finds the id of a token by its text. Ends are all kept; of the others the first counts.

    Raises: BadInput for a file that is no JSON object, an id that is none, or a setting of how
    tokens are chosen that no runtime can follow.
    """
    generation = json_object(files, GENERATION_FILE)
    check_ids(generation)
    check_choices(generation, GENERATION_FILE)
    found = {}
    for kind, field in KINDS.items():
        known = [id for id in map(id_of, named_tokens(files, kind)) if id is not None]
        stated = (*listed_ids(generation, kind), *listed_ids(config, kind))
        found[field] = unique((*known, *(id for id in stated if id >= 0)))
    turns = [id_of(token) for kind in OTHER_ENDS for token in named_tokens(files, kind)]
    found["end"] = unique((*found["end"], *(id for id in turns if id is not None)))
    return TokenIds(**found)


def contradictions(config: Json, files: Files, id_of: IdOf) -> Iterable[str]:
    """Say where config and tokenizer files name different tokens that begin or pad a text.

    As in transformers, the tokenizer's counts. Several ends are no contradiction.
    """
    for kind in ("bos", "pad"):
        known = [id for id in map(id_of, named_tokens(files, kind)) if id is not None]
        stated = [id for id in listed_ids(config, kind) if id >= 0]
        if known and stated and known[0] not in stated:
            yield (
                f"config.json says {kind}_token_id {stated[0]}, the tokenizer's files {known[0]}; "
                f"{known[0]} is used, as in transformers"
            )


def unheard_settings(files: Files, tokens: TokenIds, around: Sequence[int]) -> Iterable[str]:
    """Say where settings ask for tokens around a text that tokenizer.json does not add.

    As in transformers, tokenizer.json counts. around are the ids that it adds.
    """
    settings = json_object(files, SETTINGS_FILE)
    for kind, ids in (("bos", tokens.begin), ("eos", tokens.end)):
        if settings.get(f"add_{kind}_token") is True and not set(ids[:1]) & set(around):
            yield (
                f"{SETTINGS_FILE} says add_{kind}_token, but tokenizer.json adds none; "
                "none is added, as in transformers"
            )


def named_tokens(files: Files, kind: str) -> list[str]:
    """List the texts of a special token, such as "bos", as tokenizer files name it.

    The one that transformers takes is the first.
    """
    contents = [tokenizer_settings(files)]
    contents += [json_object(files, name) for name in (SETTINGS_FILE, NAMED_FILE)]
    inner = ("extra_special_tokens", "model_specific_special_tokens")
    nested = [content.get(key) for content in contents for key in inner]
    places = [*contents, *(each for each in nested if isinstance(each, dict))]
    tokens = [token_text(place.get(f"{kind}_token")) for place in places]
    return [token for token in tokens if token is not None]


def token_text(token: Any) -> str | None:
    """Give the text of a special token, which is named by it or by a description with it."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def listed_ids(stated: Json, kind: str) -> tuple[int, ...]:
    """List the ids of a special token that a config states: none, one or several."""
    value = stated.get(f"{kind}_token_id")
    listed = value if isinstance(value, list) else [value]
    return tuple(id for id in listed if isinstance(id, int))


def check_ids(generation: Json) -> None:
    """Refuse special tokens of a generation config that are none.

    Raises: BadInput naming the key.
    """
    for kind in KINDS:
        key = f"{kind}_token_id"
        value = generation.get(key)
        listed = value if isinstance(value, list) else [value]
        whole = all(isinstance(id, int) and not isinstance(id, bool) for id in listed)
        if value is not None and not (listed and whole):
            raise BadInput(
                f"{GENERATION_FILE}: {key} is {value!r:.60}; "
                "it must be a token id or a list of them"
            )


def unique(ids: Iterable[int]) -> tuple[int, ...]:
    """Drop repetitions and keep the order."""
    return tuple(dict.fromkeys(ids))
