"""A transformers model whose parameters exist only while they are in use, fed tensor by tensor from a ModelSource."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM

from edgeq.errors import BadInput
from edgeq.protocols import ModelSource
from edgeq.tensors import read_weight
from edgeq.types import NumpyArray


class EndOfRecording(Exception):
    """Raised by the last pass-through block: what the model does after its blocks is not needed while recording."""


@dataclass(slots=True)
class Call:
    """What a model hands to a block besides the hidden states: masks, rotary tables and the like."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(slots=True)
class Parameter:
    """One parameter and everywhere it is used (a tied matrix is used twice)."""

    name: str
    shape: tuple[int, ...]
    places: list[tuple[torch.nn.Module, str]] = field(default_factory=list)


class PassThrough(torch.nn.Module):
    """Stands in for a block: notes each call while recording, and returns `result` or the hidden states it got."""

    def __init__(self, block: torch.nn.Module, *, last: bool) -> None:
        super().__init__()
        object.__setattr__(self, "block", block)  # not a child module: the block's parameters are filled apart
        self.last = last
        self.calls: list[Call] = []
        self.inputs: list[torch.Tensor] = []
        self.recording = False
        self.result: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.recording:
            self.calls.append(Call(args, kwargs))
            self.inputs.append(hidden_states)
            if self.last:
                raise EndOfRecording
        return hidden_states if self.result is None else self.result

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # models ask their blocks for the kind of attention
            return getattr(object.__getattribute__(self, "block"), name)


class StreamedModel:
    """The model's own code, in float32 on one device, with parameters only where they are in use."""

    def __init__(self, source: ModelSource, device: str) -> None:
        self.source, self.device = source, torch.device(device)
        self.specs = source.blocks()
        self.model = empty_model(source)
        self.blocks = [self.model.get_submodule(spec.name) for spec in self.specs]
        self._of_block = [parameters_of(block, spec.name) for block, spec in zip(self.blocks, self.specs, strict=True)]
        self.places = []
        for spec, block in zip(self.specs, self.blocks, strict=True):
            self.places.append(PassThrough(block, last=spec is self.specs[-1]))
            self.model.set_submodule(spec.name, self.places[-1])
        self._outer = parameters_of(self.model, "")
        for module in (self.model, *self.blocks):
            move_buffers(module, self.device)

    def record(self, batches: list[torch.Tensor]) -> list[torch.Tensor]:
        """Note what every block gets besides hidden states, per batch; returns the hidden states before block 0."""
        for place in self.places:
            place.recording, place.calls, place.inputs = True, [], []
        with self._filled(self._outer):
            for ids in batches:
                try:
                    self.model(input_ids=ids, use_cache=False)
                except EndOfRecording:
                    pass
        embedded = self.places[0].inputs
        for place in self.places:
            place.recording, place.inputs = False, []
        return embedded

    @contextmanager
    def block(self, index: int) -> Iterator[torch.nn.Module]:
        """A block with its weights, freed on leaving."""
        with self._filled(self._of_block[index]):
            yield self.blocks[index]

    def run_block(self, index: int, batch: int, hidden_states: torch.Tensor) -> torch.Tensor:
        """One recorded batch through a filled block."""
        call = self.places[index].calls[batch]
        output = self.blocks[index](hidden_states, *call.args, **call.kwargs)
        hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return hidden

    def logits(self, batches: list[torch.Tensor], hidden: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Final norm and head by the model's own code, its blocks passing the finished hidden states on."""
        with self._filled(self._outer):
            for ids, states in zip(batches, hidden, strict=True):
                self.places[-1].result = states
                yield self.model(input_ids=ids, use_cache=False).logits
        self.places[-1].result = None

    @contextmanager
    def _filled(self, parameters: list[Parameter]) -> Iterator[None]:
        for parameter in parameters:
            weight = self.read(parameter)
            for module, leaf in parameter.places:
                module._parameters[leaf] = torch.nn.Parameter(weight, requires_grad=False)
        try:
            yield
        finally:
            for parameter in parameters:
                for module, leaf in parameter.places:
                    empty = torch.empty(parameter.shape, device="meta")
                    module._parameters[leaf] = torch.nn.Parameter(empty, requires_grad=False)

    def read(self, parameter: Parameter) -> torch.Tensor:
        """A parameter's values in float32. Raises: BadInput when the source's tensor has another shape."""
        weight = read_weight(self.source, parameter.name)
        if weight.shape != parameter.shape:
            raise BadInput(
                f"tensor {parameter.name!r}: shape {list(weight.shape)}, but config.json asks for "
                f"{list(parameter.shape)}; the two do not belong together"
            )
        return torch.from_numpy(np.ascontiguousarray(weight)).to(self.device)


def empty_model(source: ModelSource) -> torch.nn.Module:
    """The transformers model of a config, without parameters; its buffers (rotary tables) are real."""
    config = AutoConfig.for_model(**dict(source.config))
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.tie_weights()
    empty: torch.nn.Module = model.eval()
    return empty


def parameters_of(module: torch.nn.Module, prefix: str) -> list[Parameter]:
    """Every parameter once, under the name that checkpoints use, with all places that share it."""
    found: dict[int, Parameter] = {}
    for path, owner in module.named_modules():
        for leaf, parameter in owner._parameters.items():
            if parameter is None:
                continue
            name = ".".join(part for part in (prefix, path, leaf) if part)
            known = found.setdefault(id(parameter), Parameter(name, tuple(parameter.shape)))
            known.places.append((owner, leaf))
    return list(found.values())


def move_buffers(module: torch.nn.Module, device: torch.device) -> None:
    """Rotary tables and the like; parameters stay where they are."""
    for child in module.modules():
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = buffer.to(device)


def token_batches(windows: NumpyArray, device: str, tokens_per_batch: int) -> list[torch.Tensor]:
    """Whole windows grouped so that a batch has about tokens_per_batch tokens. Shapes: (windows, length)."""
    per_batch = max(1, tokens_per_batch // windows.shape[1])
    return [
        torch.from_numpy(windows[start : start + per_batch].astype(np.int64)).to(device)
        for start in range(0, len(windows), per_batch)
    ]
