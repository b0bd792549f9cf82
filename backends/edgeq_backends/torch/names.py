"""Name tensors as checkpoints on the hub do, and make a model's own tensors from them.

transformers computes with other tensors than files hold: experts lie in stacks, some modules have
new names. Its conversion mapping says both ways what becomes of what.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from edgeq.decoder import Shape
from edgeq.errors import UnsupportedModel, reason_of


@dataclass(frozen=True, slots=True)
class Filling:
    """Tensors of a checkpoint, and the tensors of the model that they make up together.

    targets are names in the model; sources those in the checkpoint, by shape, in the order in which
    the converter takes them, with the pattern that each matched. Without a converter the one source
    is the one target.
    """

    targets: tuple[str, ...]
    sources: Mapping[str, Shape]
    patterns: tuple[str, ...] = ()
    converter: WeightConverter | None = None

    def convert(self, model: Any, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        """Make the tensors of the model, by name, from those of the checkpoint."""
        if self.converter is None:
            [source] = self.sources
            return {self.targets[0]: read(source)}
        converter = deepcopy(self.converter)
        for source, pattern in zip(self.sources, self.patterns, strict=True):
            tensor: Any = read(source)  # the library also takes one that is there already
            converter.add_tensor(self.targets[0], source, pattern, tensor)
        made = converter.convert(self.targets[0], model=model, config=model.config)
        return {
            name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()
        }


def fillings_of(model: Any) -> list[Filling]:
    """List what makes up all parameters and saved buffers of a model.

    Raises: UnsupportedModel where the mapping there and back does not come to the same tensors.
    """
    state = {name: tensor.detach().to("meta") for name, tensor in model.state_dict().items()}
    try:
        stored = revert_weight_conversion(model, dict(state))
        found = _grouped(model, stored, state)
        made = {
            name: tuple(tensor.shape)
            for filling in found
            for name, tensor in filling.convert(model, stored.__getitem__).items()
        }
    # operations of the mapping check what they get, each with an exception of its own
    except Exception as error:
        raise _unknown_names(model, f"{type(error).__name__}: {reason_of(error)}") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if made != wanted:
        odd = sorted({*made.items()} ^ {*wanted.items()})
        raise _unknown_names(model, f"{odd[0][0]!r} does not come back")
    return found


def _unknown_names(model: Any, why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"model_type '{model.config.model_type}': transformers' names of stored tensors cannot be "
        f"followed ({why}); give a model of another type"
    )


def _grouped(
    model: Any, stored: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> list[Filling]:
    """Group stored tensors by the tensors of the model that they become, as its loader does."""
    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    of_target: dict[str, list[tuple[str, str | None]]] = {}
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(
            name, renamings, converters, model.base_model_prefix, dict(state)
        )
        if target not in state and name in state:
            target, pattern = name, None
        of_target.setdefault(target, []).append((name, pattern))
    found = []
    for target, members in of_target.items():
        sources = {name: tuple(stored[name].shape) for name, _ in members}
        patterns = tuple(pattern for _, pattern in members if pattern is not None)
        if not patterns:
            [name] = sources
            found.append(Filling((target,), {name: sources[name]}))
            continue
        converter = by_pattern[patterns[0]]
        targets = tuple(
            target.replace(converter.target_patterns[0], each, 1)
            for each in converter.target_patterns
        )
        found.append(Filling(targets, sources, patterns, converter))
    return found


def stored_shapes(fillings: Sequence[Filling]) -> dict[str, Shape]:
    """Give the shapes of all tensors of a checkpoint by name."""
    return {name: shape for filling in fillings for name, shape in filling.sources.items()}
