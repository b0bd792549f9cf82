"""The demo model, read from its GGUF file and written again."""

import gguf
import numpy as np
import pytest
from tiny_models import TEXT, MemoryModel, one_block_model

from edgeq.sources.demo import find_demo
from edgeq.sources.gguf_file import GgufFile
from edgeq.types import Grid, QuantizedLinear
from edgeq_backends.llama_cpp import LlamaCppLogits
from edgeq_exporters.gguf.exporter import GgufExporter
from edgeq_exporters.gguf.tokenizer import tokenizer_keys

TOKENIZER_KEYS = [
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.chat_template",
]
BLOCKS = 2  # of 30; the others have the same shapes
PROJECTIONS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
pytestmark = pytest.mark.slow  # reading its tokenizer and 49,152 tokens takes seconds each time
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


@pytest.fixture(scope="module")
def original():
    return gguf.GGUFReader(find_demo())


@pytest.fixture(scope="module")
def source():
    return GgufFile(find_demo())


def test_its_tokenizer_comes_back_key_by_key(original, source):
    written = dict(
        tokenizer_keys(
            source.companions(), source.record.tokens, source.record.template, vocab_size=49152
        )
    )
    assert written == {key: original.fields[key].contents() for key in TOKENIZER_KEYS}


def test_llama_cpp_splits_text_the_same_way_after_export(source, tmp_path):
    model = one_block_model(source.companions())
    model.arrays["model.embed_tokens.weight"] = np.ones((49152, 32), np.float16)
    file, *_ = GgufExporter().write(model, tmp_path)
    text = f"<|im_start|>user\n{TEXT}<|im_end|>\n"
    expected = LlamaCppLogits(find_demo()).tokenize(text, parse_special=True)
    assert LlamaCppLogits(file).tokenize(text, parse_special=True) == expected


def solution_of(tensor):
    """Codes, scales and offsets of a Q4_1 tensor, rows in the order of the file."""
    columns, rows = (int(size) for size in tensor.shape)
    blocks = np.asarray(tensor.data).reshape(rows, columns // 32, 20)
    scales, offsets = (
        blocks[..., part].copy().view("<f2")[..., 0].astype("f4")
        for part in (slice(2), slice(2, 4))
    )
    codes = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], axis=-1).reshape(
        rows, columns
    )
    return QuantizedLinear(codes, scales, offsets, Grid(4, 32, "offset"))


def in_checkpoint_order(layer, heads):
    """Undo the converter's reordering of each head's rows, one row at a time."""
    half = layer.codes.shape[0] // heads // 2
    rows = [
        head * 2 * half + 2 * i + part
        for head in range(heads)
        for part in (0, 1)
        for i in range(half)
    ]
    return QuantizedLinear(layer.codes[rows], layer.scales[rows], layer.offsets[rows], layer.grid)


def first_blocks(original, source):
    """The demo's first blocks, with its own codes, as a model that was solved on the grid of
    Q4_1.
    """
    tensors = {tensor.name: tensor for tensor in original.tensors}
    model = MemoryModel(
        dict(source.record.config()) | {"num_hidden_layers": BLOCKS},
        files=dict(source.companions()),
    )
    model.arrays["model.embed_tokens.weight"] = source.read("model.embed_tokens.weight")
    model.arrays["model.norm.weight"] = source.read("model.norm.weight")
    for block in range(BLOCKS):
        for name, full_name in PROJECTIONS.items():
            layer = solution_of(tensors[f"blk.{block}.{name}.weight"])
            heads = {"attn_q": 9, "attn_k": 3}.get(name)
            ordered = layer if heads is None else in_checkpoint_order(layer, heads)
            model.layers[f"model.layers.{block}.{full_name}.weight"] = ordered
        for full_name in NORMS.values():
            weight = f"model.layers.{block}.{full_name}.weight"
            model.arrays[weight] = source.read(weight)
    return model


def test_its_own_codes_are_written_as_the_bytes_they_came_from(original, source, tmp_path):
    file, *_ = GgufExporter().write(first_blocks(original, source), tmp_path)
    written = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    theirs = {tensor.name: tensor for tensor in original.tensors}
    quantized = [name for name in written if name.split(".")[-2] in PROJECTIONS]
    assert len(quantized) == BLOCKS * len(PROJECTIONS)
    for name in quantized:
        assert written[name].tensor_type == theirs[name].tensor_type
        np.testing.assert_array_equal(written[name].data, theirs[name].data, err_msg=name)
    for name in [
        "output_norm.weight",
        *(f"blk.{i}.{norm}.weight" for i in range(BLOCKS) for norm in NORMS),
    ]:
        np.testing.assert_array_equal(written[name].data, theirs[name].data)
