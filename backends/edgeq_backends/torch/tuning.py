"""Run a transformers model forward and back for tuning, in torch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion

from edgeq.dtypes import LARGEST
from edgeq.errors import UnsupportedModel
from edgeq.protocols import ModelSource
from edgeq.streams.hidden_states import HiddenStates, StatesInMemory, StatesOnDisk
from edgeq.tuning.model import BATCH_TOKENS, HeadResult, Models, parts_of
from edgeq.types import NumpyArray, ScaleDtype
from edgeq_backends.torch.backend import STORED, aligned
from edgeq_backends.torch.model import StreamedModel, fill, parameter
from edgeq_backends.torch.names import Filling
from edgeq_backends.torch.products import fast_type


class TorchNumbers:
    """The verbs of `edgeq.tuning.model.Numbers` in torch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def put(self, x: NumpyArray) -> torch.Tensor:
        return aligned(x).to(self.device)

    def get(self, x: torch.Tensor) -> NumpyArray:
        array: NumpyArray = x.detach().cpu().numpy()
        return array

    def levels(self, codes: torch.Tensor, table: Sequence[int]) -> torch.Tensor:
        if not table:
            return codes.float()
        values = torch.tensor(table, dtype=torch.float32, device=codes.device)
        return values[codes.to(torch.int32)]

    def rounded(self, x: torch.Tensor, dtype: ScaleDtype) -> torch.Tensor:
        return x.clamp(-LARGEST[dtype], LARGEST[dtype]).to(STORED[dtype]).float()

    def nearest_codes(self, x: torch.Tensor, largest: int) -> torch.Tensor:
        return x.round().clamp_(0, largest).to(torch.uint8)

    def clip(self, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return x.clamp(low, high)

    def joined(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(parts), dim=1)

    def stacked(self, windows: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(windows), dim=0)

    def finish(self, arrays: Sequence[torch.Tensor]) -> None:
        """Do nothing: torch is eager on the CPU, and elsewhere waits for results that are read."""


def torch_models(
    original: ModelSource,
    quantized: ModelSource,
    *,
    device: str = "cpu",
    resident: bool = True,
    exact: bool = False,
    states_folder: Path | None = None,
) -> Models:
    """Make both models for tuning; see `edgeq.tuning.model.Models`.

    exact: training passes are in float32 too. Hidden states lie in a folder, or in memory.

    Raises: UnsupportedModel where blocks hand on more than hidden states.
    """
    teacher = TuningModel(original, device, kept=resident, exact=exact)
    student = TuningModel(quantized, device, kept=resident, exact=exact)

    def make_states() -> HiddenStates:
        if states_folder is None:
            return StatesInMemory()
        return StatesOnDisk(states_folder, student.to_numpy, student.from_numpy)

    return Models(teacher, student, make_states, resident, BATCH_TOKENS)


class TuningModel(StreamedModel):
    """The model's own code, whose blocks run backward; see `edgeq.tuning.model.TuningModel`.

    kept: tensors and the graphs of forward passes stay in memory.
    """

    def __init__(self, source: ModelSource, device: str, *, kept: bool, exact: bool) -> None:
        super().__init__(source, device)
        if any(run.shared for run in self.outline.structure.runs):
            raise UnsupportedModel(
                f"model {source.record.name!r}: its blocks hand more than hidden states to later "
                "ones, which tuning cannot take gradients back through; leave tuning out"
            )
        self.numbers = TorchNumbers(self.device)
        self._kept = kept
        self._filled_once: set[tuple[str, ...]] = set()
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._type = None if exact else fast_type(self.device)
        self._is_exact = False

    @property
    def precision(self) -> str:
        return "float32" if self._type is None else "bfloat16"

    @contextmanager
    def exact(self) -> Iterator[None]:
        self._is_exact = True
        try:
            yield
        finally:
            self._is_exact = False

    def _cast(self) -> AbstractContextManager[Any]:
        if self._type is None or self._is_exact:
            return nullcontext()
        return torch.autocast(self.device.type, self._type)

    @contextmanager
    def _filled(self, fillings: Sequence[Filling]) -> Iterator[None]:
        """Fill tensors from the source; what lies outside of the blocks may be kept."""
        kept = {each.targets for each in self._outer} if self._kept else set()
        passing = [each for each in fillings if each.targets not in kept]
        for each in fillings:
            if each.targets in kept - self._filled_once:
                fill(each, self.outline, self._reader, self._slots)
                self._filled_once.add(each.targets)
        with super()._filled(passing):
            yield

    def run_block(self, index: int, batch: int, hidden_states: torch.Tensor) -> torch.Tensor:
        with self._cast():
            return super().run_block(index, batch, hidden_states).float()

    @contextmanager
    def traced(
        self, index: int, tensors: Mapping[str, torch.Tensor] | None
    ) -> Iterator["TracedBlock"]:
        """Fill a block with given tensors; see `edgeq.tuning.model.TuningModel`."""
        if tensors is None:
            yield TracedBlock(self, index, {})
            return
        with self._replaced(self._of_block[index], tensors) as leaves:
            yield TracedBlock(self, index, leaves)

    @contextmanager
    def _replaced(
        self, fillings: Sequence[Filling], tensors: Mapping[str, torch.Tensor]
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Fill with given tensors in the place of the source's; gives them as the model has them.

        They are by their names in the model, where several of the source's may be one.
        """
        given = [each for each in fillings if any(name in tensors for name in each.sources)]
        leaves: dict[str, torch.Tensor] = {}
        with self._filled([each for each in fillings if each not in given]):
            for filling in given:
                read = partial(self._read, filling, tensors)
                for name, tensor in filling.convert(self.outline.model, read).items():
                    leaves[name] = tensor.detach().requires_grad_(True)
                    for module, leaf in self._slots[name]:
                        module._parameters[leaf] = leaves[name]  # type: ignore[assignment]
            try:
                yield leaves
            finally:
                for name, tensor in leaves.items():
                    for module, leaf in self._slots[name]:
                        module._parameters[leaf] = parameter(tensor.detach().to("meta"))
                self._filled_once -= {each.targets for each in given}

    def _read(
        self, filling: Filling, tensors: Mapping[str, torch.Tensor], name: str
    ) -> torch.Tensor:
        if name in tensors:
            return tensors[name]
        return self._reader.read(name, filling.sources[name])

    def by_source(self, of_targets: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Turn gradients of the model's tensors into those of the source's.

        What makes one from the other only moves numbers, so that its inverse takes gradients back.
        """
        found = {}
        for filling in (*self._outer, *(each for block in self._of_block for each in block)):
            if not all(name in of_targets for name in filling.targets):
                continue
            if filling.converter is None:
                [source] = filling.sources
                found[source] = of_targets[filling.targets[0]]
                continue
            targets = {name: of_targets[name] for name in filling.targets}
            found |= revert_weight_conversion(self.outline.model, targets)
        return found

    def divergences(
        self,
        original: "TuningModel",
        batches: Sequence[NumpyArray],
        hidden: HiddenStates,
        targets: Callable[[int], torch.Tensor],
        tensors: Mapping[str, torch.Tensor],
        *,
        weight: float | None,
    ) -> Iterator[HeadResult]:
        """Compare predictions with the original's; see `edgeq.tuning.model.TuningModel`."""
        with self._replaced(self._outer, tensors) as leaves, original._filled(original._outer):
            try:
                for batch, ids in enumerate(batches):
                    wanted = targets(batch)
                    states = hidden.read(batch).detach()
                    found = [
                        self._of_part(original, ids, part, wanted, states, leaves, weight)
                        for part in parts_of(ids.shape, self.source.record.vocabulary)
                    ]
                    kl = sum(part.kl for part in found)
                    if weight is None:
                        yield HeadResult(kl)
                        continue
                    gradient = torch.cat([part.hidden for part in found], dim=1)
                    parts = [[part.tensors[name] for part in found] for name in leaves]
                    sums = {
                        name: torch.stack(of_name).sum(0)
                        for name, of_name in zip(leaves, parts, strict=True)
                    }
                    yield HeadResult(kl, gradient, self.by_source(sums))
            finally:
                self.places[-1].result = original.places[-1].result = None

    def _of_part(
        self,
        original: "TuningModel",
        ids: NumpyArray,
        part: slice,
        wanted: torch.Tensor,
        states: torch.Tensor,
        leaves: Mapping[str, torch.Tensor],
        weight: float | None,
    ) -> HeadResult:
        """Compare the predictions of a part of each window: behind the blocks tokens are alone."""
        original.places[-1].result = wanted[:, part]
        before = states[:, part].requires_grad_(weight is not None)
        self.places[-1].result = before
        with torch.no_grad(), original._cast():
            expected = original._run(ids[:, part]).float().log_softmax(-1)
        with torch.set_grad_enabled(weight is not None), self._cast():
            logits = self._run(ids[:, part]).float()
        found = logits.detach().log_softmax(-1)
        p = expected.exp()
        kl = float((p * expected.sub_(found)).sum(dtype=torch.float64))
        if weight is None:
            return HeadResult(kl)
        # the gradient of KL(p || q) with the logits of q is q - p
        slope = found.exp_().sub_(p).mul_(weight)
        names = list(leaves)
        gradients = torch.autograd.grad(
            logits, [before, *(leaves[name] for name in names)], slope, allow_unused=True
        )
        of_tensors = {
            name: torch.zeros_like(leaves[name]) if gradient is None else gradient
            for name, gradient in zip(names, gradients[1:], strict=True)
        }
        return HeadResult(kl, gradients[0], of_tensors)


@dataclass(slots=True)
class Graph:
    """A forward pass through a block that can be taken back."""

    before: torch.Tensor
    behind: torch.Tensor
    leaves: Mapping[str, torch.Tensor]


class TracedBlock:
    """A filled block; see `edgeq.tuning.model.TracedBlock`."""

    def __init__(self, model: TuningModel, index: int, leaves: Mapping[str, torch.Tensor]) -> None:
        self._model, self._index, self._leaves = model, index, leaves
        self._sums: dict[str, torch.Tensor] = {}

    def forward(self, batch: int, hidden: torch.Tensor) -> torch.Tensor:
        model = self._model
        if not model._kept or model._is_exact:
            with torch.no_grad():
                return model.run_block(self._index, batch, hidden)
        graph = self._trace(batch, hidden)
        model._graphs[self._index, batch] = graph
        return graph.behind.detach()

    def backward(self, batch: int, hidden: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        graph = self._model._graphs.pop((self._index, batch), None)
        if graph is None:
            graph = self._trace(batch, hidden)
        names = list(graph.leaves)
        inputs = [graph.before, *(graph.leaves[name] for name in names)]
        of_hidden, *found = torch.autograd.grad(graph.behind, inputs, gradient, allow_unused=True)
        for name, of_leaf in zip(names, found, strict=True):
            # no token may have reached it
            term = torch.zeros_like(graph.leaves[name]) if of_leaf is None else of_leaf
            known = self._sums.get(name)
            self._sums[name] = term if known is None else known.add_(term)
        return of_hidden

    def gradients(self) -> Mapping[str, torch.Tensor]:
        return self._model.by_source(self._sums)

    def _trace(self, batch: int, hidden: torch.Tensor) -> Graph:
        before = hidden.detach().requires_grad_(True)
        with torch.enable_grad():
            behind = self._model.run_block(self._index, batch, before)
        return Graph(before, behind, self._leaves)
