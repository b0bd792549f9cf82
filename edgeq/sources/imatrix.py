"""Find the linear layers of a model that the entries of an importance matrix stand for.

What lies in such a file is read and written by `edgeq.sources.imatrix_file`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeq.decoder import Decoder
from edgeq.errors import BadInput, UnsupportedModel
from edgeq.files.hashes import hash_of_file
from edgeq.sources.gguf_tensors import head_rule, rules_of
from edgeq.sources.imatrix_file import Entry, read_entries
from edgeq.sources.importance import Importance
from edgeq.types import NumpyArray


@dataclass(frozen=True, slots=True)
class Place:
    """What one entry of a file is of: tensors of the checkpoint whose layers have such inputs.

    An entry has parts, one for each expert: of each tensor one, or as many as its stack has.
    """

    tensors: tuple[str, ...]
    parts: int
    columns: int


def places_of(decoder: Decoder) -> dict[str, Place]:
    """List what entries a file of a model may have, by llama.cpp's names of tensors.

    Raises: UnsupportedModel for models that llama.cpp has no names for.
    """
    if decoder.names.gguf is None:
        raise UnsupportedModel(
            "an importance matrix names tensors as llama.cpp does, and no names are known for a "
            f"{decoder.model_type} model; quantize it with calibration text"
        )
    linears = {linear.tensor: linear for linear in decoder.linears()}
    places = {}
    for rule in rules_of(decoder):
        found = [linears[name] for name in rule.sources if name in linears]
        if found:
            stack = found[0].stored_shape
            parts = stack[0] if len(stack) > 2 else 1
            places[rule.name] = Place(rule.sources, parts, found[0].shape[1])
    if not decoder.tied_head:
        places[head_rule(decoder).name] = Place((decoder.head,), 1, decoder.hidden)
    return places


def read_importance(path: Path, decoder: Decoder) -> Importance:
    """Read the importance matrix of a model from a file of either kind.

    Raises: BadInput for a damaged file and for that of another model; UnsupportedModel.
    """
    places = places_of(decoder)
    entries = read_entries(path)
    known = {rule.name for rule in rules_of(decoder)} | places.keys()
    weights: dict[str, NumpyArray] = {}
    unseen: dict[str, int] = {}
    for name, place in places.items():
        if name in entries:
            squares = mean_squares(path, name, entries[name], place)
            alone = np.split(squares, len(place.tensors))
            weights |= dict(zip(place.tensors, alone, strict=True))
            if missing := int((entries[name].counts == 0).sum()):
                unseen[name] = missing
    if not any(decoder.linear_of(tensor) is not None for tensor in weights):
        raise BadInput(
            f"importance matrix {str(path)!r}: none of its {len(entries)} entries, such as "
            f"{next(iter(entries))!r:.100}, is of a linear layer of this {decoder.model_type} "
            "model; give the matrix of this model"
        )
    unknown = tuple(name for name in entries if name not in known)
    return Importance(path.name, hash_of_file(path), weights, unseen, unknown)


def mean_squares(path: Path, name: str, entry: Entry, place: Place) -> NumpyArray:
    """Give the mean squares of an entry, ones for parts that no token reached.

    Shapes: (parts of all tensors, in).
    Raises: BadInput for an entry of another width or number of experts.
    """
    parts = place.parts * len(place.tensors)
    if entry.sums.size != parts * place.columns or len(entry.counts) not in (1, parts):
        of_experts = f" for each of {parts} experts" if parts > 1 else ""
        raise BadInput(
            f"importance matrix {str(path)!r}: {name!r} has {entry.sums.size} numbers and "
            f"{len(entry.counts)} counts, and this model's layer {place.columns} inputs"
            f"{of_experts}; give the matrix of this model"
        )
    sums = entry.sums.reshape(parts, place.columns)
    counts = np.broadcast_to(entry.counts, parts)[:, None]
    # as llama.cpp has it, and as it weighs such experts
    return np.where(counts == 0, 1.0, sums / np.where(counts == 0, 1.0, counts))
