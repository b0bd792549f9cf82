"""Read tensors so that damage is found, and named, where it enters."""

import numpy as np

from edgeq.errors import DamagedModel
from edgeq.protocols import ModelSource
from edgeq.types import LinearSpec, NumpyArray


def read_tensor(source: ModelSource, name: str) -> NumpyArray:
    """Read a tensor as the source stores it.

    Raises: DamagedModel when it holds NaN or infinity.
    """
    tensor = source.read(name)
    if not np.isfinite(tensor).all():
        raise DamagedModel(
            f"tensor {name!r} of {source.record.name!r} holds NaN or infinity; "
            "fetch the checkpoint again"
        )
    return tensor


def read_weight(source: ModelSource, name: str) -> NumpyArray:
    """Read a tensor in float32.

    Raises: DamagedModel when it holds NaN or infinity.
    """
    return read_tensor(source, name).astype(np.float32, copy=False)


def read_linear(source: ModelSource, linear: LinearSpec) -> NumpyArray:
    """Read the weight of a linear layer in float32, out of the tensor that holds it.

    Shapes: (out, in).
    Raises: DamagedModel when the tensor holds NaN or infinity.
    """
    tensor = read_weight(source, linear.tensor)
    if linear.expert is not None:
        tensor = tensor[linear.expert]
    if linear.transposed:
        tensor = tensor.T
    return tensor if linear.rows is None else tensor[slice(*linear.rows)]
