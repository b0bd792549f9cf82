"""Codes, scales and zero points as ONNX holds them, read bit by bit and by ONNX's own reference
evaluator; refusals.
"""

import dataclasses
from itertools import product

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from solved_models import FOUR_BITS, shapes_of, solved, tiny, with_grid
from tiny_models import random_layer

from edgeq.errors import BadInput
from edgeq.types import Grid
from edgeq_exporters.common.deviation import largest_difference
from edgeq_exporters.onnx.blocks import Container, container_of, held_by_blocks, why_not_grid
from edgeq_exporters.onnx.exporter import OnnxExporter
from edgeq_exporters.onnx.tensors import block_parts, whole_number_parts

BIAS = "model.layers.0.self_attn.q_proj.bias"
DOWN = "model.layers.1.mlp.down_proj.weight"
FACTOR_ONLY = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0}


def numbers_of(row, bits, count):
    """Each row of bytes as one long number whose lowest bits are the first code."""
    number = sum(int(byte) << (8 * place) for place, byte in enumerate(row))
    return [number >> (bits * place) & (2**bits - 1) for place in range(count)]


def weights_in(parts, container, columns):
    """w = scale * (code - zero), in plain loops."""
    codes, scales, *zeros = parts
    rows = []
    for row, blocks in enumerate(codes.data):
        read = []
        for block, content in enumerate(blocks):
            zero = 2 ** (container.bits - 1)
            if zeros and zeros[0].kind == TensorProto.FLOAT:
                zero = float(zeros[0].data[row, block])
            elif zeros:
                zero = numbers_of(zeros[0].data[row], container.bits, len(blocks))[block]
            codes_here = numbers_of(content, container.bits, container.block_size)
            read += [float(scales.data[row, block]) * (code - zero) for code in codes_here]
        rows.append(read[:columns])
    return np.array(rows)


@pytest.mark.parametrize("state_middle", [False, True])
@pytest.mark.parametrize(
    ("columns", "group_size"), [(256, 32), (250, 64), (256, 256), (97, 48), (300, None), (40, 128)]
)
@pytest.mark.parametrize(
    ("bits", "zeros"),
    [*product(range(1, 9), ("symmetric", "integer")), (2, "offset"), (3, "offset"), (4, "offset")],
)
def test_blocks_are_read_bit_by_bit(rng, bits, zeros, columns, group_size, state_middle):
    layer = random_layer(rng, (3, columns), Grid(bits, group_size, zeros, "float32"))
    container = container_of(columns, layer.grid, "MatMulNBits")
    assert container.bits == {1: 2, 2: 2, 3: 4, 4: 4}.get(bits, 8)
    parts = list(block_parts("P", layer, container, state_middle=state_middle))
    blocks = -(-columns // container.block_size)
    assert parts[0].data.dtype == np.uint8
    assert (
        parts[0].data.shape
        == parts[0].shape
        == (3, blocks, container.block_size * container.bits // 8)
    )
    assert len(parts) == (2 if zeros == "symmetric" and not state_middle else 3)
    found = weights_in(parts, container, columns)
    np.testing.assert_allclose(found, layer.dequantized(), rtol=0, atol=1e-6)
    held = held_by_blocks(layer)
    assert (
        np.abs(found - layer.dequantized()).max()
        <= largest_difference(layer, held.scales, held.offsets) + 1e-6
    )


def test_known_codes_have_known_bytes():
    layer = random_layer(np.random.default_rng(0), (1, 16), Grid(4, 16))
    layer = dataclasses.replace(layer, codes=np.arange(16, dtype=np.uint8)[None])
    container = container_of(16, layer.grid, "MatMulNBits")
    codes, _ = block_parts("P", layer, container, state_middle=False)
    assert codes.data.tobytes() == bytes.fromhex("1032547698badcfe")


@pytest.mark.parametrize("rows_first", [False, True])
@pytest.mark.parametrize("shape", [(7, 96), (8, 100), (5, 37)])
@pytest.mark.parametrize("zeros", ["symmetric", "integer"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_onnx_itself_dequantizes_whole_numbers(rng, bits, zeros, shape, rows_first):
    layer = random_layer(rng, shape, Grid(bits, 32, zeros, "float32"))
    container = container_of(shape[1], layer.grid, "DequantizeLinear")
    parts = list(whole_number_parts("P", layer, container, rows_first=rows_first))
    tensors = [
        helper.make_tensor(p.name, p.kind, p.shape, p.data.tobytes(), raw=True) for p in parts
    ]
    axis = 1 if rows_first else 0
    node = helper.make_node(
        "DequantizeLinear", [p.name for p in parts], ["W"], axis=axis, block_size=32
    )
    output = helper.make_tensor_value_info("W", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", [], [output], tensors)
    (found,) = ReferenceEvaluator(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    ).run(None, {})
    np.testing.assert_allclose(
        np.asarray(found) if rows_first else np.asarray(found).T,
        layer.dequantized(),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("columns", "group_size", "block_size"),
    [
        (512, 16, 16),
        (512, 48, 16),
        (512, 96, 32),
        (512, 128, 128),
        (512, 512, 256),
        (1024, 512, 256),
        (64, 128, 64),
        (100, None, 128),
        (7, None, 16),
        (4096, None, 256),
    ],
)
def test_groups_are_made_of_the_longest_blocks_that_fit(columns, group_size, block_size):
    assert container_of(columns, Grid(4, group_size), "MatMulNBits") == Container(
        "MatMulNBits", 4, block_size, "middle"
    )


@pytest.mark.parametrize(
    ("grid", "operator", "words"),
    [
        (Grid(9, 32), "MatMulNBits", "holds 1 to 8 bits, not 9; choose bits between 2 and 8"),
        (
            Grid(4, 24),
            "MatMulNBits",
            "group_size 24 is not a multiple of 16, the shortest block; choose 16, 32, 64",
        ),
        (Grid(4, 8), "DequantizeLinear", "group_size 8 is not a multiple of 16"),
        (
            Grid(5, 32, "offset"),
            "MatMulNBits",
            "no free offsets at 5 bits; use whole zero points, or 4 bits and fewer",
        ),
        (Grid(8, 32, "offset"), "MatMulNBits", "no free offsets at 8 bits"),
        (
            Grid(4, 32, "offset"),
            "DequantizeLinear",
            "DequantizeLinear holds no free offsets; use whole zero points",
        ),
        (
            Grid(4, 32, "offset"),
            "GatherBlockQuantized",
            "an embedding holds no free offsets; use whole zero points",
        ),
    ],
)
def test_grids_without_a_container_are_refused(grid, operator, words):
    assert words in why_not_grid((64, 96), grid, operator)


def reason_of(model, **options):
    reason = OnnxExporter(**options).reject_reason(model.record, model.files, shapes_of(model))
    assert reason is not None and "\n" not in reason
    return reason


def refused(model, directory, **options):
    """The one line of a refusal, which leaves nothing behind and is known before any tensor is
    solved.
    """
    with pytest.raises(BadInput) as refusal:
        OnnxExporter(**options).write(model, directory)
    assert list(directory.iterdir()) == []
    assert str(refusal.value) == f"export 'onnx': {reason_of(model, **options)}"
    return str(refusal.value)


@pytest.mark.parametrize(
    ("grid", "qdq"),
    [(Grid(4, 40), False), (Grid(6, 32, "offset"), False), (Grid(4, 32, "offset"), True)],
)
def test_a_tensor_that_cannot_be_held_is_refused_by_name(rng, tmp_path, grid, qdq):
    model = with_grid(solved(tiny(), rng, [FOUR_BITS]), rng, DOWN, grid)
    assert f"tensor '{DOWN}': " in refused(model, tmp_path, qdq=qdq)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "tanh"}, "hidden_act 'tanh' is not supported"),
        (
            {"max_position_embeddings": None, "rms_norm_eps": None},
            "config.json lacks max_position_embeddings, rms_norm_eps, which the graph needs",
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "rope type 'dynamic' of a llama model is not supported",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 16}},
            "rope type 'longrope' lacks long_factor; add it to the rope settings in config.json",
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "short_factor": [1.0] * 16,
                    "long_factor": [1.0] * 15,
                }
            },
            "rope setting long_factor must be a list of 16 numbers, one for each rotated pair",
        ),
        (
            {"head_dim": 20},
            "heads of 20 are not a multiple of 8, as GroupQueryAttention needs; use another format",
        ),
        ({"attention_bias": True}, f"no tensor '{BIAS}', which config.json asks for"),
        ({"tie_word_embeddings": False}, "no tensor 'lm_head.weight'"),
        ({"num_hidden_layers": 1}, "tensor 'model.layers.1.input_layernorm.weight' has no place"),
    ],
)
def test_models_that_the_graph_would_compute_differently_are_refused(rng, tmp_path, changes, words):
    model = solved(tiny(), rng, [FOUR_BITS])
    assert words in refused(dataclasses.replace(model, config=model.config | changes), tmp_path)


def test_a_shape_that_contradicts_the_config_is_refused_before_any_work(rng):
    model = solved(tiny(), rng, [FOUR_BITS])
    model.arrays["model.norm.weight"] = np.ones(64, np.float32)
    assert (
        "tensor 'model.norm.weight' has shape (64,) but config.json asks for (128,)"
        in reason_of(model)
    )
