"""Bring tensors to NumPy and back, without a copy where both have the same memory."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import torch

from edgeq.types import NumpyArray
from edgeq_backends.torch.backend import aligned

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def as_numpy(tensor: torch.Tensor) -> NumpyArray:
    """Show a tensor of the CPU as an array of the same type, bfloat16 as ml_dtypes has it."""
    if tensor.dtype == torch.bfloat16:  # NumPy has no such type of its own
        bits: NumpyArray = tensor.view(torch.int16).numpy()
        return bits.view(BFLOAT16)
    array: NumpyArray = tensor.numpy()
    return array


def from_numpy(array: NumpyArray) -> torch.Tensor:
    """Copy an array into memory that torch allocated, as a tensor of the same type."""
    if array.dtype == BFLOAT16:
        return aligned(array.view(np.int16)).view(torch.bfloat16)
    return aligned(array)


def fetch(tensor: torch.Tensor) -> Callable[[], NumpyArray]:
    """Start to bring a tensor to the host, behind all work that is queued by now.

    Gives what waits for it. On CUDA that is a copy in memory that the device writes to by itself;
    the tensor may be freed or reused at once, since later work is queued behind the copy.
    """
    if tensor.device.type != "cuda":
        array = as_numpy(tensor.cpu())
        return lambda: array
    copied = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copied.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def wait() -> NumpyArray:
        done.synchronize()
        return as_numpy(copied)

    return wait
