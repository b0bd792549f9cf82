"""Make a transformers model whose blocks have weights only while they run, but for the first few.

Its forward is the library's own, with whatever a block keeps of a text, so it gives what the whole
model gives. Every forward reads the weights of the other blocks again.
"""

from functools import partial
from typing import Any

import torch

from edgeq.protocols import ModelSource
from edgeq_backends.torch.backend import find_device
from edgeq_backends.torch.empty import empty_model
from edgeq_backends.torch.model import (
    Slots,
    fill,
    fillings_in_use,
    fillings_inside,
    free,
    move_buffers,
    slots_of,
)
from edgeq_backends.torch.names import Filling
from edgeq_backends.torch.reading import WeightReader
from edgeq_backends.torch.structure import outline_of


def block_by_block(source: ModelSource, device: str, resident: int) -> torch.nn.Module:
    """Make a model in float32 of which only so many blocks keep their weights, the first ones."""
    config, place = source.record.settled_config(), find_device(device)
    model: torch.nn.Module = empty_model(config, source.record.name)
    outline = outline_of(config)
    slots, reader = slots_of(model), WeightReader(source, place)
    used = fillings_in_use(outline, source, slots)
    path = outline.structure.blocks
    passing: set[int] = set()

    def fill_all(fillings: list[Filling]) -> None:
        for each in fillings:
            fill(each, outline, reader, slots)

    for spec in source.blocks()[resident:]:
        own = fillings_inside(used, f"{path}.{spec.index}.")
        passing |= {id(each) for each in own}
        block = model.get_submodule(f"{path}.{spec.index}")
        block.register_forward_pre_hook(partial(_before, partial(fill_all, own)))
        block.register_forward_hook(partial(_after, own, slots), always_call=True)
    fill_all([each for each in used if id(each) not in passing])
    move_buffers(model, place)
    return model


def _before(fill_block: Any, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
    fill_block()


def _after(
    fillings: list[Filling],
    slots: dict[str, Slots],
    module: torch.nn.Module,
    args: tuple[Any, ...],
    output: Any,
) -> None:
    free(fillings, slots)
