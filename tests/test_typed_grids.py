"""Grids with a type: how checkpoints, manifests and reports hold them, and what damage says."""

import json

import gguf
import numpy as np
import pytest
from converted_gguf import CONVERSIONS, convert, permute, tiny_model
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from solved_rows import solve_row
from tiny_models import random_layer, tokenizer_files

from edgeq.checkpoint.certificate import hash_of_layer
from edgeq.checkpoint.tensor_file import TensorFile, stored_grid, stored_parts, write_tensors
from edgeq.dtypes import ITEM_BYTES
from edgeq.errors import BadInput
from edgeq.files.gguf_reader import NewType, dequantize
from edgeq.grids.limits import clamped_groups
from edgeq.grids.types import GRIDS, PLAIN, SPECIAL, with_type
from edgeq.measuring.manifest import is_grid
from edgeq.measuring.verify import verify
from edgeq.sources.gguf_file import GgufFile
from edgeq.types import Grid
from edgeq.words import describe_grid
from edgeq_exporters.common.manifest import grid_of, quantized_entry
from edgeq_exporters.gguf.exporter import GgufExporter

NAME = "a.weight"
every_type = pytest.mark.parametrize("name", SPECIAL)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "a.safetensors"


def changed(file, *, grid=None, **parts):
    """Write the file anew with other parts or another grid."""
    with safe_open(file, "np") as opened:
        grids = json.loads(opened.metadata()["edgeq"])
    tensors = load_file(file)
    tensors |= {
        f"{NAME}.{part}": change(tensors[f"{NAME}.{part}"]) for part, change in parts.items()
    }
    if grid is not None:
        grids[NAME] = grid(grids[NAME])
    save_file(tensors, file, metadata={"edgeq": json.dumps(grids)})
    return TensorFile(file)


def first(value):
    """Set the first number of an array."""

    def change(array):
        array.flat[0] = value
        return array

    return change


@every_type
def test_bytes_of_the_checkpoint_are_those_that_plans_count(rng, file, name):
    layer = random_layer(rng, (6, 512), SPECIAL[name])
    write_tensors(file, {NAME: layer}, {})
    parts = stored_parts(NAME, layer.codes.shape, layer.grid).values()
    counted = sum(int(np.prod(shape)) * ITEM_BYTES[dtype] for dtype, shape in parts)
    assert counted == TensorFile(file).tensor_bytes(NAME)
    assert counted == sum(array.nbytes for array in load_file(file).values())


def test_grids_of_older_checkpoints_are_read_as_before(rng, file):
    for grid in (Grid(4, 32), Grid(3, 64, "offset", "bfloat16"), Grid(4, 32, outlier_columns=0.05)):
        assert len(stored_grid(grid)) == 4 + bool(grid.outlier_columns)
        write_tensors(file, {NAME: random_layer(rng, (4, 128), grid)}, {})
        assert TensorFile(file).grid(NAME) == grid


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("super_scales", 0, "a scale of zero in 'a.weight.super_scales'"),
        ("super_scales", np.inf, "NaN or infinity in 'a.weight.super_scales'"),
        ("super_minima", np.nan, "NaN or infinity in 'a.weight.super_minima'"),
        ("sub_scales", 0, "a scale of zero in 'a.weight.sub_scales'"),
    ],
)
def test_damaged_numbers_of_two_levels_are_refused_in_one_line(rng, file, part, value, words):
    write_tensors(file, {NAME: random_layer(rng, (4, 512), SPECIAL["Q4_K"])}, {})
    with pytest.raises(BadInput, match=words) as refusal:
        changed(file, **{part: first(value)}).quantized(NAME)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "part", "zero"),
    [("IQ4_XS", "sub_scales", 32), ("IQ4_NL", "scales", 0)],  # integers are stored from -32 on
)
def test_scales_of_a_table_may_be_zero(rng, file, name, part, zero):
    write_tensors(file, {NAME: random_layer(rng, (4, 512), SPECIAL[name])}, {})
    assert not changed(file, **{part: first(zero)}).quantized(NAME).dequantized()[0, :32].any()


def test_a_code_beyond_a_table_is_refused(rng, file):
    write_tensors(file, {NAME: random_layer(rng, (4, 512), SPECIAL["TQ1_0"])}, {})
    with pytest.raises(BadInput, match=r"a code above 2 in 'a\.weight\.codes'"):
        changed(file, codes=first(0xFFFFFFFF)).quantized(NAME)


@pytest.mark.parametrize(
    "grid",
    [
        lambda stored: [*stored[:-1], "Q9_K"],
        lambda stored: [*stored[:-1], "Q4_0"],
        lambda stored: [*stored[:-1], "Q5_K"],
        lambda stored: [*stored[:-1], 5],
        lambda stored: [*stored, "Q4_K"],
        lambda stored: [stored[0], 500, *stored[2:]],
        lambda stored: [*stored[:-1], 0.25, (), "Q4_K"],
    ],
)
def test_a_grid_that_is_none_of_its_type_is_refused(rng, file, grid):
    write_tensors(file, {NAME: random_layer(rng, (4, 512), SPECIAL["Q4_K"])}, {})
    with pytest.raises(BadInput, match=r"unknown grid for 'a\.weight'"):
        changed(file, grid=grid)


@every_type
def test_a_manifest_states_the_type_of_a_grid(rng, name):
    layer = random_layer(rng, (4, 512), SPECIAL[name])
    entry = quantized_entry(name=NAME, source=NAME, type_name=name, layer=layer, stored=layer)
    assert entry["grid_type"] == name and entry["status"] == "exact"
    assert is_grid(entry) and grid_of(entry) == SPECIAL[name]
    for other in ("Q9_K", "Q4_0", "Q3_K" if name != "Q3_K" else "Q2_K"):
        assert not is_grid(entry | {"grid_type": other})
        with pytest.raises(BadInput, match=f"a grid of type '{other}'"):
            grid_of(entry | {"grid_type": other})
    assert not is_grid(entry | {"bits": 7})


def test_a_plain_grid_has_no_type():
    assert all(with_type(grid, "") is grid for grid in PLAIN.values())
    assert all(with_type(grid, name) is None for name, grid in PLAIN.items())
    assert {name for name, grid in GRIDS.items() if grid.type} == set(SPECIAL)


@every_type
def test_zeros_of_either_sign_are_one_solution(rng, name):
    layer = random_layer(rng, (4, 512), SPECIAL[name])
    before = hash_of_layer(layer)
    layer.offsets[layer.offsets == 0] *= -1
    assert hash_of_layer(layer) == before


def test_reports_call_a_grid_by_its_type():
    assert describe_grid(SPECIAL["Q4_K"]) == "Q4_K"
    assert describe_grid(Grid(4, 32)) == "4 bits, group 32, symmetric"


def test_groups_of_super_blocks_whose_float_is_at_its_limit_are_counted(rng):
    layer = random_layer(rng, (3, 512), SPECIAL["Q4_K"])
    weight = np.ones((3, 512), np.float32)
    weight[1, 256:288] = 0
    assert clamped_groups(NAME, weight, layer) == 0
    layer.super_scales[0, 0], layer.super_scales[1, 1] = 2.0**-24, 65504
    assert clamped_groups(NAME, weight, layer) == 8 + 7
    layer.scales[0, 0] = np.inf
    with pytest.raises(BadInput, match="exceeds float16; keep it dense"):
        clamped_groups(NAME, weight, layer)


def test_experts_in_a_stack_keep_their_types_and_their_rows(rng, tmp_path):
    model = solve_row("mixtral", rng, SPECIAL["Q3_K"], hidden_size=256, intermediate_size=512)
    model.files = tokenizer_files()
    path, *_ = GgufExporter().write(model, tmp_path)
    assert verify(tmp_path)["differences"] == []
    source = GgufFile(path)
    experts = [name for name in model.layers if ".experts." in name]
    assert len(experts) > 10
    for name in experts:
        assert source.stored_as(name) == "Q3_K"
        np.testing.assert_array_equal(source.read(name), model.layers[name].dequantized())


def q2_0(rng, rows, columns):
    return rng.integers(0, 60, (*rows, columns // 64 * 18), dtype=np.uint8)


def test_a_source_of_blocks_of_two_bits_is_read(rng, tmp_path, monkeypatch):
    monkeypatch.setitem(gguf.GGML_QUANT_SIZES, NewType.Q2_0, (64, 18))  # for the library's writer
    conversion, name = CONVERSIONS["llama"], "blk.1.attn_q.weight"
    model = tiny_model(conversion, hidden_size=256, num_hidden_layers=2)
    blocks = q2_0(rng, (256,), 256)
    raw = {name: (permute(blocks, 4), NewType.Q2_0)}
    source = GgufFile(convert(conversion, model, tmp_path / "a.gguf", raw=raw))
    tensor = "model.layers.1.self_attn.q_proj.weight"
    assert source.stored_as(tensor) == "Q2_0" and source.tensor_bytes(tensor) == blocks.nbytes
    np.testing.assert_array_equal(source.read(tensor), by_hand(blocks))
    assert source.read(tensor).dtype == np.float32


def by_hand(blocks):
    """A slow reading of the format's description, one code at a time."""
    weights = []
    for block in blocks.reshape(-1, 18):
        d = np.frombuffer(block[:2].tobytes(), "<f2")[0].astype(np.float32)
        weights += [d * ((int(block[2 + i // 4]) >> 2 * (i % 4) & 3) - 1) for i in range(64)]
    return np.array(weights, np.float32).reshape(len(blocks), -1)


def test_blocks_of_two_bits_are_decoded_by_the_description_of_the_format(rng):
    blocks = q2_0(rng, (5,), 192)
    np.testing.assert_array_equal(dequantize(blocks, NewType.Q2_0), by_hand(blocks))
