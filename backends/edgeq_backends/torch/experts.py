"""Run a mixture of experts so that passes halt at the layers of one expert after another.

transformers stacks the weights of all experts, and visits those that some token reaches. Here every
batch visits all of them, in order and perhaps without tokens, so that all batches stand at one
layer. What is computed is the same.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from edgeq.errors import UnsupportedModel
from edgeq.streams.routing import Choices, Pass, running_pass
from edgeq.streams.schedule import Stop, stand_at
from edgeq.types import BlockSpec, LinearSpec


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """A linear layer of an expert: rows of a matrix in one of a module's stacks.

    transposed: the stack has inputs before outputs.
    """

    name: str
    module: Any
    stack: str
    expert: int
    rows: slice
    transposed: bool

    @property
    def weight(self) -> torch.Tensor:
        """Find the weight in its stack, without a copy.

        Shapes: (out, in).
        """
        matrix: torch.Tensor = getattr(self.module, self.stack).data[self.expert]
        return (matrix.T if self.transposed else matrix)[self.rows]

    def set_weight(self, W: torch.Tensor) -> torch.Tensor:
        """Set the weight that the layer computes with from here on; give the one before."""
        old = self.weight.clone()
        self.weight.copy_(W)
        return old

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        bias = None
        if self.module.has_bias:
            bias = getattr(self.module, f"{self.stack}_bias")[self.expert, self.rows]
        return torch.nn.functional.linear(x, self.weight, bias)


@dataclass(frozen=True, slots=True)
class Expert:
    """The layers of one expert: those that read the mixture's input, and the one behind them."""

    inner: tuple[ExpertLayer, ...]
    down: ExpertLayer

    @property
    def sample(self) -> str:
        """Name the stop at which inputs of the last layer are shown that others' tokens make."""
        return f"{self.down.name}, of any token"

    def ways(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Give the way to each stop of the expert from the mixture's input."""
        names = [*(layer.name for layer in self.inner), self.sample, self.down.name]
        return ((name, tuple(names[:place])) for place, name in enumerate(names))


def is_mixture(module: torch.nn.Module) -> bool:
    """Say whether a module holds stacked experts that transformers describes by its flags."""
    return hasattr(module, "has_gate") and hasattr(module, "down_proj")


class HaltingExperts:
    """The experts of one block, in passes that halt; linears are their layers, expert by expert.

    Those of an expert come in execution order, the ones that read the mixture's input as their rows
    lie in its stack.

    Raises: UnsupportedModel where they do not fit the block's module.
    """

    def __init__(self, block: str, module: torch.nn.Module, linears: Sequence[LinearSpec]) -> None:
        found = [(name, each) for name, each in module.named_modules() if is_mixture(each)]
        if len(found) != 1:
            raise UnsupportedModel(
                f"block {block!r} holds {len(found)} mixtures of stacked experts, where one can be "
                "followed; give a model of another type"
            )
        path, self._module = found[0]
        self._name = f"{block}.{path}"
        self._experts = tuple(
            make_expert(self._module, [each for each in linears if each.expert == number])
            for number in range(count_experts(self._module))
        )
        self._choices = Choices()
        self.layers = {
            layer.name: layer for each in self._experts for layer in (*each.inner, each.down)
        }
        self._ways = {name: way for each in self._experts for name, way in each.ways()}
        self._owner = {name: each for each in self._experts for name, _ in each.ways()}

    @contextmanager
    def installed(self, forward: Callable[..., torch.Tensor] | None = None) -> Iterator[None]:
        """Let the module compute by `forward`, or by another function, meanwhile."""
        self._module.forward = forward or self.forward
        try:
            yield
        finally:
            del self._module.forward

    @torch.no_grad()
    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: Any) -> torch.Tensor:
        """Compute what transformers does, and halt on the way.

        Shapes: hidden (tokens, in); chosen and weights (tokens, experts a token reaches).
        """
        now = running_pass()
        self._choices.note(now, chosen)
        lends = tuple(layer.name for each in self._experts for layer in each.inner)
        enter = partial(self._enter, now)
        tokens = now.tokens(np.arange(len(hidden)))
        # a view is an object of its own: what else reads this input is no layer of this stop
        stand_at(Stop(self._name, hidden.view_as(hidden), tokens, lends, self._ways, enter))
        output = torch.zeros_like(hidden)
        for expert in self._experts:
            own, slots = torch.where(chosen == expert.down.expert)
            result = self._visit(now, expert, hidden)
            output.index_add_(0, own, result * weights[own, slots, None].to(result.dtype))
        return output

    def traced(
        self,
        note: Callable[[str, torch.Tensor, torch.Tensor], None],
        hidden: torch.Tensor,
        chosen: torch.Tensor,
        weights: Any,
    ) -> torch.Tensor:
        """Compute what transformers does, and show what each layer gives for which tokens.

        Shapes: hidden (tokens, in); chosen and weights (tokens, experts a token reaches).
        """
        output = torch.zeros_like(hidden)
        for expert in self._experts:
            own, slots = torch.where(chosen == expert.down.expert)
            if not len(own):
                continue
            parts = []
            for layer in expert.inner:
                parts.append(layer(hidden[own]))
                note(layer.name, parts[-1], own)
            result = expert.down(activate(self._module, torch.cat(parts, -1)))
            note(expert.down.name, result, own)
            if has_norm(self._module):
                result = self._module.post_expert_norm(result)
            weighted = result * weights[own, slots, None].to(result.dtype)
            output = output.index_add(0, own, weighted)
        return output

    @torch.no_grad()
    def _enter(self, now: Pass, hidden: torch.Tensor, layer: str) -> None:
        """Halt at the stops of the one expert that a layer belongs to, and of no other."""
        self._visit(now, self._owner[layer], hidden)

    def _visit(self, now: Pass, expert: Expert, hidden: torch.Tensor) -> torch.Tensor:
        """Run the tokens of an expert through it; stops get those whose moments it has.

        Shapes: hidden (tokens, in); gives (tokens that its router sends here, out).
        """
        own = reaching(expert, self._choices.own(now))
        counted = reaching(expert, self._choices.of_moments(now))
        sample = now.sample(len(hidden), expert.down.weight.shape[1])
        sampled = torch.from_numpy(sample).to(hidden.device)
        needed = torch.unique(torch.cat([own, counted, sampled]))
        tokens = now.tokens(counted.cpu().numpy())
        shown, parts = hidden[counted], []
        for layer in expert.inner:
            stand_at(Stop(layer.name, shown, tokens))
            parts.append(layer(hidden[needed]))
        inner = activate(self._module, torch.cat(parts, -1))
        of_sample = inner[torch.searchsorted(needed, sampled)]
        stand_at(Stop(expert.sample, of_sample, now.tokens(sample), (expert.down.name,)))
        shown = inner[torch.searchsorted(needed, counted)]
        stand_at(Stop(expert.down.name, shown, tokens))
        output = expert.down(inner[torch.searchsorted(needed, own)])
        return self._module.post_expert_norm(output) if has_norm(self._module) else output


@contextmanager
def halting_experts(block: BlockSpec, module: torch.nn.Module) -> Iterator[dict[str, ExpertLayer]]:
    """Let the passes of a filled block halt at the layers of its experts, if it has any.

    Gives these layers by name.
    Raises: UnsupportedModel as `HaltingExperts` does.
    """
    linears = [linear for linear in block.linears if linear.expert is not None]
    if not linears:
        yield {}
        return
    experts = HaltingExperts(block.name, module, linears)
    with experts.installed():
        yield experts.layers


@contextmanager
def traced_experts(
    block: BlockSpec,
    module: torch.nn.Module,
    note: Callable[[str, torch.Tensor, torch.Tensor], None],
) -> Iterator[None]:
    """Let the experts of a filled block, if it has any, show what each of their layers gives.

    note gets a layer's name, its output, and the numbers of its tokens; gradients can be taken back
    through all of them.

    Raises: UnsupportedModel as `HaltingExperts` does.
    """
    linears = [linear for linear in block.linears if linear.expert is not None]
    if not linears:
        yield
        return
    experts = HaltingExperts(block.name, module, linears)
    with experts.installed(partial(experts.traced, note)):
        yield


def reaching(expert: Expert, chosen: torch.Tensor) -> torch.Tensor:
    """List the tokens that a router sends to an expert, in their order.

    Shapes: chosen (tokens, experts a token reaches).
    """
    return torch.where((chosen == expert.down.expert).any(-1))[0]


def count_experts(module: Any) -> int:
    count: int = module.down_proj.shape[0]
    return count


def has_norm(module: torch.nn.Module) -> bool:
    return bool(getattr(module, "has_post_expert_norm", False))


def activate(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Make of the products with an expert's first layers the input of its last one."""
    found: torch.Tensor = module._apply_gate(x) if module.has_gate else module.act_fn(x)
    return found


def make_expert(module: Any, linears: Sequence[LinearSpec]) -> Expert:
    """Find the layers of one expert in the stacks of their module.

    Raises: UnsupportedModel where the two have other shapes.
    """
    stack = "gate_up_proj" if module.has_gate else "up_proj"
    *inner, down = linears
    ends = np.cumsum([0, *(linear.shape[0] for linear in inner)]).tolist()
    make = partial(make_layer, module)
    layers = [
        make(stack, linear, slice(*rows))
        for linear, rows in zip(inner, pairwise(ends), strict=True)
    ]
    expert = Expert(tuple(layers), make("down_proj", down, slice(None)))
    for linear, layer in zip(linears, (*layers, expert.down), strict=True):
        if tuple(layer.weight.shape) != linear.shape:
            raise UnsupportedModel(
                f"layer {linear.name!r} has shape {list(linear.shape)}, but "
                f"{type(module).__name__} has {list(layer.weight.shape)} in its place; "
                "give a model of another type"
            )
    return expert


def make_layer(module: Any, stack: str, linear: LinearSpec, rows: slice) -> ExpertLayer:
    assert linear.expert is not None
    return ExpertLayer(linear.name, module, stack, linear.expert, rows, bool(module.is_transposed))
