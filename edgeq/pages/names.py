"""Name things on a page so that they can be told apart, with few words."""

from collections.abc import Container, Sequence
from pathlib import PurePath

from edgeq.registry import FORMATS


def shortest_ends(
    wholes: Sequence[Sequence[str]], joint: str, common: Container[str] = ()
) -> list[str]:
    """Give each list of parts its shortest end that no other list has; equal ones are numbered.

    No end begins with a common part, unless the whole does.
    """
    names: list[str] = []
    for parts in wholes:
        others = [other for other in wholes if other != parts]
        lengths = range(1, len(parts) + 1)
        alone = (
            count
            for count in lengths
            if parts[-count] not in common
            and not any(tuple(other[-count:]) == tuple(parts[-count:]) for other in others)
        )
        name = joint.join(parts[-next(alone, len(parts)) :])
        times = sum(1 for earlier in wholes[: len(names)] if earlier == parts)
        names.append(f"{name} ({times + 1})" if times else name)
    return names


def names_of(places: Sequence[str]) -> list[str]:
    """Name models by the shortest ends of their paths that tell them apart.

    What is named after its format says nothing alone, so the folder above it comes too.
    """
    parts = [PurePath(place).parts or (place,) for place in places]
    return shortest_ends(parts, "/", {*FORMATS, *MODEL_FILES})


MODEL_FILES = ("model.gguf", "model.onnx", "model.safetensors")
"""Names that files of many models have."""
