"""Read the tensors of an exported directory of safetensors files.

What the tensors of a module mean is left to the reader of each format.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from edgeq.dtypes import CODE_NAMES
from edgeq.errors import BadInput, reason_of
from edgeq.files.tensors import StoredArray, read_places
from edgeq.types import NumpyArray, StoredTensor

INDEX_NAME = "model.safetensors.index.json"
READABLE = (*CODE_NAMES.values(), "U32", "I32", "I64")  # weights; words of codes, places, shapes


class TensorFiles:
    """Reads the tensors of `model*.safetensors`, one at a time."""

    def __init__(self, directory: Path) -> None:
        self._of_name: dict[str, StoredArray] = {}
        self._files: dict[str, str] = {}
        for path in sorted(directory.glob("model*.safetensors")):
            try:
                places, _ = read_places(path)
            except (OSError, SafetensorError, ValueError) as error:
                raise BadInput(
                    f"{str(path)!r} cannot be read ({reason_of(error)}); export again"
                ) from error
            twice = sorted(set(self._of_name) & set(places))
            if twice:
                raise BadInput(
                    f"{str(path)!r} holds tensor {twice[0]!r} a second time; export again"
                )
            self._of_name |= places
            self._files |= dict.fromkeys(places, path.name)
        names = sorted(set(self._files.values()))
        self.first_file = names[0] if len(names) == 1 else INDEX_NAME

    def labels(self, type_name: str, *names: str) -> Mapping[str, Any]:
        """Give what a manifest states of tensors that lie in one file: their type, and the file.

        Raises: BadInput for tensors in several files.
        """
        files = {self._files[name] for name in names}
        if len(files) > 1:
            raise BadInput(f"its parts lie in several files ({', '.join(sorted(files))})")
        return {"type": type_name, "file": files.pop()}

    def dense(self, name: str) -> StoredTensor:
        """Read a tensor that no module packs."""
        array = self.array(name)
        return StoredTensor(array, labels=self.labels(CODE_NAMES[str(array.dtype)], name))

    def names(self) -> Sequence[str]:
        return sorted(self._of_name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Give the shape of a tensor that `modules` lists; () for one that is not there."""
        return self._of_name[name].shape if name in self._of_name else ()

    def array(self, name: str) -> NumpyArray:
        """Read one tensor.

        Raises: BadInput for a tensor that is not there.
        """
        if name not in self._of_name:
            raise BadInput(f"the files hold no tensor {name!r}")
        place = self._of_name[name]
        if place.dtype not in READABLE:
            raise BadInput(f"{name!r} is stored as {place.dtype}, which no export of edgeq is")
        return place.read()

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
