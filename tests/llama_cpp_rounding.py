"""What llama.cpp's own quantizer makes of some rows, weighted by an importance matrix.

Its errors are kept in llama_cpp_rounding.json. Run as a program to make it again:

    LLAMA_CPP_LIBS=DIR python tests/llama_cpp_rounding.py

DIR holds libggml-base of llama.cpp v0.5.0, as in the npm package @node-llama-cpp/linux-x64 3.22.1.
"""

import ctypes
import json
import os
from pathlib import Path

import gguf
import numpy as np

ERRORS = Path(__file__).with_suffix(".json")
TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0")


def rows():
    """Weights of many kinds and how much each input weighs, all in float32.

    Shapes: (24, 512) and (512,).
    """
    rng = np.random.default_rng(7)
    plain = rng.standard_normal((8, 512))
    heavy = rng.standard_t(3, (8, 512))
    uneven = rng.standard_normal((8, 512)) * np.exp(
        rng.standard_normal((8, 512 // 16)).repeat(16, 1)
    )
    importance = np.exp(rng.standard_normal(512))
    weights = np.concatenate([plain, heavy, uneven]) * 0.05
    return weights.astype(np.float32), importance.astype(np.float32)


def weighted_errors(found, weights, importance):
    """Weighted squared error of every row, in float64."""
    difference = found.astype(np.float64) - weights
    return (importance.astype(np.float64) * difference**2).sum(axis=1)


def rounded_by_llama_cpp(library, name, weights, importance):
    """The weights as llama.cpp's quantizer leaves them, decoded by the gguf library."""
    kind = gguf.GGMLQuantizationType[name]
    columns, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.zeros((len(weights), weights.shape[1] // columns * size), dtype=np.uint8)
    library.ggml_quantize_init(int(kind))
    library.ggml_quantize_chunk(
        ctypes.c_int(int(kind)),
        weights.ctypes.data_as(ctypes.c_void_p),
        blocks.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(0),
        ctypes.c_int64(len(weights)),
        ctypes.c_int64(weights.shape[1]),
        importance.ctypes.data_as(ctypes.c_void_p),
    )
    return gguf.dequantize(blocks, kind)


def errors_of_llama_cpp(folder):
    """The errors of every row by type."""
    library = ctypes.CDLL(str(next(iter(sorted(Path(folder).glob("libggml-base*.so"))))))
    weights, importance = rows()
    found = {}
    for name in TYPES:
        rounded = rounded_by_llama_cpp(library, name, weights, importance)
        found[name] = weighted_errors(rounded, weights, importance).tolist()
    return found


if __name__ == "__main__":
    ERRORS.write_text(
        json.dumps(errors_of_llama_cpp(os.environ["LLAMA_CPP_LIBS"]), indent=1) + "\n"
    )
