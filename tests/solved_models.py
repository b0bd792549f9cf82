"""Tiny models of random weights for the MLX tests, wide enough for groups of 128, and what torch
computes with them.
"""

from itertools import cycle

import numpy as np
import torch
from tiny_models import MemoryModel, random_layer
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from edgeq.types import Grid

TINY = {
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
}
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FILES = {
    "tokenizer.json": Tokenizer(BPE()).to_str().encode(),
    "generation_config.json": b'{"eos_token_id": 1}',
    "config.json": b"the source's own",
}


def tiny(kind="llama", **changes):
    config, model = KINDS[kind]
    return model(config(**(TINY | changes)))


def solved(model, rng, grids, *, dense=np.float32):
    """A model of random weights whose matrices lie on the grids, in turn; None leaves one dense."""
    result = MemoryModel(model.config.to_dict() | {"dtype": "float16"}, files=dict(FILES))
    in_turn = cycle(grids)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        shape = tuple(tensor.shape)
        grid = next(in_turn) if tensor.ndim == 2 else None
        if grid is not None:
            result.layers[name] = random_layer(rng, shape, grid, size=0.3)
        else:
            result.arrays[name] = (0.1 * rng.standard_normal(shape) + float("norm" in name)).astype(
                dense
            )
    return result


def in_float16(model):
    """The model's weights with every dense one as a model of float16 scales stores it."""
    rounded = {
        name: array.astype(np.float16).astype(np.float32) for name, array in model.arrays.items()
    }
    return model.weights() | rounded


def torch_logits(model, weights, ids):
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    model.load_state_dict(state)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(ids)).logits.numpy()


def shapes_of(model):
    """What `reject_reason` is asked about."""
    shapes = {name: (layer.codes.shape, layer.grid) for name, layer in model.layers.items()}
    return shapes | {name: (array.shape, None) for name, array in model.arrays.items()}


def with_grid(model, rng, name, grid):
    model.layers[name] = random_layer(rng, model.weights()[name].shape, grid)
    model.arrays.pop(name, None)
    return model


FOUR_BITS = Grid(4, 64)
