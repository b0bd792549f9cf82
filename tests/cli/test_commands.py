"""Commands as users type them, on a small model."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
from exported_files import gguf_in
from safetensors.numpy import load_file, save_file
from tiny_models import TEXT

from edgeq.checkpoint.reader import Checkpoint
from edgeq.commands.main import cli
from edgeq.files.ownership import TIMED_FILES
from edgeq.measuring.anchors import show_kl


@pytest.fixture(scope="module")
def run(saved_model, quick, tmp_path_factory):
    """A finished run with a GGUF export on two threads, and the JSON it printed."""
    output = tmp_path_factory.mktemp("runs") / "run"
    command = ["quantize", str(saved_model), "-o", str(output), "--export", "gguf", "--json"]
    result = subprocess.run(
        [sys.executable, "-m", "edgeq", *command, *quick],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )
    return output, json.loads(result.stdout)


@pytest.fixture
def two_threads():
    """torch on two threads, as the rest of the suite is not."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_quantize_writes_a_checkpoint_and_the_export(run):
    output, summary = run
    assert (output / "edgeq.json").is_file()
    assert gguf_in(output / "gguf").stat().st_size == summary["bytes"]["gguf"]
    assert summary["bits_per_weight"]["linear layers"] == pytest.approx(4.5)


def test_the_summary_names_the_worst_layers_and_the_time_of_every_stage(run):
    _, summary = run
    assert len(summary["worst_layers"]) == 5
    assert {"forward passes", "statistics", "solve", "export"} <= set(summary["seconds"])


def test_an_old_report_is_read_and_a_newer_one_refused_in_one_line(
    run, edgeq, saved_model, quick, tmp_path
):
    """When a run is continued whose checkpoint is complete, the last screen comes from its file."""
    output = shutil.copytree(run[0], tmp_path / "run")
    report = json.loads((output / "report.json").read_text())
    again = ["quantize", saved_model, "-o", output, *quick, "--resume", "--json"]
    for version, status in ((None, 0), (1, 0), (2, 1)):
        stated = {} if version is None else {"version": version}
        rest = {name: value for name, value in report.items() if name != "version"}
        (output / "report.json").write_text(json.dumps(stated | rest))
        result = edgeq(*again)
        assert result.status == status
        if status == 0:
            assert json.loads(result.out)["worst_layers"] == run[1]["worst_layers"]
    assert "report.json': a report of version 2" in result.err


def test_the_report_has_a_falling_loss_for_every_layer(run):
    output, _ = run
    layers = json.loads((output / "report.json").read_text())["layers"]
    assert len(layers) == 14
    for layer in layers:
        assert layer["losses"]["refitted"] <= layer["losses"]["solved"] * 1.001


def test_the_checkpoint_dequantizes_close_to_the_original_weights(run, saved_model):
    output, _ = run
    checkpoint, original = Checkpoint(output), load_file(saved_model / "model.safetensors")
    for name in checkpoint.tensor_names():
        error = np.linalg.norm(checkpoint.read(name) - original[name]) / np.linalg.norm(
            original[name]
        )
        assert error < 0.2


def test_the_same_run_writes_the_same_bytes(run, edgeq, saved_model, quick, tmp_path, two_threads):
    output, _ = run
    edgeq("quantize", saved_model, "-o", tmp_path / "again", "--export", "gguf", *quick)
    files = sorted(path.relative_to(output) for path in output.rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(tmp_path / "again")
        for path in (tmp_path / "again").rglob("*")
        if path.is_file()
    )
    for file in files:
        if file.name not in TIMED_FILES:
            assert (output / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


def test_every_file_has_the_mode_of_new_files(run):
    mask = os.umask(0)
    os.umask(mask)
    output, _ = run
    for file in (path for path in output.rglob("*") if path.is_file()):
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask, file


def test_export_writes_the_same_file_as_quantize_did(run, edgeq, tmp_path):
    output, _ = run
    result = edgeq("export", output, "--format", "gguf", "-o", tmp_path / "exported")
    assert result.status == 0
    assert gguf_in(tmp_path / "exported").read_bytes() == gguf_in(output / "gguf").read_bytes()


def test_an_export_is_not_overwritten_without_force(run, edgeq):
    output, _ = run
    assert edgeq("export", output, "--format", "gguf").status == 1
    assert edgeq("export", output, "--format", "gguf", "--force").status == 0


@pytest.mark.parametrize("target", [".", "gguf/*.gguf", "gguf"])
def test_evaluate_compares_with_the_original(run, edgeq, saved_model, text_file, target):
    output, _ = run
    options = [
        "--text",
        text_file,
        "--windows",
        "2",
        "--sequence-length",
        "32",
        "--backend",
        "cpu",
        "--json",
    ]
    (found,) = output.glob(target) if "*" in target else [output / target]
    result = edgeq("evaluate", found, "--reference", saved_model, *options)
    quality = json.loads(result.out)
    assert quality["runtime"] == ("torch" if target == "." else "llama.cpp")
    assert quality["tokens"] == 64
    assert 0 < quality["kl"] < 0.05


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("bits", [3, 5])
def test_llama_cpp_computes_what_torch_does_with_the_dequantized_weights(
    edgeq, save_model, quick, text_file, tmp_path, model_type, bits
):
    model = save_model(model_type, tie_word_embeddings=False)
    edgeq(
        "quantize",
        model,
        "-o",
        tmp_path / "out",
        "--bits",
        bits,
        "--asymmetric",
        "--export",
        "gguf",
        *quick,
    )
    options = [
        "--text",
        text_file,
        "--windows",
        "2",
        "--sequence-length",
        "64",
        "--backend",
        "cpu",
        "--json",
    ]
    result = edgeq("evaluate", tmp_path / "out" / "gguf", "--reference", tmp_path / "out", *options)
    assert json.loads(result.out)["kl"] < 0.01


def test_evaluate_runs_a_gguf_file_in_torch_when_asked(run, edgeq, saved_model, text_file):
    output, _ = run
    options = [
        "--text",
        text_file,
        "--windows",
        "2",
        "--sequence-length",
        "32",
        "--backend",
        "cpu",
        "--json",
    ]
    in_torch = edgeq(
        "evaluate", output / "gguf", "--runtime", "torch", "--reference", saved_model, *options
    )
    checkpoint = edgeq("evaluate", output, "--reference", saved_model, *options)
    assert json.loads(in_torch.out)["kl"] == pytest.approx(
        json.loads(checkpoint.out)["kl"], rel=1e-4
    )


def test_a_model_evaluated_against_itself_does_not_differ(edgeq, saved_model, text_file):
    options = [
        "--text",
        text_file,
        "--windows",
        "2",
        "--sequence-length",
        "32",
        "--backend",
        "cpu",
        "--json",
    ]
    quality = json.loads(edgeq("evaluate", saved_model, "--reference", saved_model, *options).out)
    assert quality["kl"] == 0
    assert quality["top1_agreement"] == 1


def test_inspect_counts_layers_and_bits(run, edgeq):
    output, _ = run
    shown = json.loads(edgeq("inspect", output, "--json").out)
    stored = {row["name"]: row["stored_as"] for row in shown["tensors"]}
    assert shown["blocks"] == 2
    assert stored["model.layers.*.mlp.up_proj.weight"] == "4 bits, group 32, symmetric"
    assert stored["model.embed_tokens.weight"] == "8 bits, group 32, symmetric"


def test_quantize_and_inspect_agree_on_what_is_stored(run, edgeq):
    """Norms are float32 in this model; the tokenizer in the GGUF file, larger than the weights
    here, does not count.
    """
    output, summary = run
    assert (
        json.loads(edgeq("inspect", output, "--json").out)["bits_per_weight"]
        == summary["bits_per_weight"]["model"]
    )
    files = [load_file(file) for file in output.rglob("*.safetensors")]
    parameters = sum(
        np.prod(row["shape"]) * row["count"] for row in inspected(edgeq, output)["tensors"]
    )
    stored = sum(array.nbytes for file in files for array in file.values())
    assert summary["bits_per_weight"]["model"] == pytest.approx(8 * stored / parameters)
    assert inspected(edgeq, output / "gguf")["bits_per_weight"] == pytest.approx(
        summary["bits_per_weight"]["model"]
    )


def inspected(edgeq, path):
    return json.loads(edgeq("inspect", path, "--json").out)


def test_inspect_shows_the_types_in_a_gguf_file(run, edgeq):
    output, _ = run
    shown = edgeq("inspect", output / "gguf").out
    assert "Q4_0" in shown
    assert "Q8_0" in shown


def test_a_recipe_file_sets_what_options_do_not(edgeq, saved_model, quick, tmp_path):
    recipe = 'bits = 3\ngroup_size = "row"\n[[overrides]]\nlayers = "*.down_proj"\nbits = 16\n'
    (tmp_path / "recipe.toml").write_text(recipe)
    command = [
        "quantize",
        saved_model,
        "-o",
        tmp_path / "out",
        "--recipe",
        tmp_path / "recipe.toml",
        "--bits",
        "5",
    ]
    result = edgeq(*command, *quick, "--verbose")
    checkpoint = Checkpoint(tmp_path / "out")
    assert checkpoint.grid("model.layers.0.mlp.up_proj.weight").bits == 5
    assert checkpoint.grid("model.layers.0.mlp.up_proj.weight").group_size is None
    assert checkpoint.grid("model.layers.0.mlp.down_proj.weight") is None
    assert "2 matrices stay dense" in result.out


def test_asymmetric_becomes_offsets_for_gguf_and_whole_zero_points_otherwise(
    edgeq, saved_model, quick, tmp_path
):
    name = "model.layers.0.mlp.up_proj.weight"
    edgeq("quantize", saved_model, "-o", tmp_path / "a", "--asymmetric", *quick)
    edgeq("quantize", saved_model, "-o", tmp_path / "b", "--asymmetric", "--export", "gguf", *quick)
    assert Checkpoint(tmp_path / "a").grid(name).zeros == "integer"
    assert Checkpoint(tmp_path / "b").grid(name).zeros == "offset"
    manifest = json.loads((tmp_path / "b" / "gguf" / "manifest.json").read_text())
    assert {tensor["status"] for tensor in manifest["tensors"]} <= {"exact", "dense", "widened"}


def test_rounding_alone_needs_no_calibration(edgeq, saved_model, tmp_path):
    options = [
        "--solver",
        "rtn",
        "--scales",
        "none",
        "--propagation-strength",
        "0",
        "--backend",
        "reference",
    ]
    result = edgeq("quantize", saved_model, "-o", tmp_path / "out", *options)
    assert result.status == 0
    assert "forward passes" not in result.out
    assert " 0 (" not in result.out


def test_nothing_is_calibrated_when_no_layer_is_solved(edgeq, saved_model, tmp_path):
    result = edgeq(
        "quantize",
        saved_model,
        "-o",
        tmp_path / "out",
        "--bits",
        "16",
        "--backend",
        "cpu",
        "--json",
    )
    assert result.status == 0
    assert json.loads((tmp_path / "out" / "edgeq.json").read_text())["calibration"] is None
    assert not {"calibration text", "load model", "forward passes"} & set(
        json.loads(result.out)["seconds"]
    )
    assert Checkpoint(tmp_path / "out").grid("model.layers.0.mlp.up_proj.weight") is None


def test_a_short_calibration_text_is_noted(edgeq, saved_model, quick, tmp_path):
    (tmp_path / "short.txt").write_text(TEXT)
    options = [
        *quick,
        "--calibration",
        tmp_path / "short.txt",
        "--samples",
        "16",
        "--sequence-length",
        "16",
    ]
    assert (
        "calibration text 'short.txt': 8 sequences of 16 overlap"
        in edgeq("quantize", saved_model, "-o", tmp_path / "out", *options, "--verbose").out
    )


def test_weights_that_do_not_fit_the_grid_are_noted(edgeq, saved_model, quick, tmp_path):
    """Far below float16's smallest number, so that the scales cannot follow and the layer's output
    is lost.
    """
    model = shutil.copytree(saved_model, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] *= 1e-9
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    command = ["quantize", model, "-o", tmp_path / "out", *quick, "--verbose"]
    shown = " ".join(edgeq(*command).out.split())
    advice = "model.layers.0.mlp.up_proj loses 100% of its output: keep it as it is with"
    assert f"{advice} --keep-dense model.layers.0.mlp.up_proj" in shown
    assert "model.layers.0.mlp.up_proj: 100% error, its weights do not fit the grid" in shown
    assert "192 scales are at the limit of float16" in shown


def test_the_last_screen_says_how_good_the_result_is_and_how_to_run_it(
    edgeq, saved_model, quick, tmp_path
):
    """The model reads 128 tokens, fewer than the 512 of an evaluation window elsewhere."""
    out = tmp_path / "out"
    command = [
        "quantize",
        saved_model,
        "-o",
        out,
        *quick,
        "--export",
        "gguf",
        "--evaluate",
        "--verbose",
    ]
    result = edgeq(*command)
    assert result.status == 0, result.err
    short, details = result.out.split("written to", 1)
    measured = json.loads((out / "measured.json").read_text(encoding="utf-8"))
    assert f"KL {show_kl(measured['quality']['kl'])}" in short.splitlines()[0]
    assert measured["quality"]["tokens"] == 16 * 128
    assert measured["sizes"]["original"] == sum(f.stat().st_size for f in saved_model.glob("*.sa*"))
    (answers,) = measured["answers"]
    assert " ".join(answers["original"].split())[:20] in " ".join(short.split())
    assert f"llama-cli -m {gguf_in(out / 'gguf')}" in short
    assert (out / "report.html").is_file() and str(out / "report.html") in "".join(short.split())
    assert "squared output" in details and f"{16 * 128} tokens" in details


def test_progress_goes_to_standard_error_with_an_estimate(edgeq, saved_model, quick, tmp_path):
    result = edgeq("quantize", saved_model, "-o", tmp_path / "out", *quick)
    assert "block 1/2, about" in result.err
    assert "measure it: edgeq evaluate" in result.out
    assert "edgeq export" in result.out


def test_a_log_file_gets_a_line_for_every_layer_and_block_and_is_appended_to(
    edgeq, saved_model, quick, tmp_path
):
    log = tmp_path / "run.log"
    for output in ("a", "b"):
        assert (
            edgeq(
                "quantize", saved_model, "-o", tmp_path / output, *quick, "--log-file", log
            ).status
            == 0
        )
    lines = log.read_text(encoding="utf-8").splitlines()
    layers = [line.split()[1].rstrip(",") for line in lines if "_proj" in line]
    report = json.loads((tmp_path / "b" / "report.json").read_text(encoding="utf-8"))["layers"]
    assert layers == 2 * [layer["name"] for layer in report]
    error, of_rounding, gigabytes = next(line for line in lines if "_proj" in line).split(", ")[1:]
    first = report[0]["losses"]
    assert float(error.removeprefix("error ")) == pytest.approx(list(first.values())[-1], rel=0.01)
    share = list(first.values())[-1] / first["round to nearest"]
    assert float(of_rounding.split()[2].rstrip("%")) == pytest.approx(100 * share, abs=0.6)
    assert 0.1 < float(gigabytes.split()[0]) < 24
    assert sum("is done" in line for line in lines) == 4


def test_a_log_file_that_cannot_be_written_stops_the_run_before_it_starts(
    edgeq, saved_model, quick, tmp_path
):
    result = edgeq(
        "quantize",
        saved_model,
        "-o",
        tmp_path / "out",
        *quick,
        "--log-file",
        tmp_path / "no" / "run.log",
    )
    assert result.status == 1
    assert "--log-file" in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", cli.commands)
def test_the_help_of_every_command_says_in_a_sentence_what_it_does_and_shows_an_example(
    edgeq, name
):
    shown = edgeq(name, "--help").out
    assert re.search(rf"^    edgeq {name}\b", shown, re.MULTILINE)
    first = " ".join(shown.split("\n\n")[1].split())
    assert first[0].isupper() and (first.endswith(".") or ":" in first)


@pytest.mark.parametrize("backend", ["cpu", "mlx", "reference"])
def test_rope_settings_as_llama_3_ships_them_outlive_the_libraries(
    edgeq, model, quick, tmp_path, backend
):
    """transformers completes the nested settings of a config that it is given; the run's own must
    stay as it was.
    """
    path = model / "config.json"
    config = json.loads(path.read_text())
    config.pop("rope_parameters", None)
    config["rope_theta"] = 500000.0
    config["rope_scaling"] = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    path.write_text(json.dumps(config))
    result = edgeq(
        "quantize", model, "-o", tmp_path / "run", *quick, "--backend", backend, "--export", "gguf"
    )
    assert result.status == 0, result.err
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == config
