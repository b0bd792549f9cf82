"""A checkpoint that is damaged, incomplete or made by hand: one clear line, exit status 1, nothing
written.
"""

import json
import shutil

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from edgeq.commands.progress import Silent
from edgeq.run.assembly import make_job
from edgeq.run.pipeline import quantize
from edgeq.sources import open_source

NORM = "model.layers.0.input_layernorm.weight"
UP = "model.layers.0.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
BLOCK = "blocks/0000.safetensors"
both_kinds = pytest.mark.parametrize("written", ["integer", "offset"], indirect=True)


@pytest.fixture(scope="module")
def written(request, saved_model, tmp_path_factory):
    """A checkpoint whose linear layers have zero points or offsets."""
    zeros = getattr(request, "param", "integer")
    settings = {"zeros": zeros, "solver": "rtn", "scales": "none", "propagation_strength": 0.0}
    folder = tmp_path_factory.mktemp("checkpoints") / zeros
    quantize(
        make_job(open_source(str(saved_model)), settings, backend="reference"), folder, Silent()
    )
    return folder


@pytest.fixture
def checkpoint(written, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(written, tmp_path / "checkpoint")


@pytest.fixture
def refuse(edgeq, checkpoint, tmp_path):
    """Export and inspect a checkpoint; the export must be refused in one line and leave nothing.
    Gives that line.
    """

    def run():
        before = sorted(tmp_path.rglob("*"))
        inspected = edgeq("inspect", checkpoint)
        assert inspected.status in (0, 1)
        assert inspected.err.count("\n") == inspected.status
        result = edgeq("export", checkpoint, "--format", "gguf", "-o", tmp_path / "out")
        assert result.status == 1
        assert result.err.startswith("edgeq: ") and result.err.count("\n") == 1
        assert "unexpected" not in result.err
        assert sorted(tmp_path.rglob("*")) == before
        return result.err

    return run


def change_json(path, **changes):
    content = json.loads(path.read_text())
    content |= changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def change_file(path, *, metadata=None, **tensors):
    """Store the tensors of a file again, some of them changed or, where None, left out."""
    with safe_open(path, framework="np") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}
        metadata = metadata if metadata is not None else file.metadata()
    kept = {name: array for name, array in (stored | tensors).items() if array is not None}
    save_file(kept, path, metadata=metadata)


def tensor(path, name):
    with safe_open(path, framework="np") as file:
        return file.get_tensor(name)


def spoiled(path, name, value):
    array = tensor(path, name).copy()
    array.reshape(-1)[3] = value
    return array


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("files", [5]),
        ("files", 5),
        ("files", ["../x.safetensors"]),
        ("files", ["/etc/passwd"]),
        ("files", [""]),
        ("companions", 5),
        ("companions", [5]),
        ("companions", ["../../../etc/passwd"]),
        ("companions", ["edgeq.json"]),
        ("companions", ["model.safetensors"]),
        ("model", 5),
        ("source", []),
        ("source", {"fingerprint": 5}),
        ("recipe", 5),
        ("calibration", 5),
        ("calibration", {"texts": None}),
        ("calibration", {"texts": [{"name": "a", "share": "x", "samples": 1, "tokens": 1}]}),
        ("model", None),
        ("files", None),
        ("format_version", 2),
        ("format_version", None),
    ],
)
def test_a_head_of_another_form_is_refused(refuse, checkpoint, key, value):
    change_json(checkpoint / "edgeq.json", **{key: value})
    line = refuse()
    assert key.replace("_", " ") in line
    assert "quantize again" in line


@pytest.mark.parametrize("name", ["edgeq.json", "config.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "[" * 100_000, "\xff"])
def test_a_file_that_is_not_a_json_object_is_refused(refuse, checkpoint, name, content):
    (checkpoint / name).write_bytes(content.encode("latin-1"))
    line = refuse()
    assert name in line
    assert "make the directory again" in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 3}, "block 2 of 3"),
        ({"num_hidden_layers": 1}, "2 blocks"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_size": 128}, "config asks for"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"tie_word_embeddings": False}, "lm_head"),
        ({"quantization_config": {"bits": 4}}, "quantized already"),
    ],
)
def test_a_config_that_does_not_belong_to_the_tensors_is_refused(
    refuse, checkpoint, changes, words
):
    change_json(checkpoint / "config.json", **changes)
    assert words in refuse()


def test_a_file_that_is_not_listed_is_missed(refuse, checkpoint):
    change_json(checkpoint / "edgeq.json", files=["blocks/0001.safetensors", "outer.safetensors"])
    assert "block 0 of 2 has no tensors" in refuse()


@pytest.mark.parametrize("name", [BLOCK, "outer.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(refuse, checkpoint, name):
    (checkpoint / name).unlink()
    line = refuse()
    assert name in line
    assert "No such file" in line and "quantize again" in line


def test_a_truncated_file_is_named(refuse, checkpoint):
    (checkpoint / BLOCK).write_bytes((checkpoint / BLOCK).read_bytes()[:-8])
    assert BLOCK in refuse()


def test_a_tensor_that_two_files_hold_is_refused(refuse, checkpoint):
    change_file(checkpoint / "outer.safetensors", **{NORM: np.ones(64, np.float32)})
    assert "two of its files" in refuse()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (None, "is missing"),
        (np.ones(63, np.float32), "(63,)"),
        (np.ones((64, 1), np.float32), "(64, 1)"),
        (np.ones(64, np.int32), "I32"),
        (np.ones(64, bool), "BOOL"),
        (np.full(64, np.nan, np.float32), "NaN or infinity"),
        (np.full(64, np.inf, np.float16), "NaN or infinity"),
    ],
)
def test_a_damaged_norm_is_named(refuse, checkpoint, array, words):
    change_file(checkpoint / BLOCK, **{NORM: array})
    line = refuse()
    assert NORM in line
    assert words in line


@both_kinds
@pytest.mark.parametrize("part", ["codes", "scales", "zeros or offsets"])
@pytest.mark.parametrize("damage", ["missing", "short", "flat", "dtype"])
def test_a_damaged_part_of_a_solved_tensor_is_named(refuse, checkpoint, written, part, damage):
    if part == "zeros or offsets":
        part = {"integer": "zeros", "offset": "offsets"}[written.name]
    name, file = f"{UP}.{part}", checkpoint / BLOCK
    array = tensor(file, name)
    change = {
        "missing": None,
        "short": array[:-1],
        "flat": array.reshape(-1),
        "dtype": array.astype(np.int64),
    }[damage]
    change_file(file, **{name: change})
    assert name in refuse()


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_a_scale_that_no_solved_tensor_has_is_refused(refuse, checkpoint, value):
    name = f"{UP}.scales"
    change_file(checkpoint / BLOCK, **{name: spoiled(checkpoint / BLOCK, name, value)})
    assert name in refuse()


@both_kinds
def test_a_zero_point_or_offset_that_no_solved_tensor_has_is_refused(refuse, checkpoint, written):
    part, value = {"integer": ("zeros", 16), "offset": ("offsets", np.nan)}[written.name]
    name = f"{UP}.{part}"
    change_file(checkpoint / BLOCK, **{name: spoiled(checkpoint / BLOCK, name, value)})
    assert name in refuse()


@pytest.mark.parametrize(
    "grid",
    [
        [96, 64, "3", 32, "symmetric", "float16"],
        [96, 64, 9, 32, "symmetric", "float16"],
        [96, 64, 4, 32],
        [96, 64, 4, 0, "symmetric", "float16"],
        [96, 64, 4, 32, "round", "float16"],
        [96, 64, 4, 32, "symmetric", 16],
        [96, 64, 4, 32, "symmetric", "float8"],
        [0, 64, 4, 32, "symmetric", "float16"],
        [96, 64, 4, 32, ["x"], "float16"],
        [-96, 64, 4, 32, "symmetric", "float16"],
        5,
        None,
        [96, 64, True, 32, "symmetric", "float16"],
        [96, 64, 5, 32, "integer", "float16"],
        [96, 64, 4, 16, "offset", "float16"],
    ],
)
def test_a_grid_that_cannot_be_or_does_not_fit_is_refused(refuse, checkpoint, grid):
    with safe_open(checkpoint / BLOCK, framework="np") as file:
        grids = json.loads(file.metadata()["edgeq"])
    change_file(checkpoint / BLOCK, metadata={"edgeq": json.dumps(grids | {UP: grid})})
    assert BLOCK in refuse()


@pytest.mark.parametrize(
    "metadata", [{}, {"edgeq": "{"}, {"edgeq": "[1]"}, {"edgeq": "5"}, {"edgeq": "[" * 100_000}]
)
def test_metadata_of_another_form_are_refused(refuse, checkpoint, metadata):
    change_file(checkpoint / BLOCK, metadata=metadata)
    assert BLOCK in refuse()


def test_a_checkpoint_is_not_quantized_again(edgeq, checkpoint, tmp_path):
    result = edgeq("quantize", checkpoint, "-o", tmp_path / "out")
    assert result.status == 1
    assert "quantized already" in result.err and "export or evaluate it" in result.err


def test_other_files_than_tokenizer_files_are_never_read_from_a_checkpoint(
    refuse, checkpoint, tmp_path
):
    (tmp_path / "secret").write_text("secret")
    for name in ("../secret", str(tmp_path / "secret"), "report.json"):
        change_json(checkpoint / "edgeq.json", companions=[name])
        assert "'companions'" in refuse()
