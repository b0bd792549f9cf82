"""Describe any decoder that transformers can run, from the empty model of its config.

Families with a file in `edgeq.architectures.families` are described there, with all that runtimes
ask for. Here are names, shapes and the order of layers, which is what a solver needs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers.core_model_loading import Concatenate, MergeModulelist
from transformers.pytorch_utils import Conv1D

from edgeq.decoder import Decoder, Layer, Norm, Shape
from edgeq.errors import UnsupportedModel
from edgeq.runtime_names import RuntimeNames
from edgeq.types import LinearSpec
from edgeq_backends.torch.empty import empty_model
from edgeq_backends.torch.names import Filling, fillings_of, stored_shapes
from edgeq_backends.torch.recording import Structure, is_mixture, record_structure

SMALLEST = 32
"""Rows and columns that a solved layer has at least: no format packs narrower ones."""


@dataclass(frozen=True, slots=True)
class Outline:
    """An empty model, what one pass through it shows, and what its tensors are read from."""

    model: Any
    structure: Structure
    fillings: Sequence[Filling]

    def source_of(self, tensor: str) -> str | None:
        """Name the one tensor of a checkpoint that is a tensor of the model; None if it is made."""
        for filling in self.fillings:
            if tensor in filling.targets and filling.converter is None:
                return next(iter(filling.sources))
        return None


def outline_of(config: Mapping[str, Any]) -> Outline:
    """Make the outline of a config, once for equal configs.

    Raises: UnsupportedModel or BadInput.
    """
    if config.get("model_type") is None:
        raise UnsupportedModel("model_type None says no kind of model; state it in config.json")
    return _outline(json.dumps(dict(config), sort_keys=True))


@lru_cache(maxsize=4)
def _outline(config: str) -> Outline:
    model = empty_model(json.loads(config), tables=False)
    return Outline(model, record_structure(model), fillings_of(model))


def describe(config: Mapping[str, Any]) -> Decoder:
    """Describe the decoder of a config.

    Raises: UnsupportedModel for a model that transformers does not know or that is no decoder whose
    blocks run one after the other; BadInput for a config that transformers refuses.
    """
    outline = outline_of(config)
    model = outline.model
    text = model.config.get_text_config()
    shapes = stored_shapes(outline.fillings)
    names = _OuterNames.find(outline)
    blocks = names.blocks
    layers = []
    for index in range(len(outline.structure.runs)):
        start = f"{blocks}.{index}."
        inside = {
            name.removeprefix(start): shapes[name] for name in shapes if name.startswith(start)
        }
        layers.append(_describe_block(outline, index, start, inside))
    known = {names.embedding, names.head, names.norm}
    others = {
        name: shape
        for name, shape in shapes.items()
        if name not in known and not name.startswith(f"{blocks}.")
    }
    vocabulary, width = shapes[names.embedding]
    hidden = outline.structure.hidden
    if width != hidden:
        others[names.embedding] = others[names.head] = (vocabulary, width)
    return Decoder(
        model_type=str(config["model_type"]),
        hidden=hidden,
        vocabulary=vocabulary,
        layers=tuple(layers),
        tied_head=names.tied,
        names=RuntimeNames(transformers=type(model).__name__),
        context=_size(text, "max_position_embeddings"),
        embedding=names.embedding,
        blocks=blocks,
        final_norm=names.norm,
        head=names.head,
        others=others,
        passed_over=tuple(model._keys_to_ignore_on_load_unexpected or ()),
    )


@dataclass(frozen=True, slots=True)
class _OuterNames:
    """Names, in checkpoints, of what lies around the blocks, and of the blocks themselves."""

    embedding: str
    head: str
    norm: str
    blocks: str
    tied: bool

    @classmethod
    def find(cls, outline: Outline) -> "_OuterNames":
        model = outline.model
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        paths = {id(module): path for path, module in model.named_modules()}
        if head is None or embedding is None:
            raise _odd(model, "no embedding, or no head that predicts tokens")
        stored = [outline.source_of(f"{paths[id(module)]}.weight") for module in (embedding, head)]
        if None in stored:
            raise _odd(model, "an embedding or a head that files hold in another form")
        norms = [
            f"{path}.weight"
            for path in outline.structure.after
            if is_norm(model.get_submodule(path))
        ]
        norm = outline.source_of(norms[0]) if norms else None
        tied = embedding.weight is head.weight
        return cls(str(stored[0]), str(stored[1]), norm or "", _stored_blocks(outline), tied)


def _stored_blocks(outline: Outline) -> str:
    """Name the list of blocks as checkpoints do.

    Raises: UnsupportedModel where their tensors do not lie block by block.
    """
    path = outline.structure.blocks
    found = set()
    for filling in outline.fillings:
        inner = [name for name in filling.targets if name.startswith(f"{path}.")]
        if inner:
            index = inner[0].removeprefix(f"{path}.").partition(".")[0]
            found |= {
                name.partition(f".{index}.")[0] if f".{index}." in name else None
                for name in filling.sources
            }
    if len(found) != 1 or None in found:
        raise _odd(outline.model, "tensors that do not lie in checkpoints block by block")
    return str(found.pop())


def _describe_block(outline: Outline, index: int, start: str, inside: Mapping[str, Shape]) -> Layer:
    """Describe one block; inside has its tensors by their names in it, start is its own name."""
    path = f"{outline.structure.blocks}.{index}"
    block = outline.model.get_submodule(path)
    fillings = [
        each for each in outline.fillings if any(t.startswith(f"{path}.") for t in each.targets)
    ]
    by_target = {
        target.removeprefix(f"{path}."): each for each in fillings for target in each.targets
    }

    def stored(target: str) -> str | None:
        filling = by_target.get(target)
        if filling is None or filling.converter is not None:
            return None
        return next(iter(filling.sources)).removeprefix(start)

    mixtures = {name: module for name, module in block.named_modules() if is_mixture(module)}
    sites: list[tuple[LinearSpec, ...]] = []
    for site in outline.structure.runs[index].sites():
        plain = []
        for name in site:
            module = block.get_submodule(name)
            if is_mixture(module):
                sites += _expert_sites(name, module, by_target, start)
            elif not _is_switch(name, module, mixtures):
                spec = _linear_spec(
                    module, stored(f"{name}.weight"), stored(f"{name}.bias"), inside
                )
                plain += [] if spec is None else [spec]
        if plain:
            sites.append(tuple(plain))
    norms = []
    for name, module in block.named_modules():
        weight, bias = stored(f"{name}.weight"), stored(f"{name}.bias")
        if is_norm(module) and weight is not None:
            norms.append(Norm(weight, inside[weight][0], bias=bias))
    layer = Layer(None, None, tuple(sites), tuple(norms))
    known = layer.tensor_shapes()
    others = {name: shape for name, shape in inside.items() if name not in known}
    return Layer(None, None, tuple(sites), tuple(norms), others)


def _linear_spec(
    module: torch.nn.Module, weight: str | None, bias: str | None, inside: Mapping[str, Shape]
) -> LinearSpec | None:
    """Describe a linear layer; None for one that stays dense.

    So does a layer that is very narrow, and one that no single tensor of a checkpoint holds.
    """
    if weight is None:
        return None
    name, shape = weight.removesuffix(".weight"), inside[weight]
    first, second = shape
    if min(shape) < SMALLEST:
        return None
    if isinstance(module, Conv1D):
        return LinearSpec(name, weight, (second, first), bias, transposed=True, stored=shape)
    return LinearSpec(name, weight, (first, second), bias)


def _is_switch(name: str, module: Any, mixtures: Mapping[str, Any]) -> bool:
    """Say whether a linear layer decides which experts a token passes, or how much of them.

    It stands beside its experts; a layer of attention may have as many rows by chance.
    """
    for path, mixture in mixtures.items():
        beside = name.startswith(path.rpartition(".")[0] + ".") and ".experts" not in name
        if beside and module.weight.shape[0] in {1, expert_count(mixture)}:
            return True
    return False


def expert_count(mixture: torch.nn.Module) -> int:
    """Count the experts of a mixture: all its stacks have one matrix for each."""
    return next(each.shape[0] for each in mixture.parameters() if each.ndim == 3)


def _expert_sites(
    name: str, mixture: Any, by_target: Mapping[str, Filling], start: str
) -> list[tuple[LinearSpec, ...]]:
    """Describe the layers of all experts: expert after expert, first what reads the input."""
    sites = []
    for leaf in ("gate_up_proj", "up_proj", "down_proj"):
        filling = by_target.get(f"{name}.{leaf}")
        if filling is None:
            continue
        bias = by_target.get(f"{name}.{leaf}_bias")
        for expert in range(expert_count(mixture)):
            specs = _expert_specs(filling, bias, expert, start, transposed=mixture.is_transposed)
            sites.append((expert, specs))
    return [specs for _, specs in sorted(sites, key=lambda site: site[0])]


def _expert_specs(
    filling: Filling, bias: Filling | None, expert: int, start: str, *, transposed: bool
) -> tuple[LinearSpec, ...]:
    """Describe what files hold of one expert in a stack of the model.

    Raises: UnsupportedModel for a stack that is made of tensors in a way which is not known here.
    """
    if filling.converter is None:
        [(tensor, shape)] = filling.sources.items()
        tensor = tensor.removeprefix(start)
        parent, _, leaf = tensor.removesuffix(".weight").rpartition(".")
        parent = parent if "expert" in parent else f"{parent}.experts"
        _, first, second = shape
        out, columns = (second, first) if transposed else (first, second)
        return (
            LinearSpec(
                f"{parent}.{expert}.{leaf}",
                tensor,
                (out, columns),
                None if bias is None else next(iter(bias.sources)).removeprefix(start),
                transposed=transposed,
                expert=expert,
                stored=shape,
            ),
        )
    kinds = [type(each) for each in filling.converter.operations]
    if kinds not in ([MergeModulelist], [MergeModulelist, Concatenate]) or transposed:
        raise UnsupportedModel(
            f"experts that are made by {', '.join(kind.__name__ for kind in kinds)} "
            "are not supported; give a model with another mixture of experts"
        )
    count = len(filling.sources) // len(set(filling.patterns))
    specs = []
    for pattern in filling.converter.source_patterns:
        of_pattern = [
            item
            for item, own in zip(filling.sources.items(), filling.patterns, strict=True)
            if own == pattern
        ]
        assert len(of_pattern) == count, "each expert has one tensor of each kind"
        tensor, shape = of_pattern[expert]
        tensor = tensor.removeprefix(start)
        rows, columns = shape
        specs.append(
            LinearSpec(tensor.removesuffix(".weight"), tensor, (rows, columns), expert=expert)
        )
    return tuple(specs)


def is_norm(module: torch.nn.Module) -> bool:
    """Say whether a module is a norm with one weight for each column."""
    weight = module._parameters.get("weight")
    return "norm" in type(module).__name__.lower() and weight is not None and weight.ndim == 1


def _size(config: Any, key: str) -> int | None:
    value = getattr(config, key, None)
    return value if isinstance(value, int) and value > 0 else None


def _odd(model: Any, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"model_type '{model.config.model_type}' has {what}; give a model of another type"
    )
