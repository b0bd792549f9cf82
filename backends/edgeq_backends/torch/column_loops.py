"""The loops over columns in torch: Triton's kernels on CUDA, else NumPy on the CPU.

NumPy shares its memory with torch on the CPU; blocks come over from MPS, where Triton compiles
nothing.
"""

from dataclasses import replace
from types import ModuleType
from typing import Any

import torch

from edgeq.algorithms.column_loops import ColumnLoops
from edgeq.algorithms.group_loops import GroupLoops
from edgeq.protocols import Columns
from edgeq.types import Grid
from edgeq_backends import numpy_loops

COLUMNS_ON_CUDA = 128
"""Columns of a block in float32: the widest tile that a kernel's registers hold. Half as many
blocks as on a CPU then pass over the columns behind them."""


class TorchColumnLoops(ColumnLoops, GroupLoops):
    """Offers both loops to the torch backend, by `kernels` where it has any."""

    device: torch.device
    precision: torch.dtype
    kernels: ModuleType | None = None

    def take_kernels(self) -> None:
        """Take Triton's kernels into use on CUDA, or note why there are none."""
        if self.device.type != "cuda":
            return
        self.kernels, reason = find_kernels(self.device)
        if self.kernels is None:
            self.notes = [
                f"{reason}: the loops over columns run operation by operation, many times slower "
                "than its kernels"
            ]
        elif self.precision == torch.float32:
            self.columns_at_once = COLUMNS_ON_CUDA

    def round_columns(
        self,
        columns: torch.Tensor,
        U: torch.Tensor,
        scales: torch.Tensor,
        offsets: torch.Tensor,
        grid: Grid,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.kernels is not None:
            codes, errors = self.kernels.round_columns(columns, U, scales, offsets, grid)
            return codes, errors
        if self.device.type == "cuda":
            codes, errors = plain(self).round_columns(columns, U, scales, offsets, grid)
            return codes, errors
        arrays = [x.cpu().numpy() for x in (columns, U, scales, offsets)]
        found = numpy_loops.round_columns(arrays[0], arrays[1], arrays[2], arrays[3], grid)
        codes, errors = map(torch.from_numpy, found)
        return codes.to(columns.device), errors.to(columns.device)

    def sweep_columns(
        self, columns: Columns, codes: torch.Tensor, wanted: torch.Tensor, *, rounding: bool
    ) -> torch.Tensor:
        moves: torch.Tensor
        if self.kernels is not None:
            moves = self.kernels.sweep_columns(columns, codes, wanted, rounding=rounding)
            return moves
        if self.device.type == "cuda":
            moves = plain(self).sweep_columns(columns, codes, wanted, rounding=rounding)
            return moves
        taken = {name: getattr(columns, name).cpu().numpy() for name in ("H", "scales", "pull")}
        moves = torch.from_numpy(
            numpy_loops.sweep_columns(
                replace(columns, **taken),
                codes.cpu().numpy(),
                wanted.cpu().numpy(),
                rounding=rounding,
            )
        )
        return moves.to(codes.device)


def plain(loops: TorchColumnLoops) -> Any:
    """Give a backend's loops as they are specified, operation by operation."""
    return super(TorchColumnLoops, loops)


def find_kernels(device: torch.device) -> tuple[ModuleType | None, str]:
    """Load Triton's kernels and run the smallest block, or say why they do not run."""
    try:
        from edgeq_backends.torch import triton_loops  # noqa: PLC0415 - not with every torch
    except ImportError:
        return None, "Triton is not installed (pip install triton)"
    one = torch.ones(1, 1, device=device)
    try:
        triton_loops.round_columns(one, one, one, one, Grid(4, None))
    except Exception as error:  # of its compiler, of the system's, or of the driver
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return None, f"Triton compiles no kernels here ({first})"
    return triton_loops, ""
