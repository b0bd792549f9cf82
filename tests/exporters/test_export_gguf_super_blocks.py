"""llama.cpp's blocks of two levels, with tables and of 64 columns: bytes, files and logits."""

import ctypes
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from solved_models import shapes_of, solved, tiny, torch_logits, with_grid
from tiny_models import products_of, random_layer, tokenizer_files

from benchmarks.llama_cpp_library import LlamaCpp
from edgeq.checkpoint.certificate import hash_of_layer
from edgeq.checkpoint.tensor_file import TensorFile, write_tensors
from edgeq.errors import BadInput
from edgeq.files.gguf_reader import NewType, Reader, dequantize
from edgeq.grids.types import IQ4_TABLE, SPECIAL
from edgeq.measuring.verify import verify
from edgeq.registry import FORMATS, load_exporter
from edgeq.sources.gguf_file import GgufFile
from edgeq.types import Grid, QuantizedLinear
from edgeq_backends.llama_cpp import LlamaCppLogits
from edgeq_exporters.gguf.blocks import (
    block_type,
    held_by_blocks,
    pack_blocks,
    tensor_bytes,
    why_not_packable,
)
from edgeq_exporters.gguf.exporter import GgufExporter
from edgeq_exporters.gguf.read_super_blocks import typed_layer

every_type = pytest.mark.parametrize("name", SPECIAL)
TWO_LEVELS = [name for name, grid in SPECIAL.items() if grid.super_blocks]
TABLES = [name for name, grid in SPECIAL.items() if grid.table]
KNOWN = [name for name in SPECIAL if name in gguf.GGMLQuantizationType.__members__]
SMALLEST, LARGEST = 2.0**-24, 65504.0  # of float16
UP = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
LIBRARIES = os.environ.get("LLAMA_CPP_LIBS", "")
SAME = 1e-8  # of float32 sums in another order; a wrong code in a hundred gives 1e-3 and more
ROUNDED = 0.05  # activations in 8 bits: ternary weights, the largest ones, take half of it
WHERE = "needs LLAMA_CPP_LIBS: the folder of libggml-base.so of llama.cpp v0.5.0 or later"


def read_by_library(name, packed):
    """What the gguf library makes of blocks; the one type that it does not know is read below."""
    if name not in KNOWN:
        return dequantize(packed, NewType[name])
    return gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[name])


def of_numbers(grid, codes, floats, integers, minima, least):
    """A layer of rows that have one float, and one integer in all groups or one for each."""
    rows, columns = codes.shape
    per_block, per_group = (
        (rows, grid.super_block_count(columns)),
        (rows, grid.group_count(columns)),
    )
    floats = np.broadcast_to(np.array(floats, "f4")[:, None], per_block).copy()
    integers = np.broadcast_to(integers, per_group)
    if grid.super_blocks.minimum_limits is None:
        return products_of(codes, grid, floats, integers)
    minima = np.broadcast_to(np.array(minima, "f4")[:, None], per_block).copy()
    return products_of(codes, grid, floats, integers, minima, np.broadcast_to(least, per_group))


def awkward_layer(rng, grid):
    """Rows of zeros, one outlier, negative weights alone, and every number at both its limits."""
    codes = rng.integers(0, grid.max_code + 1, (6, 512)).astype(np.uint8)
    none = grid.table.index(0) if 0 in grid.table else grid.middle
    codes[:2] = none
    codes[1, 77] = grid.max_code
    codes[2] = 0
    floats = [SMALLEST, 3.0, 0.5, -SMALLEST, LARGEST, -LARGEST]
    if grid.super_blocks is None:
        scales = np.array(floats, "f4")[:, None] * np.ones((1, grid.group_count(512)), "f4")
        scales[0] = 0 if grid.table else SMALLEST
        return QuantizedLinear(codes, scales, -scales * np.float32(grid.middle), grid)
    low, high = grid.super_blocks.scale_limits
    groups = grid.group_count(512)
    integers = np.stack([np.full(groups, high), np.full(groups, low)] * 3)
    integers[4:, ::2] = integers[4:, ::2][:, ::-1]
    integers[0] = 0
    integers[3] = rng.integers(low, high + 1, groups)
    least = rng.integers(0, 64 if grid.bits > 2 else 16, (6, groups))
    least[0] = 0
    minima = [0.0, 0.0, 1.0, SMALLEST, LARGEST, -SMALLEST]
    return of_numbers(grid, codes, floats, integers, minima, least)


def plain_layer(rng, grid):
    return random_layer(rng, (7, 768), grid)


@every_type
@pytest.mark.parametrize("layer_of", [plain_layer, awkward_layer])
def test_the_library_reads_exactly_the_dequantized_weights(rng, name, layer_of):
    layer = layer_of(rng, SPECIAL[name])
    packed = pack_blocks(layer)
    np.testing.assert_array_equal(read_by_library(name, packed), layer.dequantized())
    assert packed.nbytes == tensor_bytes(layer.codes.shape, layer.grid, 4)
    held = held_by_blocks(layer)
    np.testing.assert_array_equal(held.scales, layer.scales)
    np.testing.assert_array_equal(held.offsets, layer.offsets)


@every_type
@pytest.mark.parametrize("layer_of", [plain_layer, awkward_layer])
def test_blocks_are_taken_apart_into_the_same_solution(rng, name, layer_of):
    layer = layer_of(rng, SPECIAL[name])
    found = typed_layer(pack_blocks(layer), layer.grid)
    assert hash_of_layer(found) == hash_of_layer(layer)
    np.testing.assert_array_equal(found.codes, layer.codes)
    if layer.super_scales is not None:
        np.testing.assert_array_equal(found.super_scales, layer.super_scales)


@pytest.mark.parametrize("name", [name for name in SPECIAL if name != "TQ1_0"])
def test_any_bytes_survive_taking_apart_and_packing(rng, name):
    """TQ1_0 has several bytes for the same digits."""
    kind = block_type(SPECIAL[name])
    theirs = rng.integers(0, 256, (40, 3, kind.block_bytes)).astype(np.uint8)
    for place in FLOATS[name]:
        theirs[..., place + 1] = theirs[..., place + 1] & 0xBB | 0x20  # neither zero nor infinite
    if name.startswith("TQ"):
        codes = rng.integers(0, 3, (40, 3, 64, 4)).astype(np.uint8)
        theirs[..., :64] = (codes << np.array([0, 2, 4, 6], np.uint8)).sum(axis=-1)
    theirs = theirs.reshape(40, -1)
    np.testing.assert_array_equal(pack_blocks(typed_layer(theirs, SPECIAL[name])), theirs)


FLOATS = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "TQ2_0": (64,),
    "Q2_0": (0,),
}
"""Where the float16 numbers of a block lie."""


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
def test_blocks_quantized_by_the_library_are_packed_back_to_the_same_bytes(rng, name):
    weights = rng.standard_normal((5, 512)).astype(np.float32)
    theirs = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(pack_blocks(typed_layer(theirs, SPECIAL[name])), theirs)


def test_the_table_of_levels_is_that_of_the_library():
    assert tuple(gguf.quants.IQ4_NL.kvalues) == IQ4_TABLE


def test_a_block_of_two_bits_has_these_literal_bytes():
    """Levels 1, 0, -1, -2 of a scale of 0.5 are those of -0.5 turned over, lowest bits first."""
    codes = np.tile(np.array([3, 2, 1, 0], np.uint8), 16)[None]
    layer = QuantizedLinear(
        codes, np.full((1, 1), 0.5, "f4"), np.full((1, 1), -1.0, "f4"), SPECIAL["Q2_0"]
    )
    assert pack_blocks(layer).tobytes().hex() == "00b8" + "e4" * 16
    assert dequantize(pack_blocks(layer), NewType.Q2_0)[0, :4].tolist() == [0.5, 0.0, -0.5, -1.0]


@cache
def ggml():
    return ctypes.CDLL(str(Path(LIBRARIES, "libggml-base.so")))


@pytest.mark.slow
@pytest.mark.skipif(not Path(LIBRARIES, "libggml-base.so").is_file(), reason=WHERE)
@every_type
def test_llama_cpp_itself_reads_exactly_the_dequantized_weights(rng, name):
    decode = getattr(ggml(), f"dequantize_row_{name.lower().replace('_k', '_K')}")
    decode.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    decode.restype = None
    for layer in (random_layer(rng, (7, 768), SPECIAL[name]), awkward_layer(rng, SPECIAL[name])):
        packed, weights = pack_blocks(layer), np.empty(layer.codes.shape, np.float32)
        decode(packed.ctypes.data, weights.ctypes.data, weights.size)
        np.testing.assert_array_equal(weights, layer.dequantized())


@every_type
def test_a_checkpoint_stores_a_solution_on_every_type(rng, tmp_path, name):
    layer = random_layer(rng, (7, 768), SPECIAL[name])
    write_tensors(tmp_path / "a.safetensors", {"a": layer}, {})
    found = TensorFile(tmp_path / "a.safetensors").quantized("a")
    assert found.grid == layer.grid and hash_of_layer(found) == hash_of_layer(layer)
    np.testing.assert_array_equal(pack_blocks(found), pack_blocks(layer))


def wide(rng, grids, kind="llama", **changes):
    """A transformers model whose widths hold every type, and its solution on grids in turn."""
    sizes = {"vocab_size": 320, "hidden_size": 256, "intermediate_size": 512} | changes
    model = tiny(kind, **sizes)
    export = solved(model, rng, grids)
    export.files = tokenizer_files()
    return model, export


@every_type
def test_an_export_holds_the_solution_and_verifies(rng, tmp_path, name):
    _, export = wide(rng, [SPECIAL[name]])
    path, *_ = GgufExporter().write(export, tmp_path)
    result = verify(tmp_path)
    assert result["differences"] == []
    assert set(result["statuses"]) == {"dense", "exact"}
    tensors = {tensor.name: tensor for tensor in Reader(path).tensors}
    assert tensors["blk.1.attn_q.weight"].tensor_type.name == name
    source = GgufFile(path)
    for tensor, layer in export.layers.items():
        assert source.stored_as(tensor) == name
        np.testing.assert_array_equal(source.read(tensor), layer.dequantized())


@pytest.mark.parametrize("name", KNOWN)
def test_llama_cpp_predicts_like_torch_with_the_dequantized_weights(rng, tmp_path, name):
    model, export = wide(rng, [SPECIAL[name]])
    path, *_ = GgufExporter().write(export, tmp_path)
    windows = rng.integers(0, 290, (2, 48))
    expected = torch_logits(model, export.weights(), windows)
    exact = np.stack(list(LlamaCppLogits(path, exact=True).logits(windows)))
    rounded = np.stack(list(LlamaCppLogits(path).logits(windows)))
    assert divergence(expected, exact) < SAME
    assert divergence(expected, rounded) < ROUNDED


@pytest.mark.slow
@pytest.mark.skipif(not Path(LIBRARIES, "libggml-base.so").is_file(), reason=WHERE)
@every_type
def test_llama_cpp_of_the_newest_types_predicts_like_torch_too(rng, tmp_path, name):
    model, export = wide(rng, [SPECIAL[name]])
    path, *_ = GgufExporter().write(export, tmp_path)
    windows = rng.integers(0, 290, (2, 48))
    with LlamaCpp(Path(LIBRARIES)).opened(path, 48) as opened:
        found = np.stack([opened.logits(window) for window in windows])
    far = divergence(torch_logits(model, export.weights(), windows), found)
    print(f"{name}: {far:.1e} nats per token")
    assert far < ROUNDED


def divergence(expected, found):
    """Mean Kullback-Leibler divergence per token."""
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), dim=-1) for x in (expected, found))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_an_embedding_on_q6_k_and_layers_of_other_types_run_in_one_file(rng, tmp_path):
    """As llama.cpp's own mixes: rows of a larger type in the embedding, several types inside."""
    grids = [SPECIAL["Q4_K"], Grid(5, 32), SPECIAL["IQ4_XS"], None]
    model, export = wide(rng, grids, "qwen2")
    export = with_grid(export, rng, EMBEDDING, SPECIAL["Q6_K"])
    path, *_ = GgufExporter().write(export, tmp_path)
    assert verify(tmp_path)["differences"] == []
    windows = rng.integers(0, 290, (2, 32))
    expected = torch_logits(model, export.weights(), windows)
    exact = np.stack(list(LlamaCppLogits(path, exact=True).logits(windows)))
    assert divergence(expected, exact) < SAME


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *(("Q2_K", 10), ("Q3_K", 11), ("Q4_K", 14), ("Q5_K", 16), ("Q6_K", 18)),
        *(("IQ4_NL", 25), ("IQ4_XS", 30), ("TQ1_0", 36), ("TQ2_0", 37), ("Q2_0", 41)),
    ],
)
def test_a_file_states_the_type_of_most_weights_by_the_number_of_llama_cpp(
    rng, tmp_path, name, number
):
    _, export = wide(rng, [SPECIAL[name]], num_hidden_layers=1)
    export = with_grid(export, rng, EMBEDDING, Grid(8, 32))
    path, *_ = GgufExporter().write(export, tmp_path)
    assert Reader(path).fields["general.file_type"].contents() == number
    if name in KNOWN:
        numbers = gguf.LlamaFileType.__members__
        assert number in (numbers.get(f"MOSTLY_{name}"), numbers.get(f"MOSTLY_{name}_S"))


@pytest.mark.parametrize(
    ("name", "columns"),
    [(name, 576) for name in SPECIAL if name not in ("IQ4_NL", "Q2_0")] + [("Q2_0", 96)],
)
def test_a_width_that_does_not_fill_blocks_is_refused_in_one_line(name, columns):
    reason = why_not_packable((8, columns), SPECIAL[name])
    assert f"{columns} inputs do not fill blocks of {name}" in reason and "\n" not in reason


@pytest.mark.parametrize(("name", "columns"), [("IQ4_NL", 80), ("TQ2_0", 80), ("Q2_0", 80)])
def test_rows_that_fill_no_block_are_held_dense(name, columns):
    assert why_not_packable((8, columns), SPECIAL[name]) is None
    assert tensor_bytes((8, columns), SPECIAL[name], 4) == 2 * 8 * columns


def test_an_unknown_type_is_refused_by_name():
    reason = why_not_packable((8, 256), replace(SPECIAL["Q4_K"], type="Q9_K"))
    assert "no blocks of a type 'Q9_K'" in reason


def test_a_plain_grid_of_two_bits_lies_in_blocks_that_every_llama_cpp_reads():
    assert block_type(Grid(2, 64)).name == "Q4_0"
    assert block_type(SPECIAL["Q2_0"]).name == "Q2_0"


def test_a_note_says_which_llama_cpp_reads_blocks_of_two_bits(rng):
    _, export = wide(rng, [SPECIAL["Q2_0"]], num_hidden_layers=1)
    (note,) = GgufExporter().notes(export.record, export.files, shapes_of(export))
    assert note.startswith("8 tensors lie in blocks of Q2_0, which llama.cpp b9916")
    _, export = wide(rng, [SPECIAL["Q4_K"]], num_hidden_layers=1)
    assert GgufExporter().notes(export.record, export.files, shapes_of(export)) == []


def of_limits(grid, *, above):
    """A layer with an integer beyond what the type holds."""
    low, high = grid.super_blocks.scale_limits
    beyond = np.ones((1, grid.group_count(256)), np.int16)
    beyond[0, 3] = high + 1 if above else low - 1
    codes = np.zeros((1, 256), np.uint8)
    return of_numbers(grid, codes, [0.5], beyond, [0.0], beyond * 0)


@pytest.mark.parametrize("name", TWO_LEVELS)
@pytest.mark.parametrize("above", [True, False])
def test_an_integer_beyond_the_limits_of_its_type_is_refused(name, above):
    with pytest.raises(BadInput, match=f"a scale of {name} is .* the type holds"):
        pack_blocks(of_limits(SPECIAL[name], above=above))


@every_type
def test_a_float_beyond_float16_is_refused(rng, name):
    layer = random_layer(rng, (2, 256), SPECIAL[name])
    if layer.super_scales is None:
        layer = replace(layer, scales=layer.scales * np.float32(1e9))
    else:
        layer = replace(layer, super_scales=layer.super_scales + np.float32(1e6))
    with pytest.raises(BadInput, match="exceeds float16"):
        pack_blocks(layer)


def test_floats_that_float16_does_not_hold_are_stated_as_rescaled(rng, tmp_path):
    _, export = wide(rng, [SPECIAL["Q3_K"]], num_hidden_layers=1)
    layer = export.layers[UP]
    factor = np.float32(1 + 2**-13)
    export.layers[UP] = replace(
        layer,
        super_scales=layer.super_scales * factor,
        scales=layer.scales * factor,
        offsets=layer.offsets * factor,
    )
    GgufExporter().write(export, tmp_path)
    result = verify(tmp_path)
    assert result["differences"] == [] and result["statuses"]["rescaled"] == 1


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "gguf"])
@pytest.mark.parametrize("kind", TABLES)
def test_a_table_is_refused_by_every_other_format(name, kind):
    reason = load_exporter(name).why_not_grid((256, 256), SPECIAL[kind])
    assert reason.endswith("choose bits and groups, or format gguf") and kind in reason


@pytest.mark.parametrize(
    ("name", "kind", "status"),
    [
        ("mlx", "Q4_K", "exact"),
        ("mlx", "Q5_K", "exact"),
        ("mlx", "Q2_0", "exact"),
        ("onnx", "Q3_K", "widened"),
        ("onnx", "Q6_K", "widened"),
        ("onnx", "Q2_K", "rescaled"),
        ("onnx", "Q4_K", "rescaled"),
        ("onnx", "Q2_0", "exact"),
        ("gptq", "Q2_0", "exact"),
        ("compressed-tensors", "Q2_0", "exact"),
    ],
)
def test_other_formats_hold_types_that_are_bits_and_groups(rng, tmp_path, name, kind, status):
    _, export = wide(rng, [SPECIAL[kind]], num_hidden_layers=1)
    export = with_grid(export, rng, EMBEDDING, Grid(8, 32))
    load_exporter(name).write(export, tmp_path)
    result = verify(tmp_path)
    assert result["differences"] == []
    found = {each["name"]: each["status"] for each in result["tensors"]}
    assert next(found[each] for each in found if "down_proj" in each) == status


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("mlx", "Q2_K", "group_size 16"),
        ("mlx", "Q3_K", "group_size 16"),
        ("mlx", "Q6_K", "group_size 16"),
        ("onnx", "Q5_K", "no free offsets at 5 bits"),
        ("gptq", "Q2_K", "no free offsets"),
        ("gptq", "Q3_K", "group_size 16"),
        ("gptq", "Q4_K", "no free offsets"),
        ("compressed-tensors", "Q4_K", "no free offsets"),
        ("compressed-tensors", "Q3_K", "3 bits in different ways"),
    ],
)
def test_other_formats_refuse_types_whose_parts_they_do_not_hold(name, kind, words):
    assert words in load_exporter(name).why_not_grid((256, 256), SPECIAL[kind])


@pytest.mark.parametrize("name", ["mlx", "onnx", "gptq", "compressed-tensors"])
def test_a_type_that_is_not_held_is_refused_by_its_name(rng, name):
    """Advice to choose groups or zeros would be none: they are the type's own."""
    _, export = wide(rng, [SPECIAL["Q5_K" if name == "onnx" else "Q3_K"]], num_hidden_layers=1)
    export = with_grid(export, rng, EMBEDDING, Grid(8, 32))
    reason = load_exporter(name).reject_reason(export.record, export.files, shapes_of(export))
    assert "it is on type Q" in reason
    assert reason.endswith("choose another type or bits for it, or format gguf")
