"""Solved models of the rows that edgeq is tried on: random weights on a grid, without solving.

Their dequantized weights also lie in a directory, as a checkpoint that transformers loads.
"""

import re

import numpy as np
import torch
from safetensors.numpy import save_file
from tiny_models import MemoryModel, random_layer
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from benchmarks.architectures.rows import ROWS
from edgeq.types import Grid

FOUR_BITS = Grid(4, 32, "offset")


def solve_row(name, rng, grid=FOUR_BITS, **changes):
    """Make a model of a row, on one grid but for routers, with weights large enough to be told
    apart: a forgotten norm, bias or window shows in the logits.
    """
    kind, settings = ROWS[name]
    config = AutoConfig.for_model(kind, **{**settings, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    solved = MemoryModel(config.to_dict() | {"dtype": "float16"})
    decoder = solved.record.decoder
    linears = {linear.tensor for linear in decoder.linears()} | {decoder.head, decoder.embedding}
    for path, tensor in revert_weight_conversion(model, model.state_dict()).items():
        shape = tuple(tensor.shape)
        if decoder.is_redundant(path):
            continue
        if path in linears and shape[1] % grid.group_size == 0:
            gain = 3.0 if re.search(r"q_proj|k_proj|qkv", path) else 2.0
            size = gain * shape[1] ** -0.5 if path.startswith(decoder.blocks) else 0.5
            solved.layers[path] = random_layer(rng, shape, grid, size=size)
        elif len(shape) == 2:
            solved.arrays[path] = 0.3 * rng.standard_normal(shape)
        else:
            around = float("norm" in path and path.endswith("weight") and not decoder.norm_offset)
            solved.arrays[path] = around + 0.2 * rng.standard_normal(shape)
    solved.arrays = {
        path: array.astype(np.float16).astype(np.float32) for path, array in solved.arrays.items()
    }
    return solved


def save_row(solved, folder):
    """Write the dequantized weights of a solved model as a checkpoint in float32."""
    config = AutoConfig.for_model(**solved.config)
    config.dtype = "float32"
    config.save_pretrained(folder)
    weights = {name: np.ascontiguousarray(array) for name, array in solved.weights().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logits_of(folder, windows):
    """Predict with transformers, from a checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.from_numpy(windows), use_cache=False).logits.numpy()
