"""Compute on the device what a solved layer stands for, number by number as NumPy does."""

import torch

from edgeq.types import NumpyArray, QuantizedLinear
from edgeq_backends.torch.backend import aligned


def dequantize(layer: QuantizedLinear, device: torch.device) -> torch.Tensor:
    """Compute the weights that codes and outliers stand for, in float32 on a device.

    Each is rounded after the product and after the sum, as in `QuantizedLinear.dequantized`: so all
    bits are equal. Codes travel to the device in a quarter of the bytes of the weights.

    Shapes: (out, in).
    """
    grid = layer.grid
    columns = layer.codes.shape[1]
    weights = aligned(layer.codes).to(device).to(torch.float32)
    if grid.table:
        levels = torch.tensor(grid.table, dtype=torch.float32, device=device)
        weights = levels[weights.to(torch.int32)]
    scales, offsets = _on(layer.scales, device), _on(layer.offsets, device)
    width = grid.columns_per_group(columns)
    whole = columns // width
    groups = weights[:, : whole * width].view(-1, whole, width)
    groups.mul_(scales[:, :whole, None]).add_(offsets[:, :whole, None])
    if whole * width < columns:
        weights[:, whole * width :].mul_(scales[:, whole:]).add_(offsets[:, whole:])
    if layer.outliers is not None:
        places = _on(layer.outliers.columns, device).long()
        weights[:, places] += _on(layer.outliers.values, device)
    return weights


def _on(array: NumpyArray, device: torch.device) -> torch.Tensor:
    return aligned(array).to(device)
