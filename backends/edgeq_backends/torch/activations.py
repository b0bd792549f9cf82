"""Run calibration streams and plain predictions of transformers models in torch."""

from edgeq.protocols import ModelSource
from edgeq.streams.blockwise import BlockwiseLogits, CalibrationStreams, Flow
from edgeq.types import NumpyArray
from edgeq_backends.torch.model import StreamedModel


class TorchActivations(CalibrationStreams):
    """Calibration streams of a transformers model.

    Shapes: windows (count, tokens) of token ids.
    """

    def __init__(
        self,
        source: ModelSource,
        windows: NumpyArray,
        *,
        device: str = "cpu",
        drift: float = 1.0,
        flow: Flow | None = None,
    ) -> None:
        super().__init__(StreamedModel(source, device), windows, drift=drift, flow=flow)


class TorchLogits(BlockwiseLogits):
    """Predictions of a ModelSource in torch, block by block."""

    def __init__(self, source: ModelSource, *, device: str = "cpu") -> None:
        super().__init__(StreamedModel(source, device))
