"""Read weights of a ModelSource onto a device; those of the next block while one is worked on.

On the CPU nothing is read ahead: reading and widening the weights takes 0.5 s of a block that is
solved in minutes, on the same cores. To a device they travel as they are stored, from memory that
it reads by itself, and are widened there.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch

from edgeq.decoder import Shape
from edgeq.errors import BadInput
from edgeq.protocols import ModelSource
from edgeq.sources.reading import read_tensor, read_weight
from edgeq.types import NumpyArray
from edgeq_backends.torch.backend import aligned
from edgeq_backends.torch.crossing import from_numpy


class WeightReader:
    """Reads tensors of a source in float32 on a device, also such as were asked for before."""

    def __init__(self, source: ModelSource, device: torch.device) -> None:
        self._source, self._device = source, device
        self._ahead: dict[str, Future[torch.Tensor]] = {}
        self._thread: ThreadPoolExecutor | None = None
        if device.type == "cuda":
            self.read_ahead()

    def read_ahead(self) -> None:
        """Have `expect` start to read, in a thread of its own."""
        self._thread = ThreadPoolExecutor(1, "weights of the next block")

    def expect(self, tensors: Mapping[str, Shape]) -> None:
        """Say which tensors are read next, and that no others that were expected are."""
        if self._thread is None:
            return
        for waiting in self._ahead.values():
            waiting.cancel()
        self._ahead = {
            name: self._thread.submit(self._stored, name, shape) for name, shape in tensors.items()
        }

    def read(self, name: str, shape: Shape) -> torch.Tensor:
        """Read a tensor's values in float32.

        Raises: BadInput when the source's tensor has another shape, DamagedModel.
        """
        if self._device.type == "cpu" and self._thread is None:
            return read_stored(self._source, name, shape)
        read = partial(self._stored, name, shape)
        stored = self._ahead.pop(name).result() if name in self._ahead else read()
        return stored.to(self._device, non_blocking=True).to(torch.float32)

    def _stored(self, name: str, shape: Shape) -> torch.Tensor:
        """Read a tensor as it is stored, into memory that the device can read by itself."""
        weight = from_numpy(checked(read_tensor(self._source, name), name, shape))
        return weight.pin_memory() if self._device.type == "cuda" else weight


def read_stored(source: ModelSource, name: str, shape: Shape) -> torch.Tensor:
    """Read a tensor's values in float32.

    Raises: BadInput when the source's tensor has another shape, DamagedModel.
    """
    return aligned(checked(read_weight(source, name), name, shape))


def checked(weight: NumpyArray, name: str, shape: Shape) -> NumpyArray:
    """Give a tensor back if it has the shape that its model asks for. Raises: BadInput."""
    if weight.shape != shape:
        raise BadInput(
            f"tensor {name!r}: shape {list(weight.shape)}, "
            f"but config.json asks for {list(shape)}; the two do not belong together"
        )
    return weight
