"""Models small enough to write in a fixture: a random Llama as a directory, and as a GGUF file."""

from collections.abc import Callable

import gguf
import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 128,
}
TINY_METADATA = {
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 128,
    "llama.attention.layer_norm_rms_epsilon": 1e-6,
    "llama.rope.freq_base": 10000.0,
}
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="session")
def tiny_llama():
    return LlamaForCausalLM(LlamaConfig(**TINY)).eval()


@pytest.fixture
def tiny_directory(tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def gguf_tensors(model):
    """The model's weights under GGUF names and in the converter's row order."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        weights = tensor.numpy().copy()
        for projection, heads in (("q_proj", 4), ("k_proj", 2)):
            if projection in name:  # as written in llama.cpp's converter
                weights = (
                    weights.reshape(heads, 2, weights.shape[0] // heads // 2, 64)
                    .swapaxes(1, 2)
                    .reshape(-1, 64)
                )
        for theirs, gguf_name in GGUF_NAMES.items():
            name = name.replace(theirs, gguf_name)  # noqa: PLW2901
        tensors[name] = weights
    return tensors


def write_gguf(path, metadata, tensors=None, *, architecture="llama", types=None):
    """A GGUF file of plain values; types maps tensor names to the type they are stored in."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add: dict[type, Callable[..., None]] = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        add.get(type(value), writer.add_array)(key, value)
    for name, weights in (tensors or {}).items():
        kind = (types or {}).get(name)
        stored = weights if kind is None else gguf.quants.quantize(weights.astype(np.float32), kind)
        writer.add_tensor(name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def make_gguf(tmp_path):
    def make(metadata, tensors=None, **options):
        return write_gguf(tmp_path / "tiny.gguf", metadata, tensors, **options)

    return make


@pytest.fixture
def tiny_metadata():
    return dict(TINY_METADATA)


@pytest.fixture
def tiny_tensors(tiny_llama):
    return gguf_tensors(tiny_llama)
