"""Damage that libraries of a format do not expect: one line each, or a difference of `verify`."""

import json
import shutil
import struct

import onnx
import pytest
from exported_files import gguf_in

from benchmarks.fuzz.inputs import ZEROS_OF, write_inputs
from edgeq.errors import BadInput
from edgeq.measuring.verify import verify

WEIGHT = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    place = tmp_path_factory.mktemp("damaged") / "inputs"
    write_inputs(place)
    return place


@pytest.fixture
def copy_of(inputs, tmp_path):
    return lambda name: shutil.copytree(inputs / name, tmp_path / name)


def lines_about(folder):
    """What `verify` says of tensors."""
    return [line for line in verify(folder)["differences"] if line.startswith("tensor '")]


def change_header(file, change):
    """Change the header of a safetensors file, whose bytes of tensors stay."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize("name", ["mlx", "gptq", "compressed-tensors"])
@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "BOOL", "U8", "I8"])
def test_types_that_no_export_holds_are_differences(copy_of, name, dtype):
    folder = copy_of(name)

    def retype(header):
        entry = header["model.norm.weight"]
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        entry |= {"dtype": dtype, "shape": [size]}

    change_header(folder / "model.safetensors", retype)
    [line] = lines_about(folder)
    assert line.startswith("tensor 'model.norm.weight': cannot be read")
    assert f"is stored as {dtype}" in line


def test_a_shape_that_is_larger_than_its_codes_is_a_difference(copy_of):
    folder = copy_of("compressed-tensors")
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    place = json.loads(data[8 : 8 + length])[f"{WEIGHT}.weight_shape"]["data_offsets"][0]
    start = 8 + length + place
    changed = data[:start] + struct.pack("<qq", 32, 2**40) + data[start + 16 :]
    file.write_bytes(changed)
    [line] = lines_about(folder)
    assert line.startswith(f"tensor '{WEIGHT}.weight': cannot be read (4 words do not hold")


def test_a_length_of_an_array_that_leaves_the_file_is_refused(copy_of):
    folder = copy_of("gguf")
    data = bytearray(gguf_in(folder).read_bytes())
    place = data.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 4 + 4
    data[place : place + 8] = (2**33).to_bytes(8, "little")
    gguf_in(folder).write_bytes(data)
    with pytest.raises(BadInput, match=r"\.gguf' cannot be read \(its header runs past"):
        verify(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"general.architecture", b"general.architecturx"),
        (b"llama.attention.head_count\x04", b"llama.attention.head_counx\x04"),
        (b"llama", b"\xff\xfe\xff\xfe\xff"),
        (b"token_embd.weight", b"\xffoken_embd.weight"),
    ],
)
def test_missing_keys_and_bytes_that_are_no_text_are_refused(copy_of, old, new):
    folder = copy_of("gguf")
    data = gguf_in(folder).read_bytes()
    assert old in data
    gguf_in(folder).write_bytes(data.replace(old, new))
    with pytest.raises(BadInput, match=r"\.gguf' cannot be read") as refusal:
        verify(folder)
    assert "\n" not in str(refusal.value)


def test_heads_that_the_rows_do_not_fill_are_a_difference(copy_of):
    folder = copy_of("gguf")
    data = gguf_in(folder).read_bytes()
    key = b"llama.attention.head_count"
    place = data.index(key + b"\x04") + len(key) + 4
    gguf_in(folder).write_bytes(
        data[:place] + (2**31 - 1).to_bytes(4, "little") + data[place + 4 :]
    )
    lines = lines_about(folder)
    assert {line.split("'")[1] for line in lines} >= {"blk.0.attn_q.weight"}
    assert all("rows are not" in line for line in lines)


def change_graph(folder, change):
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    change(model.graph)
    onnx.save(model, folder / "model.onnx")


def node_of(graph):
    return next(node for node in graph.node if f"{WEIGHT}.weight" in node.input)


def attribute_of(graph, name):
    return next(each for each in node_of(graph).attribute if each.name == name)


@pytest.mark.parametrize("bits", [-1, 0, 3, 64, 2**31, 2**62])
def test_bits_of_an_operator_that_none_has_are_a_difference(copy_of, bits):
    folder = copy_of("onnx")
    change_graph(folder, lambda graph: setattr(attribute_of(graph, "bits"), "i", bits))
    [line] = lines_about(folder)
    assert f"states {bits} bits" in line


@pytest.mark.parametrize("block_size", [0, -1])
def test_a_block_size_that_none_has_is_a_difference(copy_of, block_size):
    folder = copy_of("onnx")
    change_graph(folder, lambda graph: setattr(attribute_of(graph, "block_size"), "i", block_size))
    assert any(WEIGHT in line for line in lines_about(folder))


def first_external(graph):
    return next(each for each in graph.initializer if each.name == f"{WEIGHT}.weight")


@pytest.mark.parametrize("place", ["../checkpoint/edgeq.json", "/dev/zero", "", "absent"])
def test_bytes_outside_of_an_export_are_not_read(copy_of, place):
    folder = copy_of("onnx")

    def move(graph):
        first_external(graph).external_data[0].value = place

    change_graph(folder, move)
    [line] = lines_about(folder)
    assert f"its bytes lie in {place!r}, which is no file of the export" in line


def test_a_shape_with_more_numbers_than_the_file_is_not_reserved(copy_of):
    folder = copy_of("onnx")

    def grow(graph):
        first_external(graph).dims[0] = 2**40

    change_graph(folder, grow)
    [line] = lines_about(folder)
    assert "has more numbers than 'model.onnx.data' holds" in line


def test_a_name_that_is_no_text_is_refused(copy_of):
    folder = copy_of("onnx")
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(data.replace(b"embed_tokens", b"\xff" * 12))
    with pytest.raises(BadInput, match=r"cannot be read") as refusal:
        verify(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ZEROS_OF)
@pytest.mark.parametrize("value", [["gguf"], {}, None, 7, "gguf ", "../gguf"])
def test_a_format_that_is_none_is_refused(copy_of, name, value):
    folder = copy_of(name)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": value}))
    with pytest.raises(BadInput):
        verify(folder)


@pytest.mark.parametrize("key", ["bits", "group_size"])
@pytest.mark.parametrize("value", [10**9, 2**63, 10**400, 0, -1, 4.0, "4", [4], True])
def test_sizes_of_a_grid_that_is_none_are_refused_at_once(copy_of, key, value):
    folder = copy_of("mlx")
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = next(entry for entry in manifest["tensors"] if entry["bits"])
    entry[key] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    try:
        assert any(entry["name"] in line for line in verify(folder)["differences"])
    except BadInput as error:
        assert "is not a manifest of edgeq's, or damaged" in str(error)
