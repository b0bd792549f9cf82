"""Every kind of bad input: one clear line, exit status 1 or 2, nothing written."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file


@pytest.fixture
def model(saved_model, tmp_path):
    """A copy of the model that a test may damage."""
    return shutil.copytree(saved_model, tmp_path / "damaged")


@pytest.fixture
def refuse(edgeq, tmp_path, quick):
    """Run `edgeq quantize` and check that it is refused in one line; gives that line."""

    def run(model, *options):
        before = sorted(tmp_path.rglob("*"))
        result = edgeq("quantize", model, "--output", tmp_path / "out", *quick, *options)
        assert result.status == 1
        assert result.out == ""
        *progress, line = result.err.strip().split("\n")
        assert line.startswith("edgeq: ")
        assert all(text.startswith("block ") for text in progress)
        assert sorted(tmp_path.rglob("*")) == before
        return line

    return run


def damage_weight(model, name, value):
    tensors = load_file(model / "model.safetensors")
    tensors[name] = np.full_like(tensors[name], value)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_path_is_refused(refuse, tmp_path):
    assert "does not exist" in refuse(tmp_path / "nowhere")


def test_a_directory_without_weights_is_refused(refuse, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "safetensors" in refuse(tmp_path / "empty")


def test_a_truncated_safetensors_file_is_refused(refuse, model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "model.safetensors" in refuse(model)


@pytest.mark.parametrize("shard", ["missing.safetensors", "../outside.safetensors", "/etc/outside.safetensors"])
def test_a_shard_index_that_names_a_missing_or_outside_file_is_refused(refuse, model, shard):
    weights = dict.fromkeys(load_file(model / "model.safetensors"), shard)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    assert shard in refuse(model)


def test_a_corrupt_gguf_header_is_refused(refuse, tmp_path):
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(range(200)))
    assert "GGUF" in refuse(file)


def test_a_pickle_checkpoint_is_refused(refuse, model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "pickle" in refuse(model)


def test_an_empty_calibration_text_is_refused(refuse, saved_model, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    assert "empty" in refuse(saved_model, "--calibration", tmp_path / "empty.txt")


def test_a_calibration_text_that_is_too_short_is_refused(refuse, saved_model, tmp_path):
    (tmp_path / "short.txt").write_text("a few words")
    assert "--sequence-length" in refuse(saved_model, "--calibration", tmp_path / "short.txt")


def test_a_calibration_text_that_is_not_utf8_is_refused(refuse, saved_model, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 1000)
    assert "UTF-8" in refuse(saved_model, "--calibration", tmp_path / "latin.txt")


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named(refuse, model, name, value):
    damage_weight(model, name, value)
    assert name in refuse(model)


def test_a_sequence_longer_than_the_model_reads_is_refused(refuse, saved_model):
    assert "128" in refuse(saved_model, "--sequence-length", "129")


def test_a_group_size_that_the_container_cannot_hold_is_refused(refuse, saved_model):
    assert "48" in refuse(saved_model, "--group-size", "48", "--export", "gguf")


def test_asymmetric_bits_that_the_container_cannot_hold_are_refused(refuse, saved_model):
    assert "symmetric" in refuse(saved_model, "--bits", "8", "--asymmetric", "--export", "gguf")


def test_an_output_that_exists_is_refused(refuse, saved_model, tmp_path):
    (tmp_path / "out").mkdir()
    assert "--force" in refuse(saved_model)


def test_force_does_not_replace_what_edgeq_did_not_write(refuse, saved_model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert "not written by edgeq" in refuse(saved_model, "--force")


def test_an_unknown_recipe_key_is_refused_with_the_nearest_known_one(refuse, saved_model, tmp_path):
    (tmp_path / "recipe.toml").write_text("grop_size = 64\n")
    assert "did you mean 'group_size'" in refuse(saved_model, "--recipe", tmp_path / "recipe.toml")


def test_a_recipe_that_is_not_toml_is_refused(refuse, saved_model, tmp_path):
    (tmp_path / "recipe.toml").write_text("bits: 4\n")
    assert "TOML" in refuse(saved_model, "--recipe", tmp_path / "recipe.toml")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--bits", "1"), ("--bits", "9"), ("--group-size", "0"), ("--solver", "magic"), ("--scales", "third"),
     ("--propagation-strength", "nan"), ("--propagation-strength", "2"), ("--damping", "0"), ("--samples", "0"),
     ("--seed", "-1"), ("--embedding-bits", "12")],
)  # fmt: skip
def test_a_setting_outside_its_rule_is_refused(refuse, saved_model, option, value):
    assert "expected" in refuse(saved_model, option, value)


def test_a_pattern_that_matches_no_layer_is_refused(refuse, saved_model):
    assert "matches no layer" in refuse(saved_model, "--keep-dense", "*.lm_proj")


def test_an_unknown_backend_is_refused_with_the_known_ones(refuse, saved_model):
    assert "reference" in refuse(saved_model, "--backend", "tpu")


def test_a_device_that_is_not_there_is_refused(refuse, saved_model):
    assert "--backend cpu" in refuse(saved_model, "--backend", "mps")


def test_an_unknown_format_is_refused_with_the_known_ones(refuse, saved_model):
    assert "gguf" in refuse(saved_model, "--export", "exe")


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # what an environment without torch looks like to an import
sys.argv = ["edgeq", *sys.argv[1:]]
from edgeq.cli import main
main()
"""


def test_a_backend_that_is_not_installed_names_its_extra(saved_model, tmp_path):
    command = [sys.executable, "-c", WITHOUT_TORCH, "quantize", str(saved_model), "-o", str(tmp_path / "out")]
    result = subprocess.run([*command, "--backend", "cpu"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "install edgeq with its extra 'cuda'" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["quantize"], ["quantize", "demo"], ["export", "x"], ["frobnicate"], ["--bits"]])
def test_wrong_usage_exits_with_status_2(edgeq, arguments):
    assert edgeq(*arguments).status == 2


@pytest.mark.parametrize("command", [["evaluate"], ["inspect"], ["export", "--format", "gguf"]])
def test_other_commands_refuse_a_missing_path_in_one_line(edgeq, tmp_path, command):
    result = edgeq(*command, tmp_path / "nowhere")
    assert result.status == 1
    assert result.err.count("\n") == 1
    assert "nowhere" in result.err
