"""Read from a GGUF's metadata where its model comes from and what its licence is."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from edgeq.decoder import Origin
from edgeq.sources.model_card import origin_of

ON_THE_HUB = re.compile(r"https://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/?")
MOST_ANCESTORS = 16


def origin_in(metadata: Mapping[str, Any], repository: str | None = None) -> Origin:
    """Read what the metadata says, under the keys that converters write; else nothing is known.

    repository is the model's name on the hub where it is known otherwise.
    """
    stated = repository or on_the_hub(metadata, "general.source.repo_url", "general.source.url")
    return origin_of(
        {
            "repository": stated,
            "license": metadata.get("general.license"),
            "license_name": metadata.get("general.license.name"),
            "license_link": metadata.get("general.license.link"),
            "base_models": list(ancestors(metadata)),
            "languages": metadata.get("general.languages"),
        }
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
