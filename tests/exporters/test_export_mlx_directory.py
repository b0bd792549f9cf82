"""MLX directories as files: config, weights, manifest, shards, determinism. Checking them needs no
MLX.
"""

import dataclasses
import json
import subprocess
import sys
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from solved_models import FILES, FOUR_BITS, LLAMA_3_ROPE, shapes_of, solved, tiny, with_grid
from tiny_models import tokenizer_files

import edgeq_exporters.common.safetensors_directory as directory_module
from edgeq.errors import BadInput
from edgeq.types import Grid
from edgeq_exporters.gguf.exporter import GgufExporter
from edgeq_exporters.mlx.exporter import MlxExporter

Q_PROJ = "model.layers.0.self_attn.q_proj"
EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"


def written(model, directory):
    """The directory's config and its tensors."""
    directory.mkdir(exist_ok=True)
    MlxExporter().write(model, directory)
    tensors = {
        name: array
        for file in directory.glob("model*.safetensors")
        for name, array in load_file(file).items()
    }
    return json.loads((directory / "config.json").read_text()), tensors


def entries_in(directory):
    return {
        entry["source"]: entry
        for entry in json.loads((directory / "manifest.json").read_text())["tensors"]
    }


def module_settings(bits, group_size):
    return {"group_size": group_size, "bits": bits, "mode": "affine"}


def test_the_result_names_the_directory_first_and_then_every_file(rng, tmp_path):
    directory, *files = MlxExporter().write(solved(tiny(), rng, [FOUR_BITS]), tmp_path)
    assert directory == tmp_path and sorted(files) == sorted(tmp_path.iterdir())
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == FILES[name]
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    with safe_open(tmp_path / "model.safetensors", "np") as weights:
        assert weights.metadata() == {"format": "mlx"}


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
def test_scales_and_biases_are_the_solved_ones_in_their_own_type(rng, tmp_path, scale_dtype):
    model = solved(tiny(), rng, [Grid(4, 64, "symmetric", scale_dtype)])
    _, tensors = written(model, tmp_path)
    layer = model.layers[f"{Q_PROJ}.weight"]
    stored = np.dtype(ml_dtypes.bfloat16 if scale_dtype == "bfloat16" else scale_dtype)
    for name, solution in (("scales", layer.scales), ("biases", layer.offsets)):
        assert tensors[f"{Q_PROJ}.{name}"].dtype == stored
        np.testing.assert_array_equal(tensors[f"{Q_PROJ}.{name}"].astype(np.float32), solution)


def test_the_config_states_the_commonest_grid_and_every_module_that_differs(rng, tmp_path):
    model = solved(tiny(tie_word_embeddings=False), rng, [FOUR_BITS])
    with_grid(model, rng, f"{EMBEDDING}.weight", Grid(8, 32))
    with_grid(model, rng, f"{Q_PROJ}.weight", Grid(4, 32, "offset"))
    model.arrays[f"{HEAD}.weight"] = model.layers.pop(f"{HEAD}.weight").dequantized()
    config, _ = written(model, tmp_path)
    different = {EMBEDDING: module_settings(8, 32), Q_PROJ: module_settings(4, 32), HEAD: False}
    assert config["quantization"] == module_settings(4, 64) | different
    assert config["quantization_config"] == config["quantization"]


def test_a_model_with_only_its_embedding_quantized_lists_the_dense_layers(rng, tmp_path):
    model = with_grid(solved(tiny(), rng, [None]), rng, f"{EMBEDDING}.weight", Grid(8, 32))
    quantization = written(model, tmp_path)[0]["quantization"]
    assert quantization.pop("bits") == 8 and quantization.pop("group_size") == 32
    assert EMBEDDING not in quantization and quantization[Q_PROJ] is False


def test_a_dense_model_has_no_quantization_settings_and_float16_tensors(rng, tmp_path):
    model = solved(tiny(), rng, [None])
    model.config |= {"quantization": {"bits": 4}}
    config, tensors = written(model, tmp_path)
    assert not {"quantization", "quantization_config"} & set(config)
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float16)}


def test_the_config_states_what_mlx_lm_would_otherwise_guess(rng, tmp_path):
    model = solved(tiny(rope_parameters=LLAMA_3_ROPE), rng, [FOUR_BITS])
    config, tensors = written(model, tmp_path / "tied")
    assert (config["rope_theta"], config["rope_scaling"]["rope_type"]) == (500.0, "llama3")
    assert config["tie_word_embeddings"] is True and not any(
        name.startswith(HEAD) for name in tensors
    )
    silent = solved(tiny(tie_word_embeddings=False, num_key_value_heads=4), rng, [FOUR_BITS])
    for key in ("tie_word_embeddings", "num_key_value_heads"):
        silent.config.pop(key)
    config, tensors = written(silent, tmp_path / "untied")
    assert config["tie_word_embeddings"] is False and f"{HEAD}.weight" in tensors
    assert (config["num_key_value_heads"], config["rope_theta"], config["rope_scaling"]) == (
        4,
        10000.0,
        None,
    )


def test_the_manifest_tells_what_became_of_each_tensor(rng, tmp_path):
    model = solved(tiny(), rng, [Grid(4, 32), Grid(4, 32, "integer"), Grid(3, 64, "offset"), None])
    _, tensors = written(model, tmp_path)
    entries = entries_in(tmp_path)
    assert set(entries) == set(model.tensor_names())
    for name, layer in model.layers.items():
        entry = entries[name]
        assert entry["status"] == ("rescaled" if layer.grid.zeros == "integer" else "exact")
        assert (entry["bits"], entry["group_size"], entry["type"]) == (
            layer.grid.bits,
            layer.grid.group_size,
            "affine",
        )
        stored = tensors[f"{name.removesuffix('.weight')}.biases"].astype(np.float64)
        assert entry["largest_deviation"] == np.abs(stored - layer.offsets).max()
    for name, array in model.arrays.items():
        assert (entries[name]["status"], entries[name]["type"]) == ("dense", "F16")
        difference = tensors[name].astype(np.float64) - array
        assert (
            entries[name]["largest_deviation"] == pytest.approx(np.abs(difference).max())
            and difference.any()
        )


def test_a_dense_tensor_beyond_float16_keeps_its_own_type(rng, tmp_path):
    model = solved(tiny(), rng, [FOUR_BITS])
    model.arrays["model.norm.weight"] *= 1e6
    _, tensors = written(model, tmp_path)
    np.testing.assert_array_equal(tensors["model.norm.weight"], model.arrays["model.norm.weight"])
    entry = entries_in(tmp_path)["model.norm.weight"]
    assert (entry["type"], entry["largest_deviation"]) == ("F32", 0.0)


def test_the_hashes_of_a_solution_are_those_of_its_gguf(rng, tmp_path):
    model = solved(tiny(vocab_size=320), rng, [Grid(4, 32), Grid(4, 64, "offset"), None])
    model.files = tokenizer_files()
    mlx, gguf = tmp_path / "mlx", tmp_path / "gguf"
    for directory, exporter in ((mlx, MlxExporter()), (gguf, GgufExporter())):
        directory.mkdir()
        exporter.write(model, directory)
    hashes = [
        {name: entry["sha256"] for name, entry in entries_in(path).items()} for path in (mlx, gguf)
    ]
    assert hashes[0] == hashes[1] and len(hashes[0]) == len(model.tensor_names())


def test_shards_hold_the_tensors_that_the_index_and_the_manifest_say(rng, tmp_path, monkeypatch):
    model = solved(tiny(), rng, [FOUR_BITS, None])
    _, whole = written(model, tmp_path / "whole")
    monkeypatch.setattr(directory_module, "SHARD_BYTES", 70_000)
    _, parts = written(model, tmp_path / "parts")
    assert set(parts) == set(whole) and all(
        np.array_equal(parts[name], whole[name]) for name in whole
    )
    index = json.loads((tmp_path / "parts/model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "parts").glob("*.safetensors"))
    assert files == [
        f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))
    ]
    held = {name: file for file in files for name in load_file(tmp_path / "parts" / file)}
    assert held == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in whole.values())
    assert all(
        entry["file"] == held[name] for name, entry in entries_in(tmp_path / "parts").items()
    )
    manifests = [
        json.loads((tmp_path / name / "manifest.json").read_text())["file"]
        for name in ("whole", "parts")
    ]
    assert manifests == ["model.safetensors", "model.safetensors.index.json"]
    sizes = [
        sum(array.nbytes for array in load_file(tmp_path / "parts" / file).values())
        for file in files
    ]
    assert max(sizes) <= 70_000 < min(map(sum, pairwise(sizes)))


def test_the_same_model_gives_the_same_bytes(rng, tmp_path):
    model = solved(tiny(tie_word_embeddings=False), rng, [FOUR_BITS, None])
    for name in ("first", "second"):
        model.layers = dict(reversed(model.layers.items()))
        written(model, tmp_path / name)
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes(), file.name


def test_rotary_tables_and_copies_of_a_tied_head_are_left_out(rng, tmp_path):
    model = solved(tiny(), rng, [FOUR_BITS])
    model.arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, np.float32)
    model.arrays[f"{HEAD}.weight"] = model.layers[f"{EMBEDDING}.weight"].dequantized()
    assert MlxExporter().reject_reason(model.record, model.files, shapes_of(model)) is None
    _, tensors = written(model, tmp_path)
    assert not any("rotary" in name or HEAD in name for name in tensors)


@pytest.mark.parametrize(
    "damage", [lambda scales: scales * 1e9, lambda scales: scales[:-1]], ids=["huge", "short"]
)
def test_a_failure_while_writing_leaves_no_file_behind(rng, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(directory_module, "SHARD_BYTES", 50_000)
    model = solved(tiny(), rng, [FOUR_BITS])
    name = "model.layers.1.mlp.down_proj.weight"
    layer = model.layers[name]
    parts = {"scales": damage(layer.scales), "offsets": damage(layer.offsets)}
    if len(parts["scales"]) < len(layer.scales):
        parts["codes"] = layer.codes[:-1]
    model.layers[name] = dataclasses.replace(layer, **parts)
    with pytest.raises(BadInput, match=f"tensor '{name}'.*(exceeds float16|has shape)"):
        MlxExporter().write(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_exporter_loads_no_framework():
    code = "import sys, edgeq_exporters.mlx.exporter; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert not {"mlx", "mlx_lm", "torch", "transformers"} & set(run.stdout.split())
