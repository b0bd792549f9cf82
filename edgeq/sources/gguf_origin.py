"""Read from a GGUF's metadata where its model comes from and what its licence is."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from edgeq.decoder import Origin
from edgeq.sources.model_card import LANGUAGE, LICENSE, LONGEST

ON_THE_HUB = re.compile(r"https://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/?")
MOST_ANCESTORS = 16


def origin_in(metadata: Mapping[str, Any], repository: str | None = None) -> Origin:
    """Read what the metadata says, under the keys that converters write; else nothing is known.

    repository is the model's name on the hub where it is known otherwise.
    """
    license = text_of(metadata, "general.license")
    languages = metadata.get("general.languages", ())
    listed = languages if isinstance(languages, list) else []
    return Origin(
        repository or on_the_hub(metadata, "general.source.repo_url", "general.source.url"),
        license if license is not None and LICENSE.fullmatch(license) else None,
        text_of(metadata, "general.license.name"),
        text_of(metadata, "general.license.link"),
        tuple(ancestors(metadata)),
        tuple(each for each in map(str, listed) if LANGUAGE.fullmatch(each)),
    )


def ancestors(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Name the models on the hub that the model was made from."""
    for number in range(MOST_ANCESTORS):
        found = on_the_hub(metadata, f"general.base_model.{number}.repo_url")
        if found is not None:
            yield found


def on_the_hub(metadata: Mapping[str, Any], *keys: str) -> str | None:
    """Name the model on the hub that the first of some keys links to."""
    for key in keys:
        found = ON_THE_HUB.fullmatch(str(metadata.get(key, "")))
        if found is not None:
            return found[1]
    return None


def text_of(metadata: Mapping[str, Any], key: str) -> str | None:
    """Read a short text; None for anything else."""
    value = metadata.get(key)
    short = isinstance(value, str) and value.isprintable() and 0 < len(value) <= LONGEST
    return value if isinstance(value, str) and short else None
