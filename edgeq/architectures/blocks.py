"""Find the decoder blocks of a checkpoint, and check that its tensors are those of the model."""

import re
from collections.abc import Mapping, Sequence

from edgeq.decoder import Decoder, Shape
from edgeq.errors import BadInput
from edgeq.types import BlockSpec

Shapes = Mapping[str, Shape]


def find_blocks(decoder: Decoder, shapes: Shapes) -> tuple[BlockSpec, ...]:
    """Find the blocks of a checkpoint in execution order, and check all its tensors.

    Raises: BadInput if a block or tensor is missing, has no place in the model or another shape.
    """
    in_block = re.compile(rf"{re.escape(decoder.blocks)}\.(\d{{1,6}})\.")
    members: dict[int, list[str]] = {}
    for name in shapes:
        if match := in_block.match(name):
            members.setdefault(int(match[1]), []).append(name)
    check_block_count(sorted(members), len(decoder.layers))
    check_shapes(decoder, shapes)
    return tuple(make_block(decoder, index, members[index]) for index in sorted(members))


def make_block(decoder: Decoder, index: int, tensors: Sequence[str]) -> BlockSpec:
    """Name what lies in one block."""
    name = decoder.block_name(index)
    linears = tuple(linear.inside(name) for linear in decoder.layers[index].linears)
    return BlockSpec(index, name, linears, tuple(tensors))


def check_block_count(indices: Sequence[int], expected: int) -> None:
    """Refuse a gap between blocks, and more or fewer than the config says.

    Raises: BadInput.
    """
    first_gap = next((place for place, index in enumerate(indices) if place != index), len(indices))
    if first_gap < expected:
        raise BadInput(
            f"block {first_gap} of {expected} has no tensors; "
            "the checkpoint is incomplete, fetch or make it again"
        )
    if indices[-1] >= expected:
        raise BadInput(
            f"the checkpoint holds {len(indices)} blocks "
            f"but config says num_hidden_layers {expected}; correct config.json"
        )


def check_shapes(decoder: Decoder, shapes: Shapes) -> None:
    """Compare all tensors with the model's.

    Raises: BadInput naming the first that differs.
    """
    expected = decoder.tensor_shapes()
    for name, shape in expected.items():
        if name not in shapes:
            raise BadInput(
                f"tensor {name!r} is missing; the checkpoint is incomplete, fetch or make it again"
            )
        if shapes[name] != shape:
            raise BadInput(
                f"tensor {name!r} has shape {shapes[name]} but config asks for {shape}; "
                "use the config.json that belongs to these weights"
            )
    for name in shapes:
        if name not in expected and not decoder.is_redundant(name):
            raise BadInput(_no_place(name, decoder))


def _no_place(name: str, decoder: Decoder) -> str:
    return (
        f"tensor {name!r} has no place in a {decoder.model_type} model with this config, "
        f"whose blocks hold {', '.join(decoder.layers[0].tensor_shapes())}; "
        f"{advice_for(name, decoder)}"
    )


def advice_for(tensor: str, decoder: Decoder, otherwise: str | None = None) -> str:
    """Say what to change about a tensor that the model has no place for."""
    if tensor.endswith(".bias") and decoder.bias_keys:
        return f"for biases set {' or '.join(decoder.bias_keys)} in config.json"
    return otherwise or "use the config.json that belongs to these weights"
