"""Text that a transformers model writes itself, in torch."""

import numpy as np
import torch
from transformers import DynamicCache

from edgeq.protocols import ModelSource
from edgeq.sampling import draw_tokens
from edgeq.types import NumpyArray
from edgeq_backends.torch_model import whole_model

TOKENS_AT_ONCE = 32768  # of a batch: what bounds the cache of keys and values


def write_windows(source: ModelSource, *, count: int, length: int, seed: int, device: str = "cpu") -> NumpyArray:
    """Windows sampled at temperature 1, each from a random first token. The whole model is in memory meanwhile.

    Shapes: (count, length) of token ids.
    """
    random = np.random.default_rng(seed)
    first = random.integers(0, source.config["vocab_size"], count)
    per_batch = max(1, TOKENS_AT_ONCE // length)
    model = whole_model(source, device)
    with torch.inference_mode():
        parts = [_continue(model, first[at : at + per_batch], length, random) for at in range(0, count, per_batch)]
    return np.concatenate(parts)


def _continue(model: torch.nn.Module, first: NumpyArray, length: int, random: np.random.Generator) -> NumpyArray:
    device = next(model.parameters()).device
    windows, cache = np.empty((len(first), length), np.int64), DynamicCache()
    windows[:, 0] = first
    for position in range(1, length):
        newest = torch.from_numpy(windows[:, position - 1 : position]).to(device)
        logits = model(input_ids=newest, past_key_values=cache, use_cache=True).logits[:, -1]
        windows[:, position] = draw_tokens(logits.float().cpu().numpy(), random)
    return windows
