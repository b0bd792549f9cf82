"""Reading tensors so that damage is found, and named, where it enters."""

import numpy as np

from edgeq.errors import DamagedModel
from edgeq.protocols import ModelSource
from edgeq.types import NumpyArray


def read_tensor(source: ModelSource, name: str) -> NumpyArray:
    """A tensor as the source stores it. Raises: DamagedModel when it holds NaN or infinity."""
    tensor = source.read(name)
    if not np.isfinite(tensor).all():
        raise DamagedModel(
            f"tensor {name!r} of {source.name!r} holds NaN or infinity; fetch the checkpoint again"
        )
    return tensor


def read_weight(source: ModelSource, name: str) -> NumpyArray:
    """The same in float32."""
    return read_tensor(source, name).astype(np.float32, copy=False)
