"""Run a transformers model whose parameters exist only while they are in use.

They are read tensor by tensor from a ModelSource; the schedule of a calibration is up to
`edgeq.streams`.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import logging as library

from edgeq.errors import BadInput, reason_of
from edgeq.protocols import ModelSource
from edgeq.sources.reading import read_weight
from edgeq.streams.blockwise import Place, record_calls
from edgeq.streams.routing import flat_places
from edgeq.streams.schedule import Stop, stand_at
from edgeq.types import BlockSpec, NumpyArray
from edgeq_backends.torch.backend import aligned, find_device
from edgeq_backends.torch.experts import ExpertLayer, halting_experts

KEPT_KEYS = {
    "model_type",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "rope_scaling",
}
FORM_KEYS = {
    "gradient_checkpointing",
    "attention_dropout",
    "use_cache",
    "cache_implementation",
    "compile_config",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torchscript",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
    "dtype",
    "torch_dtype",
    "auto_map",
    "quantization_config",
    "watermarking_config",
    "assistant_ensemble_weight",
    "max_new_tokens",
    "mtp_layer_types",
}
"""Keys that say nothing of what a model computes, beside those of the library's own class."""


@dataclass(slots=True)
class Parameter:
    """One parameter and everywhere it is used (a tied matrix is used twice)."""

    name: str
    shape: tuple[int, ...]
    places: list[tuple[torch.nn.Module, str]] = field(default_factory=list)


class PassThrough(torch.nn.Module):
    """Stands where a block was."""

    def __init__(self, block: torch.nn.Module, place: Place) -> None:
        super().__init__()
        # not a child module: the block's parameters are filled apart
        object.__setattr__(self, "block", block)
        self.place = place

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden: torch.Tensor = self.place.pass_on(hidden_states, args, kwargs)
        return hidden

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # models ask their blocks for the kind of attention
            return getattr(object.__getattribute__(self, "block"), name)


class StreamedModel:
    """The model's own code, in float32 on one device.

    Parameters are there only where they are in use.
    """

    def __init__(self, source: ModelSource, device: str) -> None:
        self.source, self.device = source, find_device(device)
        self.specs = source.blocks()
        self.model = empty_model(source)
        self.blocks = [self.model.get_submodule(spec.name) for spec in self.specs]
        self._of_block = [
            parameters_of(block, spec.name)
            for block, spec in zip(self.blocks, self.specs, strict=True)
        ]
        self.places = [Place(last=spec is self.specs[-1]) for spec in self.specs]
        for spec, block, place in zip(self.specs, self.blocks, self.places, strict=True):
            self.model.set_submodule(spec.name, PassThrough(block, place))
        self._outer = parameters_of(self.model, "")
        embedding = embedding_of(self.model)
        self._embedding = [
            item for item in self._outer if any(place[0] is embedding for place in item.places)
        ]
        for module in (self.model, *self.blocks):
            move_buffers(module, self.device)

    def record(self, batches: Sequence[NumpyArray]) -> Iterator[torch.Tensor]:
        """Note what every block gets besides hidden states.

        Yields the hidden states before block 0, per batch.
        """
        with self._filled(self._embedding):
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
            linears = {
                name: module.get_submodule(name.removeprefix(block.name + "."))
                for name in (linear.name for linear in block.linears if linear.expert is None)
            }
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

    def run_block(self, index: int, batch: int, hidden_states: torch.Tensor) -> torch.Tensor:
        """Run one recorded batch through a filled block."""
        call = self.places[index].calls[batch]
        output = self.blocks[index](hidden_states, *call.args, **call.kwargs)
        hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return hidden

    def to_numpy(self, hidden: torch.Tensor) -> NumpyArray:
        array: NumpyArray = hidden.cpu().numpy()
        return array

    def from_numpy(self, hidden: NumpyArray) -> torch.Tensor:
        return aligned(hidden).to(self.device)

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
    def _filled(self, parameters: list[Parameter]) -> Iterator[None]:
        for parameter in parameters:
            weight = read_parameter(self.source, parameter, self.device)
            for module, leaf in parameter.places:
                module._parameters[leaf] = torch.nn.Parameter(weight, requires_grad=False)
        try:
            yield
        finally:
            for parameter in parameters:
                for module, leaf in parameter.places:
                    empty = torch.empty(parameter.shape, device="meta")
                    module._parameters[leaf] = torch.nn.Parameter(empty, requires_grad=False)


def embedding_of(model: Any) -> torch.nn.Module:
    """Find the embedding: all that runs before the blocks."""
    embedding: torch.nn.Module = model.get_input_embeddings()
    return embedding


def read_parameter(source: ModelSource, parameter: Parameter, device: torch.device) -> torch.Tensor:
    """Read a parameter's values in float32.

    Raises: BadInput when the source's tensor has another shape.
    """
    weight = read_weight(source, parameter.name)
    if weight.shape != parameter.shape:
        raise BadInput(
            f"tensor {parameter.name!r}: shape {list(weight.shape)}, "
            f"but config.json asks for {list(parameter.shape)}; the two do not belong together"
        )
    return aligned(weight).to(device)


def whole_model(source: ModelSource, device: str) -> torch.nn.Module:
    """Make the complete model with all its weights in float32."""
    model, place = empty_model(source), find_device(device)
    for parameter in parameters_of(model, ""):
        weight = read_parameter(source, parameter, place)
        for module, leaf in parameter.places:
            module._parameters[leaf] = torch.nn.Parameter(weight, requires_grad=False)
    move_buffers(model, place)
    return model


def empty_model(source: ModelSource) -> torch.nn.Module:
    """Make the transformers model of a config, without parameters but with its rotary tables.

    Raises: BadInput for a config that transformers refuses.
    """
    verbosity = library.get_verbosity()
    # what is wrong becomes an error; what is odd does not concern edgeq
    library.set_verbosity(logging.CRITICAL)
    try:
        config = AutoConfig.for_model(**computed_keys(source.record.settled_config()))
        with init_empty_weights(include_buffers=False):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.tie_weights()
    # the library checks configs in many places, each with an exception of its own
    except Exception as error:
        raise BadInput(
            f"config.json of model {source.record.name!r}: "
            f"transformers refuses it ({type(error).__name__}: {reason_of(error)}); "
            "use the config.json that belongs to these weights"
        ) from error
    finally:
        library.set_verbosity(verbosity)
    empty: torch.nn.Module = model.eval()
    return empty


def computed_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a config what concerns training, saving and the form of outputs.

    A model computes the same without these keys, and forward passes know one form of outputs. A key
    that has the name of something of the library's own class would take its place.
    """
    kind = CONFIG_MAPPING[config["model_type"]]
    own = {*signature(kind).parameters} - {*signature(PreTrainedConfig).parameters}
    kept = own.difference(FORM_KEYS) | KEPT_KEYS
    return {
        key: value
        for key, value in config.items()
        if key in kept or not (key in FORM_KEYS or hasattr(PreTrainedConfig, key))
    }


def parameters_of(module: torch.nn.Module, prefix: str) -> list[Parameter]:
    """List every parameter once, by its name in checkpoints, with all places that share it."""
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
    """Move rotary tables and the like to a device; parameters stay where they are."""
    for child in module.modules():
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = buffer.to(device)


def halt(name: str, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
    """Halt a pass: the hook that runs just before a linear layer."""
    x: torch.Tensor = args[0]
    stand_at(Stop(name, x, flat_places(len(x)) if x.ndim == 2 else None))


def set_weight(
    linears: Mapping[str, torch.nn.Module | ExpertLayer], layer: str, W: Any
) -> torch.Tensor:
    """Set the weight, a NumPy array or a tensor, that a layer computes with from here on.

    Gives the weight that it had before.
    """
    linear = linears[layer]
    if isinstance(linear, ExpertLayer):
        return linear.set_weight(W)
    old = linear._parameters["weight"]
    assert old is not None
    new = aligned(W) if isinstance(W, np.ndarray) else W
    weight = new.to(device=old.device, dtype=old.dtype)
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    return old
