"""Choose what multiplies matrices on this processor: a type, and a library for float32.

torch has two: one that is always exact, and oneDNN, which it takes where lower precision is allowed
to it. On processors with AVX-512 but without units for tiles, oneDNN keeps all digits of float32
even then, and is twice as fast where the other is made for processors of another maker.
"""

from functools import cache

import torch

EXACT, FAST = "highest", "medium"  # as torch calls them
PROBED = 256  # rows and columns: enough for oneDNN to take the product
ROUNDING = 1e-6  # relative: float32 stays below, bfloat16 is a thousand times above


def choose_products(device: str, *, exact: bool) -> str:
    """Let torch multiply float32 matrices as fast as all their digits allow; say by what."""
    is_fast = device == "cpu" and not exact and _is_exact_when_fast()
    torch.set_float32_matmul_precision(FAST if is_fast else EXACT)
    return "oneDNN" if is_fast else "torch's own"


@cache
def _is_exact_when_fast() -> bool:
    """Multiply by the fast way, and compare with float64; the precision is left as it falls."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    numbers = torch.Generator().manual_seed(0)
    A = torch.rand(PROBED, PROBED, generator=numbers)
    torch.set_float32_matmul_precision(FAST)
    wanted = A.double() @ A.double().T
    for product in (A @ A.T, torch.nn.functional.linear(A, A)):
        if not bool((abs(product - wanted) <= ROUNDING * wanted).all()):
            return False
    return True


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
