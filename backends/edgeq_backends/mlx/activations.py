"""Run calibration streams and plain predictions of mlx-lm models in MLX."""

from edgeq.protocols import ModelSource
from edgeq.streams.blockwise import BlockwiseLogits, CalibrationStreams, Flow
from edgeq.types import NumpyArray
from edgeq_backends.mlx.model import StreamedModel


class MlxActivations(CalibrationStreams):
    """Calibration streams of an mlx-lm model.

    Shapes: windows (count, tokens) of token ids.
    """

    def __init__(
        self,
        source: ModelSource,
        windows: NumpyArray,
        *,
        drift: float = 1.0,
        flow: Flow | None = None,
    ) -> None:
        super().__init__(StreamedModel(source), windows, drift=drift, flow=flow)


class MlxLogits(BlockwiseLogits):
    """Predictions of a ModelSource in MLX, block by block."""

    def __init__(self, source: ModelSource) -> None:
        super().__init__(StreamedModel(source))
