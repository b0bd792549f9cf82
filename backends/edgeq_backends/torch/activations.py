"""Run calibration streams and plain predictions of transformers models in torch."""

import torch

from edgeq.protocols import ModelDescription, ModelSource
from edgeq.streams.blockwise import BlockwiseLogits, CalibrationStreams, Flow
from edgeq.types import NumpyArray
from edgeq_backends.torch.backend import find_device
from edgeq_backends.torch.model import StreamedModel
from edgeq_backends.torch.products import fast_type


class TorchActivations(CalibrationStreams):
    """Calibration streams of a transformers model.

    They are in bfloat16 where the device multiplies in it and the solve bears it, unless exact.

    Shapes: windows (count, tokens) of token ids.
    """

    def __init__(
        self,
        source: ModelSource,
        windows: NumpyArray,
        *,
        device: str = "cpu",
        drift: float = 1.0,
        exact: bool = False,
        flow: Flow | None = None,
    ) -> None:
        kind = kind_of_passes(source, device, drift, exact=exact)
        self.computes_in = str(kind).removeprefix("torch.")
        super().__init__(StreamedModel(source, device, kind), windows, drift=drift, flow=flow)

    @staticmethod
    def number_bytes(
        source: ModelDescription, exact: bool, drift: float, *, device: str = "cpu"
    ) -> int:
        """Count the bytes of a number in passes of a model, for the plan of memory."""
        return kind_of_passes(source, device, drift, exact=exact).itemsize


def kind_of_passes(
    source: ModelDescription, device: str, drift: float, *, exact: bool = False
) -> torch.dtype:
    """Give the type in which calibration text goes through a model.

    What one stream says of inputs bears the 8 bits of bfloat16. The difference of two streams does
    less (`benchmarks.precision`): with drift, a CPU keeps float32, and a GPU, which is ten times
    slower in it, does for models that are stored in float32. So do mixtures, whose tokens go to
    other experts in another type.
    """
    record, fast = source.record, fast_type(find_device(device))
    if (
        exact
        or fast is None
        or any(linear.expert is not None for linear in record.decoder.linears())
    ):
        return torch.float32
    bears = drift == 0 or (device != "cpu" and record.dtype != "float32")
    return fast if bears else torch.float32


class TorchLogits(BlockwiseLogits):
    """Predictions of a ModelSource in torch, block by block."""

    def __init__(self, source: ModelSource, *, device: str = "cpu") -> None:
        super().__init__(StreamedModel(source, device))
