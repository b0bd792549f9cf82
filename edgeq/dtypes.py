"""The number types of weights and scales: each once, under every name that it has somewhere."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from edgeq.types import ScaleDtype

NUMPY: Mapping[ScaleDtype, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}
CODE_NAMES: Mapping[str, str] = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
"""What safetensors, GGUF and manifests call them."""
ITEM_BYTES: Mapping[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "U8": 1,
}
"""Bytes of a number by its name in safetensors."""
SMALLEST: Mapping[str, float] = {"float16": 2.0**-24, "bfloat16": 2.0**-60, "float32": 2.0**-60}
"""The smallest scale that a container is trusted with.

bfloat16 and float32 have smaller ones, whose squares float32 does not: losses, which are made of
them, would vanish, and their inverses overflow beside a second moment that is small too.
"""
LARGEST: Mapping[str, float] = {"float16": 65504.0, "bfloat16": 2.0**60, "float32": 2.0**60}
"""The largest scale that is stored: its square is finite in float32, as is a code times it."""
LARGEST_WEIGHT = 2.0**48
"""The largest weight that is quantized: the squares of millions of them add up in float32."""
