"""Read the tensors of an exported directory of safetensors files.

What the tensors of a module mean is left to the reader of each format.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from edgeq.errors import BadInput, reason_of
from edgeq.types import NumpyArray


class TensorFiles:
    """Reads the tensors of `model*.safetensors`, one at a time."""

    def __init__(self, directory: Path) -> None:
        self._of_name: dict[str, Any] = {}
        for path in sorted(directory.glob("model*.safetensors")):
            try:
                handle = safe_open(path, framework="np")
            except (OSError, SafetensorError) as error:
                raise BadInput(
                    f"{str(path)!r} cannot be read ({reason_of(error)}); export again"
                ) from error
            self._of_name |= dict.fromkeys(handle.keys(), handle)

    def names(self) -> Sequence[str]:
        return sorted(self._of_name)

    def array(self, name: str) -> NumpyArray:
        """Read one tensor.

        Raises: BadInput for a tensor that is not there.
        """
        if name not in self._of_name:
            raise BadInput(f"the files hold no tensor {name!r}")
        array: NumpyArray = self._of_name[name].get_tensor(name)
        return array

    def modules(self, *, first: str, others: Sequence[str]) -> Sequence[str]:
        """List dense tensors, and P.weight for each module P that has a tensor P.first.

        `others` are the other tensors of such a module; they are not listed.
        """
        ending = f".{first}"
        packed = {name.removesuffix(ending) for name in self._of_name if name.endswith(ending)}
        weights = {f"{module}.weight" for module in packed}
        parts = {f"{module}.{part}" for module in packed for part in (first, *others)}
        return sorted(weights | (set(self._of_name) - parts))


def module_of(entry: Mapping[str, Any]) -> str:
    """Name the module that an entry's weight belongs to."""
    return str(entry["name"]).removesuffix(".weight")
