"""Say what types and sizes the tensors of GGUF files have, by the library of the format."""

from functools import cache
from pathlib import Path

from gguf import GGUFReader


class Unequal(Exception):
    """Two files that should have the same types have not; the text says where."""


@cache
def tensors_of(path: Path) -> dict[str, tuple[str, int, int]]:
    """Give, by name, the type of each tensor, its bytes and its weights.

    A file is read once: the library takes seconds for a large vocabulary.
    """
    return {
        tensor.name: (tensor.tensor_type.name, int(tensor.n_bytes), int(tensor.n_elements))
        for tensor in GGUFReader(path).tensors
    }


def check_equal(ours: Path, theirs: Path) -> None:
    """Check that two files have the same types and bytes in all tensors.

    Raises: Unequal with the first tensor that differs.
    """
    first, second = tensors_of(ours), tensors_of(theirs)
    for name in sorted(first.keys() | second.keys()):
        if first.get(name) != second.get(name):
            raise Unequal(
                f"{name}: {first.get(name)} in {str(ours)!r}, {second.get(name)} in {str(theirs)!r}"
            )


def bits_per_weight(path: Path) -> float:
    """Count the bits of all tensors by the weights in them."""
    sizes = [(size, weights) for _, size, weights in tensors_of(path).values()]
    total, weights = map(sum, zip(*sizes, strict=True))
    return 8 * total / weights
