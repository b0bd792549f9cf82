"""Every grid in every format: written and read back from disk, or refused before any byte."""

import json
from dataclasses import replace
from functools import cache, lru_cache

import numpy as np
import pytest
from solved_models import solved, tiny
from tiny_models import random_layer, tokenizer_files

from edgeq.errors import BadInput
from edgeq.measuring.verify import check_tensor
from edgeq.registry import FORMATS, load_exporter, load_reader
from edgeq.types import Grid

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
ZEROS = ("symmetric", "integer", "offset")
EXPORTS = {**{name: {} for name in FORMATS}, "onnx qdq": {"qdq": True}}
SHAPES = {  # what is awkward: odd output sizes, inputs that groups do not divide
    "even": {"vocab_size": 320, "intermediate_size": 256},
    "odd rows": {"vocab_size": 321, "intermediate_size": 256, "head_dim": 30},
    "odd vocabulary": {"vocab_size": 321, "intermediate_size": 213},
    "short groups": {"vocab_size": 320, "intermediate_size": 160},
}
NO_WHOLE_BLOCKS = ("odd rows", "odd vocabulary")
"""Shapes with rows that blocks of 32 do not fill, which GGUF holds as numbers."""


@cache
def blank(shape, tied):
    return tiny(num_hidden_layers=1, tie_word_embeddings=tied, **SHAPES[shape])


@lru_cache(len(GROUPS) * len(ZEROS))  # every format is asked about them before the next ones
def model_on(grid, shape, tied):
    """A model of one block; its embedding and head lie on the recipe's grid for them."""
    rng = np.random.default_rng(20261122)
    model = solved(blank(shape, tied), rng, [grid])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in model.layers:
            model.layers[name] = random_layer(
                rng, model.layers[name].codes.shape, Grid(8, 32), size=0.3
            )
    model.files = tokenizer_files()
    return model


class AsCheckpoint:
    """A solved model as what `verify` compares with."""

    def __init__(self, model):
        self.grid, self.quantized, self.dense = model.grid, model.quantized, model.dense
        self.read = model.weights().__getitem__


def reason_of(exporter, model):
    shapes = {name: (layer.codes.shape, layer.grid) for name, layer in model.layers.items()}
    shapes |= {name: (array.shape, None) for name, array in model.arrays.items()}
    return exporter.reject_reason(model.record, model.files, shapes)


def refused(exporter, model, folder):
    with pytest.raises(BadInput) as refusal:
        exporter.write(model, folder)
    assert list(folder.iterdir()) == [] and "\n" not in str(refusal.value)


def verified(exporter, model, folder):
    """Give the statuses of the linear layers, after every tensor was read back and compared."""
    exporter.write(model, folder)
    entries = json.loads((folder / "manifest.json").read_text())["tensors"]
    reader = load_reader(exporter.format.name, folder)
    checkpoint = AsCheckpoint(model)
    assert sorted(entry["name"] for entry in entries) == sorted(reader.tensor_names())
    for entry in entries:
        assert check_tensor(reader, entry, checkpoint).differences == [], entry["name"]
    return {entry["status"] for entry in entries if "proj" in entry["source"]}


@pytest.mark.parametrize("name", EXPORTS)  # changes fastest, for the sake of model_on's cache
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "bits",
    [pytest.param(bits, marks=pytest.mark.slow) if bits == 6 else bits for bits in BITS],
)
def test_a_combination_is_written_and_verified_or_refused(tmp_path, bits, name, tied, shape):
    exporter = load_exporter(name.split()[0], EXPORTS[name])
    for group_size in GROUPS:
        for zeros in ZEROS:
            folder = tmp_path / f"{group_size} {zeros}"
            folder.mkdir()
            model = model_on(Grid(bits, group_size, zeros), shape, tied)
            if reason_of(exporter, model) is not None:
                refused(exporter, model, folder)
                continue
            allowed = {"exact", "widened"}
            if zeros not in exporter.format.zero_kinds:
                allowed.add("rescaled")
            if name == "gguf" and shape in NO_WHOLE_BLOCKS:
                allowed.add("dense")
            assert verified(exporter, model, folder) <= allowed


def test_what_must_fit_fits():
    """Written down by hand, so that a format that refuses everything is noticed."""
    fitting: dict[str, dict[str, tuple[int, ...]]] = {
        "gguf": {"symmetric": BITS, "integer": (2, 3, 4, 5), "offset": (2, 3, 4, 5)},
        "onnx": {"symmetric": BITS, "integer": BITS, "offset": (2, 3, 4)},
        "mlx": {"symmetric": BITS, "integer": BITS, "offset": BITS},
        "gptq": {"symmetric": (2, 3, 4, 8), "integer": (2, 3, 4, 8), "offset": ()},
        "compressed-tensors": {"symmetric": (2, 4, 8), "integer": (2, 4, 8), "offset": ()},
    }
    for name, expected in fitting.items():
        for zeros, bits in expected.items():
            found = [
                b
                for b in BITS
                if reason_of(load_exporter(name), model_on(Grid(b, 32, zeros), "even", True))
                is None
            ]
            assert tuple(found) == bits, (name, zeros)


@pytest.mark.parametrize("name", EXPORTS)
def test_two_exports_are_byte_identical(tmp_path, name):
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        model = model_on(Grid(4, 32), "even", False)
        if run == "second":
            model = replace(model, layers=dict(reversed(model.layers.items())))
        load_exporter(name.split()[0], EXPORTS[name]).write(model, tmp_path / run)
    files = sorted(
        path.relative_to(tmp_path / "first")
        for path in (tmp_path / "first").rglob("*")
        if path.is_file()
    )
    assert files == sorted(
        p.relative_to(tmp_path / "second") for p in (tmp_path / "second").rglob("*") if p.is_file()
    )
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (
            tmp_path / "second" / file
        ).read_bytes(), file
