"""Outlier columns from the command line: solved, stored, shown, exported to ONNX, refused
elsewhere, damaged.
"""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from edgeq.checkpoint.reader import Checkpoint
from edgeq.types import Grid

BLOCK = "blocks/0000.safetensors"
UP = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
CODES_ONLY = ["gguf", "mlx", "gptq", "compressed-tensors"]
SHARE = ["--outlier-columns", "0.05"]  # 3 of 64 inputs, 5 of 96


@pytest.fixture(scope="module")
def run(saved_model, quick, tmp_path_factory):
    """A run with outlier columns and an ONNX export."""
    output = tmp_path_factory.mktemp("runs") / "run"
    command = [
        "quantize",
        saved_model,
        "-o",
        output,
        "--bits",
        "3",
        *SHARE,
        "--export",
        "onnx",
        *quick,
    ]
    subprocess.run(
        [sys.executable, "-m", "edgeq", *map(str, command)], check=True, capture_output=True
    )
    return output


def stored(path):
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def test_the_checkpoint_has_the_columns_and_gives_weights_with_them(run):
    tensors, metadata = stored(run / BLOCK)
    checkpoint = Checkpoint(run)
    assert checkpoint.grid(UP) == Grid(3, 32, outlier_columns=0.05)
    assert json.loads(metadata["edgeq"])[UP] == [96, 64, 3, 32, "symmetric", "float16", 0.05]
    for name, count in ((UP, 3), (DOWN, 5)):
        columns, values = tensors[f"{name}.outlier_columns"], tensors[f"{name}.outlier_values"]
        assert (columns.dtype, values.dtype) == (np.int32, np.float16)
        assert (
            columns.shape == (count,) and values.shape[1] == count and (np.diff(columns) > 0).all()
        )
        np.testing.assert_array_equal(checkpoint.read(name)[:, columns], values)
        assert np.abs(values).min(axis=0).max() > 0
    assert checkpoint.grid("model.embed_tokens.weight") == Grid(8, 32)


def test_their_bits_count(run):
    found = json.loads((run / "report.json").read_text())["bits_per_weight"]["linear layers"]
    bits = weights = 0
    for rows, columns in [(64, 64)] * 2 + [(32, 64)] * 2 + [(96, 64)] * 2 + [(64, 96)]:
        count = round(0.05 * columns)
        bits += rows * columns * 3 + rows * columns // 32 * 16 + count * (16 * rows + 32)
        weights += rows * columns
    assert found == pytest.approx(bits / weights)
    assert Checkpoint(run).tensor_bytes(UP) == 96 * (64 * 3 // 8 + 2 * 2 + 3 * 2) + 3 * 4


def test_inspection_and_report_show_them(edgeq, run):
    assert "3 bits, group 32, symmetric, 5% outlier columns" in edgeq("inspect", run).out
    layers = {
        layer["name"]: layer for layer in json.loads((run / "report.json").read_text())["layers"]
    }
    assert layers[UP.removesuffix(".weight")]["outlier_columns"] == 3
    assert json.loads((run / "edgeq.json").read_text())["recipe"]["outlier_columns"] == 0.05


def test_the_same_run_writes_the_same_bytes(edgeq, run, saved_model, quick, tmp_path):
    assert (
        edgeq(
            "quantize", saved_model, "-o", tmp_path / "again", "--bits", "3", *SHARE, *quick
        ).status
        == 0
    )
    assert (tmp_path / "again" / BLOCK).read_bytes() == (run / BLOCK).read_bytes()


@pytest.mark.parametrize("options", [[], ["--qdq"]])
def test_the_graph_is_verified_against_the_checkpoint_and_runs_as_torch_does(
    edgeq, run, tmp_path, options
):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime", exc_type=ImportError)
    assert edgeq("export", run, "--format", "onnx", *options, "-o", tmp_path / "out").status == 0
    result = edgeq(
        "verify", tmp_path / "out", "--against", run, "--run", "--backend", "cpu", "--json"
    )
    found = json.loads(result.out)
    assert (result.status, found["differences"]) == (0, [])
    assert found["run"]["exact_kl"] < 1e-7 and found["run"]["top1_agreement"] > 0.9


def test_a_changed_column_is_found(edgeq, run, tmp_path):
    import onnx  # noqa: PLC0415

    folder = shutil.copytree(run / "onnx", tmp_path / "out")
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    (values,) = (each for each in graph.initializer if each.name == f"{UP}.outlier_values")
    place = {entry.key: entry.value for entry in values.external_data}
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[int(place["offset"])] ^= 1
    (folder / "model.onnx.data").write_bytes(data)
    lines = edgeq("verify", folder).out.split("\n")
    assert lines[1].startswith(f"tensor '{UP}': hash")


@pytest.mark.parametrize("name", CODES_ONLY)
def test_a_format_of_codes_alone_is_refused_by_name_before_any_work(
    edgeq, saved_model, quick, tmp_path, name
):
    exports = ["--export", "onnx", "--export", name]
    result = edgeq("quantize", saved_model, "-o", tmp_path / "out", *SHARE, *exports, *quick)
    assert result.status == 1 and result.err.count("\n") == 1
    assert (
        f"format '{name}': tensor 'model.layers.0." in result.err
        and "quantize without them" in result.err
    )
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_with_columns_fits_onnx_alone(edgeq, run, tmp_path):
    rows = {
        row["name"]: row
        for row in json.loads(edgeq("export", "--list", run, "--json").out)["formats"]
    }
    assert rows["onnx"]["fits"] == "without loss"
    assert [rows[name]["fits"] for name in CODES_ONLY] == ["no"] * 4
    assert [name for name, row in rows.items() if row["outlier_columns"]] == ["onnx"]
    result = edgeq("export", run, "--format", "gguf", "-o", tmp_path / "out")
    assert result.status == 1 and "no place for outlier columns" in result.err


def test_rounding_to_nearest_refuses_them(refuse, saved_model):
    line = refuse(saved_model, "--solver", "rtn", *SHARE)
    assert "outlier_columns = 0.05" in line and 'solver = "gptq"' in line


def test_a_share_beyond_half_is_refused_by_the_name_of_the_option(refuse, saved_model):
    assert "--outlier-columns 0.6: expected a number from 0 to 0.5" in refuse(
        saved_model, "--outlier-columns", "0.6"
    )


def test_an_override_gives_some_layers_columns_and_others_none(edgeq, saved_model, quick, tmp_path):
    (tmp_path / "recipe.toml").write_text(
        '[[overrides]]\nlayers = "*.down_proj"\noutlier_columns = 0.02\n'
    )
    edgeq(
        "quantize",
        saved_model,
        "-o",
        tmp_path / "out",
        "--recipe",
        tmp_path / "recipe.toml",
        *quick,
    )
    checkpoint = Checkpoint(tmp_path / "out")
    assert (checkpoint.grid(DOWN).outlier_columns, checkpoint.grid(UP).outlier_columns) == (
        0.02,
        0.0,
    )
    assert checkpoint.quantized(DOWN).outliers.columns.size == 2
    assert checkpoint.quantized(UP).outliers is None


DAMAGES = {
    "columns missing": ("outlier_columns", lambda columns: None),
    "values missing": ("outlier_values", lambda values: None),
    "too few columns": ("outlier_columns", lambda columns: columns[:-1]),
    "columns of another type": ("outlier_columns", lambda columns: columns.astype(np.int64)),
    "values of another type": ("outlier_values", lambda values: values.astype(np.float32)),
    "a column twice": ("outlier_columns", lambda columns: np.sort(columns[[0, 0, 1]])),
    "falling columns": ("outlier_columns", lambda columns: columns[::-1].copy()),
    "a column beyond the last": ("outlier_columns", lambda columns: columns + 64 - columns[-1]),
    "a column before the first": ("outlier_columns", lambda columns: columns - columns[0] - 1),
    "NaN": ("outlier_values", lambda values: np.full_like(values, np.nan)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_columns_are_refused_in_one_line(edgeq, run, tmp_path, damage):
    checkpoint = shutil.copytree(run, tmp_path / "run")
    part, change = DAMAGES[damage]
    tensors, metadata = stored(checkpoint / BLOCK)
    tensors[f"{UP}.{part}"] = change(tensors[f"{UP}.{part}"])
    save_file(
        {name: array for name, array in tensors.items() if array is not None},
        checkpoint / BLOCK,
        metadata,
    )
    result = edgeq("export", checkpoint, "--format", "onnx", "-o", tmp_path / "out")
    assert result.status == 1 and result.err.count("\n") == 1
    assert f"{UP}.{part}" in result.err and "quantize again" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", [0.6, -0.1, "0.05", None, True, 1])
def test_a_share_that_cannot_be_is_refused(edgeq, run, tmp_path, share):
    checkpoint = shutil.copytree(run, tmp_path / "run")
    tensors, metadata = stored(checkpoint / BLOCK)
    grids = json.loads(metadata["edgeq"])
    grids[UP][-1] = share
    save_file(tensors, checkpoint / BLOCK, {"edgeq": json.dumps(grids)})
    result = edgeq("inspect", checkpoint)
    assert result.status == 1 and "unknown grid" in result.err and result.err.count("\n") == 1
