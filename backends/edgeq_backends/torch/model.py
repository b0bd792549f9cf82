"""Run a transformers model whose parameters exist only while they are in use.

They are read tensor by tensor from a ModelSource; the schedule of a calibration is up to
`edgeq.streams`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from edgeq.errors import BadInput
from edgeq.protocols import ModelSource
from edgeq.streams.blockwise import Call, Place, record_calls
from edgeq.streams.schedule import stand_still
from edgeq.types import BlockSpec, NumpyArray, QuantizedLinear
from edgeq_backends.torch.backend import aligned, find_device
from edgeq_backends.torch.crossing import as_numpy, fetch, from_numpy
from edgeq_backends.torch.dequantizing import dequantize
from edgeq_backends.torch.empty import empty_model
from edgeq_backends.torch.experts import ExpertLayer, halting_experts
from edgeq_backends.torch.names import Filling, stored_shapes
from edgeq_backends.torch.reading import WeightReader
from edgeq_backends.torch.structure import Outline, outline_of

HANDED = "_handed_by_blocks"
"""The attribute of hidden states that has what blocks hand to later ones beside them."""
Slots = list[tuple[torch.nn.Module, str]]
"""Everywhere that one tensor is used, by module and name in it (a tied matrix is used twice)."""


class PassThrough(torch.nn.Module):
    """Stands where a block was; gives as many parts as the block does."""

    def __init__(self, block: torch.nn.Module, place: Place, parts: int | None) -> None:
        super().__init__()
        # not a child module: the block's parameters are filled apart
        object.__setattr__(self, "block", block)
        self.place, self.parts = place, parts

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        hidden: torch.Tensor = self.place.pass_on(hidden_states, args, kwargs)
        return hidden if self.parts is None else (hidden, *[None] * (self.parts - 1))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # models ask their blocks for the kind of attention
            return getattr(object.__getattribute__(self, "block"), name)


class StreamedModel:
    """The model's own code on one device, in float32 or a type with fewer digits.

    Parameters are there only where they are in use.
    """

    def __init__(self, source: ModelSource, device: str, kind: torch.dtype = torch.float32) -> None:
        self.source, self.device, self.kind = source, find_device(device), kind
        self._reader = WeightReader(source, self.device)
        self.specs = source.blocks()
        config = source.record.settled_config()
        self.model = empty_model(config, source.record.name)
        self.outline = outline_of(config)
        path, runs = self.outline.structure.blocks, self.outline.structure.runs
        self.blocks = list(self.model.get_submodule(path))
        self._slots = slots_of(self.model)
        used = fillings_in_use(self.outline, source, self._slots)
        self._of_block = [fillings_inside(used, f"{path}.{spec.index}.") for spec in self.specs]
        self._outer = [each for each in used if not each.targets[0].startswith(f"{path}.")]
        head = self.model.get_output_embeddings()
        self._before = [
            each
            for each in self._outer
            if any(owner is not head for name in each.targets for owner, _ in self._slots[name])
        ]
        self.places = [Place(last=spec is self.specs[-1]) for spec in self.specs]
        for spec, run, block, place in zip(self.specs, runs, self.blocks, self.places, strict=True):
            stand_in = PassThrough(block, place, run.parts if run.is_tuple else None)
            self.model.set_submodule(f"{path}.{spec.index}", stand_in)
        for module in (self.model, *self.blocks):
            move_buffers(module, self.device)

    def record(self, batches: Sequence[NumpyArray]) -> Iterator[torch.Tensor]:
        """Note what every block gets besides hidden states.

        All outer tensors but the head are there meanwhile: models have tables of positions, norms
        of embeddings and more that run before the blocks.

        Yields the hidden states before block 0, per batch.
        """
        with self._filled(self._before):
            yield from record_calls(self.places, self._run, batches)

    def _run(self, ids: NumpyArray) -> torch.Tensor:
        tokens = torch.from_numpy(ids.astype(np.int64)).to(self.device)
        logits: torch.Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits

    @contextmanager
    def block(self, index: int) -> Iterator[torch.nn.Module]:
        """Fill a block with its weights, and free them on leaving."""
        with self._filled(self._of_block[index]):
            yield self.blocks[index]

    @contextmanager
    def halting_block(self, block: BlockSpec) -> Iterator[Callable[[str, Any], torch.Tensor]]:
        """Fill a block whose forwards halt at each linear layer.

        Gives a function that exchanges a layer's weight.
        """
        with self.block(block.index) as module:
            for of_next in self._of_block[block.index + 1 : block.index + 2]:
                self._reader.expect(stored_shapes(of_next))
            linears = self._linear_modules(block)
            hooks = [
                linear.register_forward_pre_hook(partial(halt, name))
                for name, linear in linears.items()
            ]
            try:
                with halting_experts(block, module) as experts:
                    yield partial(set_weight, {**linears, **experts})
            finally:
                for hook in hooks:
                    hook.remove()

    def _linear_modules(self, block: BlockSpec) -> dict[str, torch.nn.Module]:
        """Find the modules of a block's linear layers by name; those of experts have none."""
        owners = {
            source: self._slots[each.targets[0]][0][0]
            for each in self._of_block[block.index]
            if each.converter is None
            for source in each.sources
        }
        return {
            linear.name: owners[linear.tensor] for linear in block.linears if linear.expert is None
        }

    def run_block(self, index: int, batch: int, hidden_states: torch.Tensor) -> torch.Tensor:
        """Run one recorded batch through a filled block."""
        call = self.places[index].calls[batch]
        handed = self._handed(index, call, hidden_states)
        output = self.blocks[index](hidden_states, *call.args, **{**call.kwargs, **handed})
        hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
        hidden = hidden.to(self.kind)  # some models keep what they add up in float32
        if handed:
            setattr(hidden, HANDED, handed)
        return hidden

    def _handed(self, index: int, call: Call, hidden_states: torch.Tensor) -> dict[str, Any]:
        """Give what earlier blocks hand to this one beside hidden states, as keys and values.

        It is bound to the hidden states of its own stream and batch, and copied, since a block runs
        several times.

        Raises: BadInput where the hidden states lay on disk or on the host of a device meanwhile,
        where no more than them is kept.
        """
        runs = self.outline.structure.runs
        names = sorted({name for run in runs for name in run.shared})
        kept = getattr(hidden_states, HANDED, None)
        if kept is None and any(run.shared for run in runs[:index]):
            raise BadInput(
                f"blocks of model {self.source.record.name!r} hand {', '.join(names)} to "
                "later blocks, and hidden states on disk or beside a device do not hold it; "
                "raise --max-ram or --max-vram, or start over where a run is continued"
            )
        handed = {}
        for name in names:
            handed[name] = type(call.kwargs[name])()
            handed[name].update({} if kept is None else kept[name])
        return handed

    def to_numpy(self, hidden: torch.Tensor) -> NumpyArray:
        return as_numpy(hidden.cpu())

    def from_numpy(self, hidden: NumpyArray) -> torch.Tensor:
        return from_numpy(hidden).to(self.device, self.kind)

    def fetch(self, hidden: torch.Tensor) -> Callable[[], NumpyArray]:
        """Start to bring hidden states to the host, behind all work that is queued by now."""
        return fetch(hidden)

    @property
    def fetches_copies(self) -> bool:
        return self.device.type != "cpu"

    def logits(
        self, batches: Sequence[NumpyArray], hidden: Sequence[torch.Tensor]
    ) -> Iterator[Iterator[NumpyArray]]:
        """Run final norm and head by the model's own code, its blocks passing states on."""
        with self._filled(self._outer):
            for ids, states in zip(batches, hidden, strict=True):
                self.places[-1].result = states
                yield (of_window.float().cpu().numpy() for of_window in self._run(ids))
        self.places[-1].result = None

    @contextmanager
    def _filled(self, fillings: Sequence[Filling]) -> Iterator[None]:
        for filling in fillings:
            fill(filling, self.outline, self._reader, self._slots, self.kind)
        try:
            yield
        finally:
            free(fillings, self._slots)


def slots_of(model: torch.nn.Module) -> dict[str, Slots]:
    """Find where parameters and saved buffers are used, by all their names in the model."""
    of_tensor: dict[int, Slots] = {}
    found = {}
    for path, owner in model.named_modules():
        saved = owner._buffers.keys() - owner._non_persistent_buffers_set
        tensors = {**owner._parameters, **{name: owner._buffers[name] for name in sorted(saved)}}
        for leaf, tensor in tensors.items():
            if tensor is not None:
                slots = of_tensor.setdefault(id(tensor), [])
                slots.append((owner, leaf))
                found[f"{path}.{leaf}" if path else leaf] = slots
    return found


def fillings_in_use(
    outline: Outline, source: ModelSource, slots: dict[str, Slots]
) -> list[Filling]:
    """List what a model is filled with: each of its tensors once, under whatever name it lies."""
    decoder = source.record.decoder
    claimed: set[int] = set()
    used = []
    for filling in outline.fillings:
        if any(decoder.is_redundant(name) for name in filling.sources):
            continue
        places = {id(slots[name]) for name in filling.targets}
        if not places <= claimed:
            claimed |= places
            used.append(filling)
    return used


def fillings_inside(fillings: Sequence[Filling], prefix: str) -> list[Filling]:
    """List those fillings that make tensors of a module; its name is the prefix, with a dot."""
    return [each for each in fillings if any(target.startswith(prefix) for target in each.targets)]


def fill(
    filling: Filling,
    outline: Outline,
    reader: WeightReader,
    slots: dict[str, Slots],
    kind: torch.dtype = torch.float32,
) -> None:
    """Read what makes up tensors of a model, and put them everywhere that they are used.

    Parameters are in `kind`, but for those that the model's code keeps in float32.

    Raises: BadInput when the source's tensor has another shape.
    """

    def read(name: str) -> torch.Tensor:
        return reader.read(name, filling.sources[name])

    for name, tensor in filling.convert(outline.model, read).items():
        for module, leaf in slots[name]:
            if leaf in module._parameters:
                module._parameters[leaf] = parameter(tensor.to(kind_of(name, outline.model, kind)))
            else:
                buffer = module._buffers[leaf]
                assert buffer is not None, "saved buffers are there before they are filled"
                module._buffers[leaf] = tensor.to(buffer.dtype)


def free(fillings: Sequence[Filling], slots: Mapping[str, Slots]) -> None:
    """Free the parameters that were filled; their shapes stay."""
    for filling in fillings:
        for name in filling.targets:
            for module, leaf in slots[name]:
                filled = module._parameters.get(leaf)
                if filled is not None:
                    module._parameters[leaf] = parameter(filled.to("meta"))


def kind_of(name: str, model: torch.nn.Module, kind: torch.dtype) -> torch.dtype:
    """Give the type of a parameter; models say by parts of names what they keep in float32."""
    for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
        for kept in getattr(model, attribute, None) or ():
            pattern = kept.replace(".", r"\.").replace("*", r"\d+")
            if re.search(rf"(^|\.){pattern}($|\.)", name):
                return torch.float32
    return kind


def parameter(tensor: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor, requires_grad=False)


def whole_model(source: ModelSource, device: str) -> torch.nn.Module:
    """Make the complete model with all its weights in float32."""
    config, place = source.record.settled_config(), find_device(device)
    model: torch.nn.Module = empty_model(config, source.record.name)
    outline = outline_of(config)
    slots, reader = slots_of(model), WeightReader(source, place)
    for filling in fillings_in_use(outline, source, slots):
        fill(filling, outline, reader, slots)
    move_buffers(model, place)
    return model


def move_buffers(module: torch.nn.Module, device: torch.device) -> None:
    """Move rotary tables and the like to a device; parameters stay where they are."""
    for child in module.modules():
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = buffer.to(device)


def halt(name: str, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
    """Halt a pass: the hook that runs just before a linear layer."""
    stand_still(name, args[0])


def set_weight(
    linears: Mapping[str, torch.nn.Module | ExpertLayer], layer: str, W: Any
) -> torch.Tensor:
    """Set the weight that a layer computes with from here on; give the one that it had before.

    W is a NumPy array, a tensor, or a solved layer, which is dequantized on the device.

    Shapes: (out, in), whatever the module holds.
    """
    module = linears[layer]
    held = module.weight
    assert isinstance(held, torch.Tensor)
    if isinstance(W, QuantizedLinear):
        W = dequantize(W, held.device)
    new = aligned(W) if isinstance(W, np.ndarray) else W
    if isinstance(module, ExpertLayer):
        return module.set_weight(new)
    old = module._parameters["weight"]
    assert old is not None
    is_transposed = isinstance(module, Conv1D)
    weight = new.to(device=old.device, dtype=old.dtype)
    weight = weight.T.contiguous() if is_transposed else weight
    module._parameters["weight"] = parameter(weight)
    return old.T if is_transposed else old
