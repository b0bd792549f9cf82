"""Choose what multiplies matrices on this processor: a type, and a library for float32.

torch has two: one that is always exact, and oneDNN, which it takes where lower precision is allowed
to it. On processors with AVX-512 but without units for tiles, oneDNN keeps all digits of float32
even then, and is twice as fast where the other is made for processors of another maker.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

EXACT, FAST = "highest", "medium"  # as torch calls them
LIBRARIES = {EXACT: "torch's own", FAST: "oneDNN"}
PROBED = 256  # rows and columns: enough for oneDNN to take the product
ROUNDING = 1e-6  # relative: float32 stays below, bfloat16 is a thousand times above


def choose_products(device: str, *, exact: bool) -> str:
    """Say how float32 matrices are multiplied as fast as all their digits allow: EXACT or FAST."""
    is_fast = device == "cpu" and not exact and _precision_now() and _is_exact_when_fast()
    return FAST if is_fast else EXACT


@contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """Have torch multiply float32 in a precision of this process, and then as it did before.

    Where a newer way of torch has set it, which it does not mix with this one, nothing changes.
    """
    before = _precision_now()
    if before is None:
        yield
        return
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _precision_now() -> str | None:
    """Ask torch what it multiplies float32 in; None where a newer way has set it."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


@cache
def _is_exact_when_fast() -> bool:
    """Multiply by the fast way, and compare with float64."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    numbers = torch.Generator().manual_seed(0)
    A = torch.rand(PROBED, PROBED, generator=numbers)
    wanted = A.double() @ A.double().T
    with multiplying(FAST):
        products = A @ A.T, torch.nn.functional.linear(A, A)
    return all(bool((abs(found - wanted) <= ROUNDING * wanted).all()) for found in products)


def fast_type(device: torch.device) -> torch.dtype | None:
    """Give the type in which products are fastest on a device, None for float32 itself.

    bfloat16 where the processor multiplies in it.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    has_products = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() != "DEFAULT"
    if has_products and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    ):
        return torch.bfloat16
    return None
