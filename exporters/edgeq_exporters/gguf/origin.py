"""Make the metadata that says where a model comes from and what its licence is.

Source: the specification of GGUF, "General metadata".
"""

from collections.abc import Iterator

from edgeq.decoder import Origin

HUB = "https://huggingface.co/"


def origin_keys(origin: Origin) -> Iterator[tuple[str, int | str | list[str]]]:
    """Give the keys of what is known; an int is stored as uint32."""
    texts = {
        "general.quantized_by": "edgeq",
        "general.license": origin.license,
        "general.license.name": origin.license_name,
        "general.license.link": origin.license_link,
    }
    if origin.repository is not None:
        texts["general.source.repo_url"] = HUB + origin.repository
    for key, text in texts.items():
        if text is not None:
            yield key, text
    if origin.languages:
        yield "general.languages", list(origin.languages)
    if origin.base_models:
        yield "general.base_model.count", len(origin.base_models)
    for number, model in enumerate(origin.base_models):
        organization, _, name = model.partition("/")
        start = f"general.base_model.{number}"
        yield f"{start}.name", name.replace("-", " ")
        yield f"{start}.organization", organization
        yield f"{start}.repo_url", HUB + model
