"""Compute in torch on CUDA, CPU or MPS: in float32, and in float64 where rounding is amplified.

MPS has no float64; factors and their solves move to the CPU there.
"""

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from edgeq.errors import NotInstalled, NotPositiveDefinite
from edgeq.types import NumpyArray, ScaleDtype
from edgeq_backends.half_steps import half_step_limits, nearest_by_half_step
from edgeq_backends.torch.column_loops import TorchColumnLoops
from edgeq_backends.torch.products import LIBRARIES, choose_products, multiplying

STORED = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
STRIP_COLUMNS = 384  # narrower strips cost more in overhead than the symmetry saves
CACHED = 2**17  # numbers of which a CPU's cache holds a few arrays
ON_DEVICE = 2**26  # of which a device's memory does: a quarter of a gigabyte each
FEWEST_ROWS = 32  # with fewer the start of an operation costs more than its work
MOST_INDICES = 256  # that are kept on a device: at most 100 KB each


class TorchBackend(TorchColumnLoops):
    """The verbs of `Backend` in torch.

    Factors are in float64: (H + lambda I)^-1 amplifies rounding. All else is in float32, as the
    inputs of layers are, or with `exact` in float64. Products keep all digits of float32, and TF32
    stays off.
    """

    def __init__(self, device: str = "cpu", *, exact: bool = False) -> None:
        self.name = device
        self.device = find_device(device)
        self.precision = torch.float64 if exact and device != "mps" else torch.float32
        self.products = choose_products(device, exact=exact)
        kind = str(self.precision).removeprefix("torch.")
        self.computes_in = f"{kind} (products by {LIBRARIES[self.products]})"
        self._numbers: dict[float, torch.Tensor] = {}
        self._indices: dict[Any, torch.Tensor] = {}
        self.take_kernels()

    def working(self) -> AbstractContextManager[object]:
        return multiplying(self.products)

    def asarray(self, x: Any) -> torch.Tensor:
        return self._tensor(x, self.precision)

    def activations(self, x: Any) -> torch.Tensor:
        if isinstance(x, torch.Tensor) and has_wide_sums(x):
            return x  # products with sums in float32 lose nothing of it
        return self._tensor(x, torch.float32)

    def _tensor(self, x: Any, precision: torch.dtype) -> torch.Tensor:
        if isinstance(x, np.ndarray):
            x = aligned(x, np.float32 if precision == torch.float32 else np.float64)
        return torch.as_tensor(x).to(precision).to(self.device)

    def to_numpy(self, x: torch.Tensor) -> NumpyArray:
        array: NumpyArray = x.detach().cpu().numpy()
        return array

    def copy(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone(memory_format=torch.contiguous_format)

    def gram(self, X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
        product = symmetric_product(X) if X is Y else product_of(X.T, Y)
        return product.to(self.precision)

    def diagonal(self, A: torch.Tensor) -> torch.Tensor:
        return torch.diagonal(A).clone()

    def add_diagonal(self, A: torch.Tensor, value: torch.Tensor | float) -> torch.Tensor:
        result = A.clone()
        result.diagonal().add_(value)
        return result

    def cholesky(self, A: torch.Tensor) -> torch.Tensor:
        if A.device.type == "mps":  # no float64 and no batched factorisation there
            return self.cholesky(A.cpu())
        L: torch.Tensor
        L, info = torch.linalg.cholesky_ex(A.double())
        # what is not finite in a row also is on its diagonal; a look at all of L would take as much
        # memory again
        if bool((info != 0).any()) or not bool(torch.isfinite(L.diagonal(dim1=-2, dim2=-1)).all()):
            raise NotPositiveDefinite(size=A.shape[-1])
        return L

    def solve_triangular(
        self, L: torch.Tensor, B: torch.Tensor, *, transposed: bool = False
    ) -> torch.Tensor:
        right = B.to(L.device, L.dtype)
        left = L.mT if transposed else L
        solved: torch.Tensor = torch.linalg.solve_triangular(left, right, upper=transposed)
        return solved.to(self.device, self.precision)

    def solve_product(self, A: torch.Tensor, B: torch.Tensor, L: torch.Tensor) -> torch.Tensor:
        product = A.to(L.device, L.dtype) @ B.to(L.device, L.dtype)
        return torch.cholesky_solve(product.mT, L).mT.to(self.device, self.precision)

    def round_clip(self, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.round(x).clamp_(low, high)

    def nearest(self, x: torch.Tensor, table: Sequence[int]) -> torch.Tensor:
        low, high = half_step_limits(table)
        nearest = torch.from_numpy(nearest_by_half_step(tuple(table))).to(x.device, x.dtype)
        steps = torch.ceil(2 * x).clamp_(low, high).nan_to_num_(nan=high + 1).sub_(low)
        return nearest.index_select(0, steps.to(torch.int32).reshape(-1)).reshape(x.shape)

    def clip(self, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return x.clamp(low, high)

    def round_to(self, x: torch.Tensor, dtype: ScaleDtype) -> torch.Tensor:
        return x.to(STORED[dtype]).to(self.precision)

    def min_max(self, x: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
        return x.amin(dim=axis), x.amax(dim=axis)

    def where(
        self, mask: torch.Tensor, a: torch.Tensor | float, b: torch.Tensor | float
    ) -> torch.Tensor:
        chosen = torch.where(mask, self._number(a), self._number(b))
        return chosen if chosen.dtype == self.precision else chosen.to(self.precision)

    def _number(self, x: torch.Tensor | float) -> torch.Tensor:
        """Keep numbers of expressions on the device: making one takes as long as a pass."""
        if isinstance(x, torch.Tensor):
            return x
        if x not in self._numbers:
            self._numbers[x] = torch.tensor(x, dtype=self.precision, device=self.device)
        return self._numbers[x]

    def take(self, x: torch.Tensor, indices: NumpyArray, axis: int) -> torch.Tensor:
        return x.index_select(axis, self._on_device(indices, x.device))

    def _on_device(self, indices: NumpyArray, device: torch.device) -> torch.Tensor:
        """Keep indices of columns and groups, which every layer of a width takes again."""
        if device.type == "cpu":
            return torch.as_tensor(np.array(indices))
        key = (indices.shape, indices.dtype.str, indices.tobytes(), device.type)
        if key not in self._indices:
            if len(self._indices) == MOST_INDICES:
                self._indices.clear()
            self._indices[key] = torch.as_tensor(np.array(indices), device=device)
        return self._indices[key]

    def concatenate(self, parts: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
        return torch.cat(list(parts), dim=axis)

    def evaluate(self, *arrays: torch.Tensor) -> None:
        """Do nothing: torch is eager on the CPU, and elsewhere waits for results that are read."""

    def device_memory(self) -> tuple[int, int] | None:
        """Ask the driver; what torch keeps for arrays to come is free too."""
        if self.device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info(self.device)
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return free + kept, total

    def rows_at_once(self, columns: int) -> int:
        at_once = CACHED if self.device.type == "cpu" else ON_DEVICE
        return max(FEWEST_ROWS, at_once // columns)


def find_device(name: str) -> torch.device:
    """Give the device of a backend by its name. Raises: NotInstalled where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise NotInstalled("backend 'cuda': torch finds no CUDA device; use --backend cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise NotInstalled("backend 'mps': torch finds no Apple GPU; use --backend cpu")
    return torch.device(name)


def aligned(array: NumpyArray, dtype: type[np.generic] | None = None) -> torch.Tensor:
    """Copy an array into memory that torch allocated, in its own dtype or another one.

    Products on memory that NumPy allocated can differ in their last digits from run to run: kernels
    take another way where a row does not start at a multiple of 64 bytes, and only torch's own
    allocations always do. NumPy makes the copy, since torch takes no ml_dtypes and no negative
    strides, and warns of read-only memory.
    """
    kind = torch.from_numpy(np.empty(0, dtype or array.dtype)).dtype
    copied = torch.empty(array.shape, dtype=kind)
    copied.numpy()[...] = array
    return copied


def has_wide_sums(x: torch.Tensor) -> bool:
    """Say whether products of such a tensor may have float32 as their result: bfloat16 on CUDA."""
    has_verb = hasattr(torch.ops.aten.mm, "dtype")  # since torch 2.8
    return has_verb and x.device.type == "cuda" and x.dtype == torch.bfloat16


def product_of(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Multiply two matrices, with sums in float32 or wider."""
    if has_wide_sums(A):
        return torch.mm(A, B, out_dtype=torch.float32)
    return A @ B


def symmetric_product(X: torch.Tensor) -> torch.Tensor:
    """Compute X.T @ X from k lower strips, mirrored: (k + 1) / 2k of the work of the plain product.

    Exactly symmetric: what is above the diagonal is copied from below it, since a product need not
    be symmetric by itself: on some processors its tiles sum up in another order on either side of
    the diagonal.

    Shapes: (tokens, in) -> (in, in).
    """
    size = X.shape[1]
    strips = max(1, size // STRIP_COLUMNS)
    bounds = [round(strip * size / strips) for strip in range(strips + 1)]
    product = X.new_empty(size, size, dtype=torch.float32 if has_wide_sums(X) else X.dtype)
    for start, stop in itertools.pairwise(bounds):
        strip = product_of(X[:, start:stop].T, X[:, :stop])
        square = strip[:, start:].tril()
        product[start:stop, :start] = strip[:, :start]
        product[:start, start:stop] = strip[:, :start].T
        product[start:stop, start:stop] = square + square.tril(-1).T
    return product
