"""Run an empty model once, to see its blocks, and which linear layers run in what order.

Nothing is computed: tensors have shapes and no values.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from edgeq.errors import UnsupportedModel, reason_of
from edgeq_backends.torch.empty import quiet_library

TOKENS = 4
LINEAR = (torch.nn.Linear, Conv1D)
DEPTH = 3  # of containers inside of one another, among what models hand to blocks
HIDDEN = "hidden_states"
"""The name of what blocks pass on, where it is given by name."""


class Guesses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers what a tensor without values is asked: any scalar is 1 or true, and nothing is found.

    So texts are one sequence, no longer than a model was made for, and no expert is chosen.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype).item()
        if func is torch.ops.aten.nonzero.default and args[0].is_meta:
            return torch.empty(0, args[0].dim(), dtype=torch.long, device="meta")
        return func(*args, **(kwargs or {}))


@dataclass(slots=True)
class BlockRun:
    """One pass through a block: its layers in order, by the input that they read.

    calls has each linear layer or mixture of experts by its name in the block, with what it read.
    parts counts what the block gives: 1 for hidden states alone, more for a tuple with them first.
    shared has the arguments that the block changes for blocks after it, with their types; follows
    says whether it reads what the block before it gives, and nothing else of blocks.
    """

    calls: list[tuple[str, Any]] = field(default_factory=list)
    runs: int = 0
    entered: Any = None
    left: Any = None
    parts: int = 1
    is_tuple: bool = False
    shared: dict[str, type] = field(default_factory=dict)
    follows: bool = True
    beside: list[Any] = field(default_factory=list)
    before: dict[str, list[int]] = field(default_factory=dict)

    def sites(self) -> list[list[str]]:
        """Group the layers that read one input one after the other; each of them runs once."""
        counts = Counter(name for name, _ in self.calls)
        found: list[list[str]] = []
        last = None
        for name, x in self.calls:
            if counts[name] > 1:
                continue
            if last is not None and x is last:
                found[-1].append(name)
            else:
                found.append([name])
            last = x
        return found


@dataclass(frozen=True, slots=True)
class Structure:
    """What one pass through a model shows.

    blocks is the path of the list of blocks, runs their passes, after the modules that ran behind
    the last one, hidden the width of what blocks pass on.
    """

    blocks: str
    runs: tuple[BlockRun, ...]
    after: tuple[str, ...]
    hidden: int


def find_block_list(model: torch.nn.Module) -> str:
    """Find the list of a model's blocks: of the outermost lists, the one with most weights.

    Raises: UnsupportedModel for a model without lists of modules.
    """
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module)
    }
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    if not outer:
        raise UnsupportedModel(
            f"{type(model).__name__} has no list of blocks that run one after the other; "
            "give a model of another type"
        )

    sizes = {path: sum(each.numel() for each in lists[path].parameters()) for path in outer}
    largest: str = max(sizes, key=sizes.__getitem__)
    return largest


def record_structure(model: Any) -> Structure:
    """Run an empty model on a few tokens, and note what its blocks do.

    Raises: UnsupportedModel, naming what keeps the model from being solved block by block.
    """
    path = find_block_list(model)
    blocks = list(model.get_submodule(path))
    runs = [BlockRun() for _ in blocks]
    after: list[str] = []
    with ExitStack() as hooks:

        def hook(handle: Any) -> None:
            hooks.callback(handle.remove)

        for index, block in enumerate(blocks):
            note = partial(_enter, runs, index)
            hook(block.register_forward_pre_hook(note, with_kwargs=True))
            hook(block.register_forward_hook(partial(_leave, runs[index]), with_kwargs=True))
            for name, module in block.named_modules():
                if isinstance(module, LINEAR) or is_mixture(module):
                    hook(module.register_forward_pre_hook(partial(_call, runs[index], name)))
        for name, module in model.named_modules():
            if not name.startswith(f"{path}.") and not list(module.children()):
                hook(module.register_forward_pre_hook(partial(_behind, runs, after, name)))
        _run(model)
    _check(model, path, runs)
    return Structure(path, tuple(runs), tuple(after), runs[0].entered.shape[-1])


def is_mixture(module: torch.nn.Module) -> bool:
    """Say whether a module is a mixture of experts as transformers stacks them."""
    return hasattr(module, "is_transposed") and hasattr(module, "has_gate")


@contextmanager
def one_expert_at_a_time(model: Any) -> Iterator[None]:
    """Have mixtures compute by transformers' plain loop meanwhile, which visits no expert here.

    Products of all experts together ask for number types that depend on the version of torch.
    """
    configs = {id(each.config): each.config for each in model.modules() if is_mixture(each)}
    before = {key: config._experts_implementation for key, config in configs.items()}
    for config in configs.values():
        config._experts_implementation = "eager"
    try:
        yield
    finally:
        for key, config in configs.items():
            config._experts_implementation = before[key]


def _run(model: Any) -> None:
    ids = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
    try:
        with (
            quiet_library(),
            one_expert_at_a_time(model),
            torch.no_grad(),
            Guesses(),  # type: ignore[no-untyped-call]
        ):
            model(input_ids=ids, use_cache=False)
    # whatever a model's own code says of tensors without values
    except Exception as error:
        raise _cannot(
            model, f"its passes cannot be followed ({type(error).__name__}: {reason_of(error)})"
        ) from error


def _enter(runs: list[BlockRun], index: int, block: Any, args: Any, kwargs: Any) -> None:
    run = runs[index]
    run.runs += 1
    run.entered = args[0] if args else kwargs.get(HIDDEN)
    run.follows = not index or runs[index - 1].left is run.entered
    others = {id(tensor) for earlier in runs[:index] for tensor in earlier.beside}
    given = [*args[1:], *kwargs.values()]
    run.follows &= not others.intersection(map(id, _leaves(given)))
    run.before = _contents(kwargs)


def _leave(run: BlockRun, block: Any, args: Any, kwargs: Any, output: Any) -> None:
    changed = [key for key, value in _contents(kwargs).items() if run.before[key] != value]
    run.shared = {key: type(kwargs[key]) for key in changed}
    run.is_tuple = isinstance(output, tuple)
    run.parts = len(output) if run.is_tuple else 1
    run.left = output[0] if run.is_tuple else output
    run.beside = [each for each in _leaves(output[1:]) if isinstance(each, torch.Tensor)]


def _contents(kwargs: dict[str, Any]) -> dict[str, list[int]]:
    """Note what lies in the containers among arguments, to see afterwards whether it changed."""
    return {key: [id(each) for each in _leaves(value)] for key, value in kwargs.items()}


def _leaves(value: Any, depth: int = DEPTH) -> Iterator[Any]:
    """Yield what lies in containers and objects, and in those inside of them."""
    inner: Iterable[Any] = ()
    if isinstance(value, Mapping):
        inner = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple):
        inner = value
    elif hasattr(value, "__dict__") and not isinstance(value, torch.Tensor | torch.nn.Module):
        inner = vars(value).values()
    if not depth or not inner:
        yield value
        return
    for each in inner:
        yield from _leaves(each, depth - 1)


def _call(run: BlockRun, name: str, module: Any, args: Any) -> None:
    run.calls.append((name, args[0] if args else None))


def _behind(runs: list[BlockRun], after: list[str], name: str, module: Any, args: Any) -> None:
    if runs[-1].left is not None:
        after.append(name)


def _check(model: Any, path: str, runs: list[BlockRun]) -> None:
    """Refuse a model whose blocks do not simply run one after the other."""
    for index, run in enumerate(runs):
        if run.runs != 1:
            raise _cannot(model, f"block {index} of {path} runs {run.runs} times in a pass")
        if not run.follows:
            raise _cannot(
                model, f"block {index} of {path} reads other than what the block before it gives"
            )
        odd = next((key for key, kind in run.shared.items() if not _can_be_copied(kind)), None)
        if odd is not None:
            raise _cannot(model, f"block {index} of {path} hands {odd} to later ones")


def _can_be_copied(kind: type) -> bool:
    """Say whether an argument can be made anew, for each stream and batch."""
    return issubclass(kind, MutableMapping)


def _cannot(model: Any, why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"model_type '{model.config.model_type}': {why}; give a model of another type"
    )
