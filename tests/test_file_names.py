"""What exported GGUF files are called."""

import gguf
import numpy as np
import pytest
from exported_files import gguf_in
from tiny_models import SMALL_LLAMA, MemoryModel, random_layer, tokenizer_files

from edgeq.files.names import GGUF_FILE, gguf_name, safe_name
from edgeq.files.ownership import leads_out
from edgeq.types import Grid
from edgeq_exporters.gguf.exporter import GgufExporter

CONFIG = {**SMALL_LLAMA, "model_type": "llama", "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
ODD_NAMES = {
    "Fine 7B": "Fine-7B",
    "../../etc/passwd": "etc-passwd",
    "C:\\models\\a": "C-models-a",
    "-o": "o",
    ".hidden": "hidden",
    "": "model",
    "..": "model",
    "\udcff": "model",
    "a\x1b[31m\nb": "a-31m-b",
    "模型 1": "模型-1",
    "e\u0301tude": "\xe9tude",
}


@pytest.mark.parametrize(("name", "expected"), ODD_NAMES.items())
def test_a_name_that_people_gave_becomes_one_that_any_system_takes(name, expected):
    assert safe_name(name) == expected


@pytest.mark.parametrize("name", [*ODD_NAMES, "x" * 5000, "模" * 5000, "." * 90 + "模" * 40])
def test_every_name_gives_one_file_that_edgeq_knows_as_its_own(name, tmp_path):
    file = gguf_name(name, "Q4_K_M")
    assert GGUF_FILE.fullmatch(file) and not leads_out(file) and len(file.encode()) < 150
    (tmp_path / file).touch()
    assert [each.name for each in tmp_path.iterdir()] == [file]


def tiny(rng, grids, **changes):
    """A Llama of two blocks, whose linear layers lie on the grids in turn."""
    model = MemoryModel(CONFIG, files=tokenizer_files(), **changes)
    shapes = model.record.decoder.tensor_shapes()
    linear = {layer.tensor for layer in model.record.decoder.linears()}
    for number, (name, shape) in enumerate(shapes.items()):
        grid = grids[number % len(grids)] if name in linear else None
        if grid is None:
            model.arrays[name] = rng.standard_normal(shape).astype(np.float16)
        else:
            model.layers[name] = random_layer(rng, shape, grid)
    return model


SYMMETRIC = "symmetric"


@pytest.mark.parametrize(
    ("grids", "asked", "kind"),
    [
        ([Grid(4, 32, SYMMETRIC)], None, "Q4_0"),
        ([Grid(3, 32, SYMMETRIC)], None, "3bit-Q4_0"),  # what the file holds, and what was solved
        ([Grid(4, 32, "offset"), None], None, "Q4_1"),  # matrices that were kept dense
        ([Grid(4, 32, SYMMETRIC)], "Q4_K_M", "Q4_K_M"),  # rows too narrow for its super-blocks
        ([None], None, "F16"),
    ],
)
def test_a_file_is_called_by_the_type_asked_for_or_that_of_its_blocks(
    rng, tmp_path, grids, asked, kind
):
    GgufExporter().write(tiny(rng, grids, name="My model", type_asked=asked), tmp_path)
    assert gguf_in(tmp_path).name == f"My-model-{kind}.gguf"


def test_a_file_of_several_types_is_called_by_its_bits_per_weight(rng, tmp_path):
    grids = [Grid(4, 32, SYMMETRIC), Grid(8, 32, SYMMETRIC)]
    GgufExporter().write(tiny(rng, grids), tmp_path)
    file = gguf_in(tmp_path)
    tensors = gguf.GGUFReader(file).tensors
    bits = 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)
    assert file.name == f"tiny-{bits:.2f}bpw.gguf"
