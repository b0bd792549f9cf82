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
SMALLEST: Mapping[str, float] = {
    "float16": 2.0**-24,
    "bfloat16": 2.0**-126,
    "float32": 2.0**-126,
}
"""The smallest scale that a container is trusted with: bfloat16 and float32 without subnormals."""
LARGEST: Mapping[str, float] = {"float16": 65504.0, "bfloat16": 3.38e38, "float32": 3.4e38}
"""The largest scale that is stored: just below the type's end, so that rounding stays finite."""
