"""Run calibration streams and plain predictions of mlx-lm models in MLX."""

from edgeq.errors import UnsupportedModel
from edgeq.protocols import ModelDescription, ModelSource
from edgeq.streams.blockwise import BlockwiseLogits, CalibrationStreams, Flow
from edgeq.types import NumpyArray
from edgeq_backends.mlx.model import StreamedModel

FLOAT = 4  # bytes


class MlxActivations(CalibrationStreams):
    """Calibration streams of an mlx-lm model.

    They are in float32, exact or not.

    Shapes: windows (count, tokens) of token ids.
    Raises: UnsupportedModel for a mixture of experts.
    """

    computes_in = "float32"

    def __init__(
        self,
        source: ModelSource,
        windows: NumpyArray,
        *,
        drift: float = 1.0,
        exact: bool = False,
        flow: Flow | None = None,
    ) -> None:
        check_experts(source)
        super().__init__(StreamedModel(source), windows, drift=drift, flow=flow)

    @staticmethod
    def number_bytes(source: ModelDescription, exact: bool, drift: float) -> int:
        """Count the bytes of a number in passes of a model, for the plan of memory."""
        return FLOAT


class MlxLogits(BlockwiseLogits):
    """Predictions of a ModelSource in MLX, block by block."""

    def __init__(self, source: ModelSource) -> None:
        super().__init__(StreamedModel(source))


def check_experts(source: ModelSource) -> None:
    """Refuse to calibrate a mixture: mlx-lm computes all its experts at once.

    Raises: UnsupportedModel.
    """
    decoder = source.record.decoder
    if any(linear.expert is not None for linear in decoder.linears()):
        raise UnsupportedModel(
            f"backend 'mlx': the mixture of experts of a {decoder.model_type} model cannot be "
            "calibrated, as mlx-lm computes all experts at once; choose --backend cpu or cuda"
        )
