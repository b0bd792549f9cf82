"""Run an mlx-lm model forward and back for tuning, in MLX.

All of it is in float32: MLX is far slower in half precision on a CPU, and what that would gain on
Apple's GPUs is not measured. Gradients are taken through one block at a time, whose forward pass is
run again for them: MLX keeps no graph from one call to the next.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from edgeq_backends.mlx.backend import STORED  # before MLX: it says how exact products are

# isort: split
import mlx.core as mx
from mlx.nn.layers.base import Module

from edgeq.architectures.mlx_config import mlx_stacks
from edgeq.dtypes import LARGEST
from edgeq.protocols import ModelSource
from edgeq.sources.reading import read_weight
from edgeq.streams.hidden_states import HiddenStates, StatesInMemory, StatesOnDisk
from edgeq.tuning.model import HeadResult, Models, parts_of
from edgeq.types import NumpyArray, ScaleDtype
from edgeq_backends.mlx.model import StreamedModel, empty, read_parameter, set_submodule

Parameters = Mapping[str, mx.array]
"""Parameters of a module, by their paths in it."""


class MlxNumbers:
    """The verbs of `edgeq.tuning.model.Numbers` in MLX."""

    def put(self, x: NumpyArray) -> mx.array:
        return mx.array(x)

    def get(self, x: mx.array) -> NumpyArray:
        return np.array(x)

    def levels(self, codes: mx.array, table: Sequence[int]) -> mx.array:
        if not table:
            return codes.astype(mx.float32)
        return mx.take(mx.array(list(table), mx.float32), codes)

    def rounded(self, x: mx.array, dtype: ScaleDtype) -> mx.array:
        within = mx.clip(x, -LARGEST[dtype], LARGEST[dtype])
        return within.astype(STORED[dtype]).astype(mx.float32)

    def nearest_codes(self, x: mx.array, largest: int) -> mx.array:
        return mx.clip(mx.round(x), 0, largest).astype(mx.uint8)

    def clip(self, x: mx.array, low: float, high: float) -> mx.array:
        return mx.clip(x, low, high)

    def joined(self, parts: Sequence[mx.array]) -> mx.array:
        return mx.concatenate(list(parts), axis=1)

    def stacked(self, windows: Sequence[mx.array]) -> mx.array:
        return mx.concatenate(list(windows), axis=0)

    def finish(self, arrays: Sequence[mx.array]) -> None:
        mx.eval(*arrays)


def mlx_models(
    original: ModelSource,
    quantized: ModelSource,
    *,
    resident: bool = True,
    exact: bool = False,
    states_folder: Path | None = None,
) -> Models:
    """Make both models for tuning; see `edgeq.tuning.model.Models`.

    Training passes are in float32 whether they have to be exact or not. Hidden states lie in a
    folder, or in memory.

    Raises: UnsupportedModel where mlx-lm would compute something else than the model.
    """
    teacher, student = (TuningModel(each, kept=resident) for each in (original, quantized))

    def make_states() -> HiddenStates:
        if states_folder is None:
            return StatesInMemory()
        return StatesOnDisk(states_folder, student.to_numpy, student.from_numpy)

    return Models(teacher, student, make_states, resident)


class TuningModel(StreamedModel):
    """The model's own code, whose blocks run backward; see `edgeq.tuning.model.TuningModel`.

    kept: what lies outside of the blocks stays in memory, and parameters of a block do until its
    gradients are taken.
    """

    precision = "float32"

    def __init__(self, source: ModelSource, *, kept: bool) -> None:
        super().__init__(source)
        self.numbers = MlxNumbers()
        self._stacks = mlx_stacks(source.record.decoder)
        self._kept = kept
        self._is_filled = False  # outside of the blocks
        self._passed: dict[int, tuple[Parameters, Parameters]] = {}
        self._is_exact = False

    @contextmanager
    def exact(self) -> Iterator[None]:
        self._is_exact = True
        try:
            yield
        finally:
            self._is_exact = False

    @contextmanager
    def _filled(self, module: Module, prefix: str, *, only: str = "") -> Iterator[None]:
        """Fill a module from the source; what lies outside of the blocks may be kept."""
        if prefix or not self._kept:
            with super()._filled(module, prefix, only=only):
                yield
            return
        if not self._is_filled:
            fill(module, self._parameters("", {})[0])
            self._is_filled = True
        yield

    def _parameters(
        self, prefix: str, tensors: Mapping[str, mx.array]
    ) -> tuple[Parameters, Parameters]:
        """Make all parameters of a module, and list those that are of given tensors."""
        every, given = {}, {}
        for path, shape in self._shapes[prefix].items():
            name = f"{prefix}.{path}" if prefix else path
            sources = self._stacks.get(name, (name,))
            if not any(source in tensors for source in sources):
                every[path] = read_parameter(self.source, name, shape)
                continue
            parts = [self._tensor(source, tensors) for source in sources]
            every[path] = given[path] = mx.stack(parts) if name in self._stacks else parts[0]
        return every, given

    def _tensor(self, name: str, tensors: Mapping[str, mx.array]) -> mx.array:
        return tensors[name] if name in tensors else mx.array(read_weight(self.source, name))

    def by_source(self, prefix: str, of_paths: Parameters) -> dict[str, mx.array]:
        """Turn gradients of a module's parameters into those of the source's tensors."""
        found: dict[str, mx.array] = {}
        for path, gradient in of_paths.items():
            name = f"{prefix}.{path}" if prefix else path
            if name in self._stacks:
                found |= dict(zip(self._stacks[name], gradient, strict=True))
            else:
                found[name] = gradient
        return found

    @contextmanager
    def traced(self, index: int, tensors: Mapping[str, mx.array] | None) -> Iterator["TracedBlock"]:
        """Fill a block with given tensors; see `edgeq.tuning.model.TuningModel`."""
        block = self.blocks[index]
        if tensors is None:
            every, given = self._passed.pop(index)
        else:
            every, given = self._parameters(self.specs[index].name, tensors)
            mx.eval(*every.values())
            if self._kept and not self._is_exact:
                self._passed[index] = every, given
        fill(block, every)
        try:
            yield TracedBlock(self, index, given)
        finally:
            empty(block)
            if not self._kept:
                mx.clear_cache()

    def divergences(
        self,
        original: "TuningModel",
        batches: Sequence[NumpyArray],
        hidden: HiddenStates,
        targets: Callable[[int], mx.array],
        tensors: Mapping[str, mx.array],
        *,
        weight: float | None,
    ) -> Iterator[HeadResult]:
        """Compare predictions with the original's; see `edgeq.tuning.model.TuningModel`."""
        with self._filled(self.model, ""), original._filled(original.model, ""):
            given = {path: tensors[path] for path in self._shapes[""] if path in tensors}
            fill(self.model, given)
            try:
                for batch, ids in enumerate(batches):
                    wanted, states = targets(batch), hidden.read(batch)
                    parts = parts_of(ids.shape, self.source.record.vocabulary)
                    found = [
                        self._of_part(
                            original, ids[:, part], wanted[:, part], states[:, part], given, weight
                        )
                        for part in parts
                    ]
                    yield self._joined(found, weight)
            finally:
                self.places[-1].result = original.places[-1].result = None
                mx.clear_cache()

    def _of_part(
        self,
        original: "TuningModel",
        ids: NumpyArray,
        wanted: mx.array,
        states: mx.array,
        given: Parameters,
        weight: float | None,
    ) -> HeadResult:
        """Compare the predictions of a part of each window: behind the blocks tokens are alone."""
        original.places[-1].result = wanted
        expected = log_softmax(original._run(ids))

        def compare(inputs: Sequence[mx.array]) -> tuple[mx.array, mx.array]:
            """Give what has the gradient of KL, and KL itself by token."""
            hidden, *parameters = inputs
            fill(self.model, dict(zip(given, parameters, strict=True)))
            self.places[-1].result = hidden
            logits = self._run(ids)
            found = log_softmax(mx.stop_gradient(logits))
            p = mx.exp(expected)
            kl = (p * (expected - found)).sum(-1)
            # the gradient of KL(p || q) with the logits of q is q - p
            return ((mx.exp(found) - p) * logits).sum(), kl

        inputs = [states, *given.values()]
        if weight is None:
            return HeadResult(total(compare(inputs)[1]))
        (_, kl), gradients = mx.value_and_grad(compare)(inputs)
        fill(self.model, given)
        of_hidden, *others = (weight * gradient for gradient in gradients)
        mx.eval(kl, of_hidden, *others)
        return HeadResult(total(kl), of_hidden, dict(zip(given, others, strict=True)))

    def _joined(self, parts: Sequence[HeadResult], weight: float | None) -> HeadResult:
        """Put the parts of a batch together."""
        kl = sum(part.kl for part in parts)
        if weight is None:
            return HeadResult(kl)
        of_hidden = mx.concatenate([part.hidden for part in parts], axis=1)
        sums = {
            name: mx.stack([part.tensors[name] for part in parts]).sum(0)
            for name in parts[0].tensors
        }
        mx.eval(of_hidden, *sums.values())
        return HeadResult(kl, of_hidden, sums)


class TracedBlock:
    """A filled block; see `edgeq.tuning.model.TracedBlock`."""

    def __init__(self, model: TuningModel, index: int, given: Parameters) -> None:
        self._model, self._index, self._given = model, index, given
        self._sums: dict[str, mx.array] = {}

    def forward(self, batch: int, hidden: mx.array) -> mx.array:
        return self._model.run_block(self._index, batch, hidden)

    def backward(self, batch: int, hidden: mx.array, gradient: mx.array) -> mx.array:
        block = self._model.blocks[self._index]

        def run(hidden: mx.array, *parameters: mx.array) -> mx.array:
            fill(block, dict(zip(self._given, parameters, strict=True)))
            return self._model.call_block(self._index, batch, hidden)

        inputs = [hidden, *self._given.values()]
        _, (of_hidden, *found) = mx.vjp(run, inputs, [gradient])
        fill(block, self._given)
        for path, term in zip(self._given, found, strict=True):
            known = self._sums.get(path)
            self._sums[path] = term if known is None else known + term
        mx.eval(of_hidden, *self._sums.values())
        return of_hidden

    def gradients(self) -> Mapping[str, mx.array]:
        return self._model.by_source(self._model.specs[self._index].name, self._sums)


def fill(module: Module, parameters: Parameters) -> None:
    """Put parameters in their places."""
    for path, parameter in parameters.items():
        set_submodule(module, path, parameter)


def log_softmax(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def total(of_tokens: mx.array) -> float:
    """Add up in float64, which GPUs do not have."""
    return float(np.array(of_tokens).sum(dtype=np.float64))
