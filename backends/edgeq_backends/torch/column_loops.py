"""The loops over columns in torch: in NumPy on the CPU, whose memory both share."""

from dataclasses import replace

import torch

from edgeq.protocols import Columns
from edgeq.types import Grid
from edgeq_backends import numpy_loops


class TorchColumnLoops:
    """Offers both loops to the torch backend."""

    def round_columns(
        self,
        columns: torch.Tensor,
        U: torch.Tensor,
        scales: torch.Tensor,
        offsets: torch.Tensor,
        grid: Grid,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        codes, errors = numpy_loops.round_columns(
            columns.cpu().numpy(),
            U.cpu().numpy(),
            scales.cpu().numpy(),
            offsets.cpu().numpy(),
            grid,
        )
        device = columns.device
        return torch.from_numpy(codes).to(device), torch.from_numpy(errors).to(device)

    def sweep_columns(
        self, columns: Columns, codes: torch.Tensor, wanted: torch.Tensor, *, rounding: bool
    ) -> torch.Tensor:
        taken = {name: getattr(columns, name).cpu().numpy() for name in ("H", "scales", "pull")}
        moves = numpy_loops.sweep_columns(
            replace(columns, **taken), codes.cpu().numpy(), wanted.cpu().numpy(), rounding=rounding
        )
        return torch.from_numpy(moves).to(codes.device)
