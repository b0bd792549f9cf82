"""Descriptions of formats: light to read, and true of the exporters that they describe."""

import inspect
import json
import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from solved_models import solved, tiny
from tiny_models import tokenizer_files

from edgeq.grids.types import SPECIAL
from edgeq.measuring.formats import BITS, GROUPS, ZEROS
from edgeq.registry import FORMATS, LOGITS, Entry, all_formats, find_format, load, load_exporter
from edgeq.types import Grid

WIDE = (256, 1024)  # the shape of a layer that no rule about sizes keeps out
SIZES = {"vocab_size": 320, "hidden_size": 256, "intermediate_size": 512}
WEIGHTS = ("*.gguf", "*.data", "*.safetensors")
HEADERS = 25_000  # bytes of names, tokenizer and alignment in a file of two blocks


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_description_names_is_there(name):
    described = find_format(name)
    assert described.name == name
    assert described.runtime in LOGITS
    assert callable(load(Entry(described.reader), name).read)
    arguments = inspect.signature(load(Entry(described.exporter), name)).parameters
    assert set(arguments) == {option.name for option in described.options}


def test_options_of_one_name_are_one_option():
    options = {option for each in all_formats() for option in each.options}
    assert len({option.name for option in options}) == len(options)


def accepted(exporter):
    """Grids of linear layers that an exporter takes, by what a description speaks of."""
    grids = [Grid(*each) for each in product(BITS, GROUPS, ZEROS)]
    return [grid for grid in grids if exporter.why_not_grid(WIDE, grid) is None]


@pytest.mark.parametrize("name", FORMATS)
def test_a_description_says_what_the_exporter_accepts(name):
    exporter, described = load_exporter(name), find_format(name)
    found = accepted(exporter)
    kinds = {*described.zero_kinds, *described.rounded_zero_kinds}
    assert exporter.format is described
    assert {grid.bits for grid in found} == {bits for bits in BITS if described.holds_bits(bits)}
    assert {grid.group_size for grid in found} == {
        size for size in GROUPS if described.groups.holds(size)
    }
    assert {grid.zeros for grid in found} == kinds
    columns = exporter.why_not_grid(WIDE, Grid(4, 32, outlier_columns=0.01)) is None
    assert columns == described.outlier_columns
    types = [name for name, grid in SPECIAL.items() if exporter.why_not_grid(WIDE, grid) is None]
    assert sorted(types) == sorted(described.types)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [8, 16, 24, 48, 96, 256])
def test_a_description_knows_unusual_group_sizes(name, size):
    exporter = load_exporter(name)
    accepts = exporter.why_not_grid((256, 32 * 3 * size), Grid(4, size)) is None
    assert accepts == exporter.format.groups.holds(size)


@pytest.fixture(scope="module")
def blank():
    return {tied: tiny(tie_word_embeddings=tied, **SIZES) for tied in (True, False)}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
def test_scales_are_held_without_rounding_where_a_description_says_so(
    rng, tmp_path, blank, name, scale_dtype
):
    model = solved(blank[True], rng, [Grid(4, 32, scale_dtype=scale_dtype)])
    smaller = np.float32(1.0 if scale_dtype == "float16" else 2.0**-12)  # than float16 resolves
    for key, layer in model.layers.items():
        scales = layer.scales * smaller
        model.layers[key] = replace(layer, scales=scales, offsets=-scales * layer.grid.middle)
    model.files = tokenizer_files()
    model.config = {**model.config, "dtype": scale_dtype}  # runtimes round scales to the model's
    exporter = load_exporter(name)
    exporter.write(model, tmp_path)
    entries = json.loads((tmp_path / "manifest.json").read_text())["tensors"]
    statuses = {entry["status"] for entry in entries if "proj" in entry["source"]}
    kept = scale_dtype in exporter.format.scale_dtypes
    assert statuses == ({"exact"} if kept else {"rescaled"})


PLANNED = {
    "gguf": [Grid(3, 64), Grid(4, None), Grid(5, 32, "offset"), Grid(8, 128)],
    "mlx": [Grid(3, 64, "offset", "bfloat16"), Grid(6, 32, "symmetric", "float32")],
    "onnx": [Grid(2, None, "integer"), Grid(3, 64), Grid(4, 32, "offset"), Grid(5, 32, "integer")],
    "gptq": [Grid(2, 64, "integer"), Grid(3, None), Grid(8, 32)],
    "compressed-tensors": [Grid(2, None, "integer"), Grid(2, 32), Grid(8, 64, "integer")],
}


def planned_and_written(exporter, model, folder):
    shapes = {name: (layer.codes.shape, layer.grid) for name, layer in model.layers.items()}
    shapes |= {name: (array.shape, None) for name, array in model.arrays.items()}
    items = {name: 4 for name in shapes}
    exporter.write(model, folder)
    files = [file for pattern in WEIGHTS for file in folder.glob(pattern)]
    written = sum(file.stat().st_size for file in files)
    return exporter.planned_bytes(model.record, shapes, items), written


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("name", "grid"), [(name, grid) for name, grids in PLANNED.items() for grid in grids]
)
def test_planned_bytes_are_those_that_are_written(rng, tmp_path, blank, name, grid, tied):
    model = solved(blank[tied], rng, [grid])
    for outer in ("model.embed_tokens.weight", "lm_head.weight"):
        if name == "onnx" and grid.zeros == "offset" and outer in model.layers:
            model.arrays[outer] = model.layers.pop(outer).dequantized()
    model.files = tokenizer_files()
    planned, written = planned_and_written(load_exporter(name), model, tmp_path)
    assert planned <= written < planned + HEADERS


@pytest.mark.parametrize("options", [{"qdq": True}, {"qdq": False}], ids=["qdq", "blocks"])
@pytest.mark.parametrize("outliers", [0.0, 0.05])
def test_planned_bytes_count_copies_and_outlier_columns(rng, tmp_path, blank, options, outliers):
    model = solved(blank[True], rng, [Grid(3, 32, "integer", outlier_columns=outliers)])
    embedding = "model.embed_tokens.weight"
    layer = solved(blank[True], rng, [Grid(8, 32)]).layers[embedding]
    model.layers[embedding] = layer
    model.files = tokenizer_files()
    planned, written = planned_and_written(load_exporter("onnx", options), model, tmp_path)
    assert planned <= written < planned + HEADERS


def test_help_on_options_of_formats_loads_no_numbers():
    """Descriptions are plain data; NumPy alone would take longer than the rest of --help."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('LOADED', *sys.modules))\n"
        "from edgeq.commands.main import main\n"
        "sys.argv = ['edgeq', 'quantize', '--help-all']\n"
        "main()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    text, loaded = run.stdout.rsplit("LOADED", 1)
    assert "--accuracy-level" in text and "onnx: standard DequantizeLinear" in text
    assert "edgeq_exporters.onnx.format" in loaded.split()
    assert not {"numpy", "onnx", "gguf", "torch", "edgeq_backends"} & set(loaded.split())
