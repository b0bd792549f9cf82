"""Run an mlx-lm model whose parameters exist only while they are in use.

They are read tensor by tensor from a ModelSource; the schedule of a calibration is up to
`edgeq.streams`.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from edgeq.architectures.mlx import why_not_mlx
from edgeq.architectures.mlx_config import (
    alike_tokens,
    mlx_config,
    mlx_names,
    mlx_stacks,
    rounds_scale,
)
from edgeq.errors import BadInput, UnsupportedModel
from edgeq.protocols import ModelSource
from edgeq.sources.reading import read_weight
from edgeq.streams.blockwise import Place, record_calls
from edgeq.streams.schedule import stand_still
from edgeq.types import BlockSpec, NumpyArray, QuantizedLinear

if find_spec("mlx_lm") is None:  # imported later, and only in part
    raise ModuleNotFoundError("No module named 'mlx_lm'", name="mlx_lm")

EMBEDDING = "model.embed_tokens."  # all that runs before the blocks


class PassThrough:
    """Stands where a block was.

    It is no module, so that the block's parameters are not among its model's.
    """

    def __init__(self, block: Module, place: Place) -> None:
        self._block, self._place = block, place

    def __call__(self, hidden: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        output: mx.array = self._place.pass_on(hidden, args, kwargs)
        return output

    def __getattr__(self, name: str) -> Any:  # models ask their blocks for the kind of attention
        return getattr(self._block, name)


class Passing:
    """Stands where a block is whose weights are there only while it runs.

    It is no module, so that the block's parameters are not among its model's.
    """

    def __init__(self, model: "StreamedModel", index: int) -> None:
        self._model, self._index = model, index

    def __call__(self, hidden: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        with self._model.block(self._index) as block:
            output: mx.array = block(hidden, *args, **kwargs)
            kept = [each.state for each in (*args, *kwargs.values()) if hasattr(each, "state")]
            mx.eval(output, kept)  # the graph behind them would keep the weights
        return output

    def __getattr__(self, name: str) -> Any:  # models ask their blocks for the kind of attention
        return getattr(self._model.blocks[self._index], name)


class Halting(Module):
    """Stands in for a linear layer, and hands control to the scheduler before the layer runs.

    Its input is computed by then.
    """

    def __init__(self, name: str, linear: Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._name, self.linear = name, linear

    def __call__(self, x: mx.array) -> mx.array:
        mx.eval(x)  # the graph behind it would keep every earlier result of the block
        stand_still(self._name, x)
        output: mx.array = self.linear(x)
        return output


class StreamedModel:
    """The model's own code, in float32 on MLX's default device.

    Parameters are there only where they are in use.
    """

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self.specs = source.blocks()
        self.model = empty_model(source)
        self.blocks = [submodule(self.model, spec.name) for spec in self.specs]
        self.places = [Place(last=spec is self.specs[-1]) for spec in self.specs]
        for spec, block, place in zip(self.specs, self.blocks, self.places, strict=True):
            set_submodule(self.model, spec.name, PassThrough(block, place))
        self._shapes = {
            spec.name: empty(block) for spec, block in zip(self.specs, self.blocks, strict=True)
        }
        self._shapes[""] = empty(self.model)

    def record(self, batches: Sequence[NumpyArray]) -> Iterator[mx.array]:
        """Note what every block gets besides hidden states.

        Yields the hidden states before block 0, per batch.
        Raises: UnsupportedModel for longer windows than mlx-lm computes as torch does.
        """
        check_window(self.source, max(batch.shape[1] for batch in batches))
        with self._filled(self.model, "", only=EMBEDDING):
            for embedded in record_calls(self.places, self._run, batches):
                mx.eval(embedded)
                yield embedded

    def _run(self, ids: NumpyArray) -> mx.array:
        logits: mx.array = self.model(mx.array(ids.astype(np.int32)))
        return logits

    @contextmanager
    def block(self, index: int) -> Iterator[Module]:
        """Fill a block with its weights, and free them on leaving."""
        with self._filled(self.blocks[index], self.specs[index].name):
            yield self.blocks[index]

    @contextmanager
    def halting_block(self, block: BlockSpec) -> Iterator[Callable[[str, Any], mx.array]]:
        """Fill a block whose forwards halt at each linear layer.

        Gives a function that exchanges a layer's weight.
        """
        with self.block(block.index) as module:
            names = [linear.name for linear in block.linears]
            paths = {name: name.removeprefix(block.name + ".") for name in names}
            linears = {name: submodule(module, path) for name, path in paths.items()}
            for name, path in paths.items():
                set_submodule(module, path, Halting(name, linears[name]))
            try:
                yield partial(set_weight, linears)
            finally:
                for name, path in paths.items():
                    set_submodule(module, path, linears[name])

    def run_block(self, index: int, batch: int, hidden: mx.array) -> mx.array:
        """Run one recorded batch through a filled block."""
        output = self.call_block(index, batch, hidden)
        mx.eval(output)
        return output

    def call_block(self, index: int, batch: int, hidden: mx.array) -> mx.array:
        """Queue what `run_block` computes."""
        call = self.places[index].calls[batch]
        output: mx.array = self.blocks[index](hidden, *call.args, **call.kwargs)
        return output

    def to_numpy(self, hidden: mx.array) -> NumpyArray:
        if hidden.dtype == mx.bfloat16:  # NumPy has no such type of its own
            return np.array(hidden.view(mx.uint16), copy=False)
        return np.array(hidden, copy=False)

    def from_numpy(self, hidden: NumpyArray) -> mx.array:
        if hidden.dtype == np.uint16:
            return mx.array(hidden).view(mx.bfloat16)
        return mx.array(hidden)

    def fetch(self, hidden: mx.array) -> Callable[[], NumpyArray]:
        values = self.to_numpy(hidden)  # which has the memory of the array
        return lambda: values

    @property
    def fetches_copies(self) -> bool:
        return False

    def logits(
        self, batches: Sequence[NumpyArray], hidden: Sequence[mx.array]
    ) -> Iterator[Iterator[NumpyArray]]:
        """Run final norm and head by the model's own code, its blocks passing states on."""
        with self._filled(self.model, ""):
            for ids, states in zip(batches, hidden, strict=True):
                self.places[-1].result = states
                yield (np.array(of_window.astype(mx.float32)) for of_window in self._run(ids))
        self.places[-1].result = None

    @contextmanager
    def _filled(self, module: Module, prefix: str, *, only: str = "") -> Iterator[None]:
        """Fill a module from the source, where a path starts with `only`; free it on leaving."""
        try:
            self.fill(module, prefix, only=only)
            yield
        finally:
            empty(module)
            mx.clear_cache()

    def fill(self, module: Module, prefix: str, *, only: str = "") -> None:
        """Fill a module from the source for good, where a path starts with `only`."""
        of_module = self._shapes[prefix]
        shapes = {path: of_module[path] for path in of_module if path.startswith(only)}
        for path, shape in shapes.items():
            name = f"{prefix}.{path}" if prefix else path
            set_submodule(module, path, read_parameter(self.source, name, shape))


def block_by_block(source: ModelSource, resident: int) -> Module:
    """Make a model of which only so many blocks keep their weights, the first ones.

    Its forward is the library's own; it reads the weights of the other blocks again every time.
    """
    streamed = StreamedModel(source)
    for index, (spec, block) in enumerate(zip(streamed.specs, streamed.blocks, strict=True)):
        if index < resident:
            streamed.fill(block, spec.name)
            set_submodule(streamed.model, spec.name, block)
        else:
            set_submodule(streamed.model, spec.name, Passing(streamed, index))
    streamed.fill(streamed.model, "")
    return streamed.model


def read_parameter(source: ModelSource, name: str, shape: tuple[int, ...]) -> mx.array:
    """Read a parameter's values in float32; those of experts are stacked.

    Raises: BadInput when the source's tensor has another shape.
    """
    experts = mlx_stacks(source.record.decoder).get(name)
    if experts is None:
        weight = read_weight(source, name)
    else:
        weight = np.stack([read_weight(source, expert) for expert in experts])
    if weight.shape != shape:
        raise BadInput(
            f"tensor {name!r}: shape {list(weight.shape)}, but config.json asks for {list(shape)}; "
            "the two do not belong together"
        )
    return mx.array(weight)


def whole_model(source: ModelSource) -> Module:
    """Make the complete model with all its weights in float32."""
    model = empty_model(source)
    for path, shape in empty(model).items():
        set_submodule(model, path, read_parameter(source, path, shape))
    return model


def empty_model(source: ModelSource) -> Module:
    """Make the mlx-lm model of a config.

    Raises: UnsupportedModel when mlx-lm would compute something else.
    """
    reason = why_not_mlx(source.record)
    if reason is not None:
        raise UnsupportedModel(f"backend 'mlx': {reason}")
    decoder = source.record.decoder
    module = model_definition(mlx_names(decoder).module)
    model: Module = module.Model(module.ModelArgs.from_dict(mlx_config(source.record)))
    if decoder.tied_head and hasattr(model, "lm_head"):
        model.sanitize({})  # which sees that there is no head
    if rounds_scale(decoder):
        undo_rounded_scale(model, decoder.hidden)
    model.eval()
    return model


def undo_rounded_scale(model: Module, hidden: int) -> None:
    """Have an embedding give what makes up for a scale that is rounded to bfloat16.

    Transformers rounds it in models of that type only; streams are in float32.
    """
    exact = hidden**0.5
    ratio = exact / mx.array(exact, mx.bfloat16).astype(mx.float32).item()
    embedding = model.model.embed_tokens
    kind = type(embedding)

    def __call__(self: Any, ids: mx.array) -> mx.array:
        found: mx.array = kind.__call__(self, ids) * ratio
        return found

    embedding.__class__ = type(kind.__name__, (kind,), {"__call__": __call__})


def check_window(source: ModelSource, tokens: int) -> None:
    """Refuse texts that are longer than mlx-lm computes as torch does.

    Raises: UnsupportedModel.
    """
    decoder = source.record.decoder
    most = alike_tokens(decoder)
    if most is None or tokens <= most:
        return
    reason = f"this model attends to a window of {most}"
    if most != decoder.window:
        reason = f"this model rotates by other factors beyond {most}"
    raise UnsupportedModel(
        f"backend 'mlx': sequences of {tokens} tokens, but {reason}, "
        f"which mlx-lm's {decoder.model_type} does not know; "
        f"choose --sequence-length {most} or less, or another --backend"
    )


def model_definition(name: str) -> ModuleType:
    """Import a module of mlx_lm.models without its package's own start.

    That one would import transformers and torch.
    """
    with bare_package("mlx_lm"):
        return import_module(f"mlx_lm.models.{name}")


@contextmanager
def bare_package(name: str) -> Iterator[None]:
    """Let modules of a package be imported while its __init__ is not run, unless it has been."""
    if name in sys.modules:
        yield
        return
    spec = find_spec(name)
    assert spec is not None
    sys.modules[name] = module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[name]


def submodule(root: Any, path: str) -> Any:
    """Find what a dotted path leads to; numbers index lists."""
    for part in path.split("."):
        root = root[int(part)] if part.isdigit() else getattr(root, part)
    return root


def set_submodule(root: Any, path: str, value: Any) -> None:
    """Put a module or array where a dotted path leads to."""
    parent, _, last = path.rpartition(".")
    owner = submodule(root, parent) if parent else root
    if last.isdigit():
        owner[int(last)] = value
    else:
        setattr(owner, last, value)


def empty(module: Module) -> dict[str, tuple[int, ...]]:
    """Let go of every parameter, and give the shapes they had."""
    parameters = dict(tree_flatten(module.parameters()))
    for path in parameters:
        set_submodule(module, path, mx.zeros((0,)))
    return {path: tuple(array.shape) for path, array in parameters.items()}


def set_weight(linears: dict[str, Module], layer: str, W: Any) -> mx.array:
    """Set the weight that a layer computes with from here on; give the one that it had before.

    W is an array of NumPy or MLX, or a solved layer, which is dequantized on the device.
    """
    old: mx.array = linears[layer].weight
    if isinstance(W, QuantizedLinear):
        W = dequantize(W)
    linears[layer].weight = W if isinstance(W, mx.array) else mx.array(W)
    return old


def dequantize(layer: QuantizedLinear) -> mx.array:
    """Compute the weights that codes and outliers stand for, in float32.

    Each is rounded after the product and after the sum, as in `QuantizedLinear.dequantized`: so all
    bits are equal.

    Shapes: (out, in).
    """
    grid = layer.grid
    codes = mx.array(layer.codes)
    weights = codes.astype(mx.float32)
    if grid.table:
        weights = mx.take(mx.array(grid.table, mx.float32), codes.astype(mx.uint32))
    index = mx.array(grid.group_index(layer.codes.shape[1]))
    weights = weights * mx.take(mx.array(layer.scales), index, axis=1)
    weights = weights + mx.take(mx.array(layer.offsets), index, axis=1)
    if layer.outliers is not None:
        places = mx.array(layer.outliers.columns)
        weights[:, places] = weights[:, places] + mx.array(layer.outliers.values)
    mx.eval(weights)  # the graph behind them would keep what they are made of
    return weights
