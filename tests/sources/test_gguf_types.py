"""Every type of tensor that the gguf package decodes, read out of a file, whole and one expert."""

import gguf
import numpy as np
import pytest
from converted_gguf import CONVERSIONS, checkpoint_of, convert, permute, tiny_model
from gguf import GGMLQuantizationType as Kind

from edgeq.errors import BadInput
from edgeq.sources.gguf_file import GgufFile

QUERY = "model.layers.1.self_attn.q_proj.weight"
NUMBERS = (Kind.F32, Kind.F16, Kind.BF16, Kind.F64)
DECODED = [kind for kind in gguf.quants._type_traits if kind not in NUMBERS]
NOT_DECODED = [Kind.Q8_1, Kind.Q8_K, Kind.Q1_0]
WIDE = {"hidden_size": 256, "num_hidden_layers": 2}

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


@pytest.fixture(scope="module")
def models():
    return {name: tiny_model(CONVERSIONS[name], **WIDE) for name in ("llama", "qwen3_moe")}


def random_bytes(rng, shape, kind):
    """Blocks of any bytes: whatever they mean, they mean one thing."""
    columns, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = (*shape[:-1], shape[-1] // columns * size)
    return rng.integers(0, 60, blocks, dtype=np.uint8)


@pytest.mark.parametrize("kind", DECODED, ids=lambda kind: kind.name)
def test_rows_of_every_type_are_those_of_the_library(rng, models, tmp_path, kind):
    blocks = random_bytes(rng, (256, 256), kind)
    conversion, name = CONVERSIONS["llama"], "blk.1.attn_q.weight"
    path = convert(
        conversion, models["llama"], tmp_path / "a.gguf", raw={name: (permute(blocks, 4), kind)}
    )
    source = GgufFile(path)
    assert source.stored_as(QUERY) == kind.name
    np.testing.assert_array_equal(source.read(QUERY), gguf.quants.dequantize(blocks, kind))


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.IQ2_XS, Kind.MXFP4], ids=lambda kind: kind.name)
def test_an_expert_is_read_alone(rng, models, tmp_path, kind):
    blocks = random_bytes(rng, (3, 32, 256), kind)
    raw = {"blk.1.ffn_up_exps.weight": (blocks, kind)}
    path = convert(CONVERSIONS["qwen3_moe"], models["qwen3_moe"], tmp_path / "a.gguf", raw=raw)
    source = GgufFile(path)
    for number in range(3):
        name = f"model.layers.1.mlp.experts.{number}.up_proj.weight"
        assert source.tensor_bytes(name) == blocks[number].nbytes
        expected = gguf.quants.dequantize(blocks[number], kind)
        np.testing.assert_array_equal(source.read(name), expected)


@pytest.mark.parametrize("kind", NOT_DECODED, ids=lambda kind: kind.name)
def test_a_type_that_the_library_cannot_decode_is_refused_by_name(rng, models, tmp_path, kind):
    raw = {"blk.1.attn_q.weight": (random_bytes(rng, (256, 256), kind), kind)}
    path = convert(CONVERSIONS["llama"], models["llama"], tmp_path / "a.gguf", raw=raw)
    with pytest.raises(BadInput, match=f"'blk.1.attn_q.weight' is of type {kind.name}, which"):
        GgufFile(path).read(QUERY)


def test_types_that_store_numbers_keep_them_but_where_a_norm_is_computed(tmp_path):
    conversion = CONVERSIONS["gemma"]
    model = tiny_model(conversion)
    names = ("blk.0.attn_q.weight", "blk.0.attn_norm.weight")
    types = dict.fromkeys(names, Kind.BF16)
    source = GgufFile(convert(conversion, model, tmp_path / "a.gguf", types=types))
    expected = checkpoint_of(model)
    query, norm = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight"
    assert str(source.read(query).dtype) == "bfloat16"
    assert source.read(norm).dtype == np.float32
    np.testing.assert_allclose(source.read(norm), expected[norm], atol=1 / 128)
