"""Name things on a page so that they can be told apart, with few words."""

from collections.abc import Sequence
from pathlib import PurePath


def shortest_ends(wholes: Sequence[Sequence[str]], joint: str) -> list[str]:
    """Give each list of parts its shortest end that no other list has; equal ones are numbered."""
    names: list[str] = []
    for parts in wholes:
        others = [other for other in wholes if other != parts]
        lengths = range(1, len(parts) + 1)
        alone = (
            count
            for count in lengths
            if not any(tuple(other[-count:]) == tuple(parts[-count:]) for other in others)
        )
        name = joint.join(parts[-next(alone, len(parts)) :])
        times = sum(1 for earlier in wholes[: len(names)] if earlier == parts)
        names.append(f"{name} ({times + 1})" if times else name)
    return names


def names_of(places: Sequence[str]) -> list[str]:
    """Name models by the shortest ends of their paths that tell them apart."""
    return shortest_ends([PurePath(place).parts or (place,) for place in places], "/")
