"""What an importance matrix says of a model, whatever file it was read from.

Files are read by `edgeq.sources.imatrix`, which needs the gguf library; this module needs nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from edgeq.types import NumpyArray


@dataclass(frozen=True, slots=True)
class Importance:
    """What an importance matrix says of a model.

    weights has, by tensor of the checkpoint, the mean squares of its inputs: a row for the whole
    tensor or for each expert in its stack. A row of ones stands for an expert that no token
    reached; unseen names the entries with some, and their number. unknown names entries that the
    model has no tensor for.

    Shapes: weights (1 or experts, in), float64, not negative.
    """

    name: str
    sha256: str
    weights: Mapping[str, NumpyArray]
    unseen: Mapping[str, int]
    unknown: tuple[str, ...]

    def record(self) -> dict[str, str]:
        """Give what edgeq.json says of the file."""
        return {"name": self.name, "sha256": self.sha256}
