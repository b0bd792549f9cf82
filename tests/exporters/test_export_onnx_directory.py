"""ONNX exports as files: graph, external data, manifest, settings for onnxruntime-genai,
determinism.
"""

import dataclasses
import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from solved_models import FILES, FOUR_BITS, shapes_of, solved, tiny, torch_logits, with_grid
from tiny_models import tokenizer_files
from tokenizers import Tokenizer

from edgeq.errors import BadInput
from edgeq.measuring.targets import find_export
from edgeq.types import Grid
from edgeq_exporters.gguf.exporter import GgufExporter
from edgeq_exporters.onnx.exporter import OnnxExporter

EMBEDDING = "model.embed_tokens.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
STANDARD = {"", "ai.onnx"}


def written(model, directory, **options):
    directory.mkdir(exist_ok=True)
    return OnnxExporter(**options).write(model, directory)


def graph_of(directory):
    return onnx.load(directory / "model.onnx").graph


def entries_in(directory):
    return {
        entry["source"]: entry
        for entry in json.loads((directory / "manifest.json").read_text())["tensors"]
    }


def test_the_result_names_the_graph_first_and_then_every_file(rng, tmp_path):
    files = written(solved(tiny(), rng, [FOUR_BITS]), tmp_path)
    assert files[:2] == [tmp_path / "model.onnx", tmp_path / "model.onnx.data"]
    assert sorted(files) == sorted(tmp_path.iterdir())
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == FILES[name]
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize("qdq", [False, True], ids=["blocks", "qdq"])
def test_the_checker_accepts_the_graph(rng, tmp_path, qdq):
    model = solved(tiny("qwen2"), rng, [Grid(8, 64), FOUR_BITS, None, Grid(3, 32, "integer")])
    written(model, tmp_path, qdq=qdq)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    loaded = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert loaded.ir_version == 10 and {
        each.domain: each.version for each in loaded.opset_import
    } == {
        "": 21,
        "com.microsoft": 1,
    }
    names = [node.name for node in loaded.graph.node]
    assert len(set(names)) == len(names)


def test_no_graph_has_an_index_of_groups(rng, tmp_path):
    written(solved(tiny(), rng, [FOUR_BITS, Grid(2, 32)]), tmp_path)
    products = [node for node in graph_of(tmp_path).node if node.op_type == "MatMulNBits"]
    assert len(products) == 15 and all(len(node.input) <= 4 for node in products)


def test_a_graph_of_standard_weights_has_no_quantized_operators_of_onnx_runtime(rng, tmp_path):
    written(solved(tiny(), rng, [FOUR_BITS, Grid(3, 32, "integer")]), tmp_path, qdq=True)
    foreign = {node.op_type for node in graph_of(tmp_path).node if node.domain not in STANDARD}
    assert foreign == {"GroupQueryAttention", "SkipSimplifiedLayerNormalization"}


def optimized_operators(file):
    """What ONNX Runtime makes of a graph when it loads it."""
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime", exc_type=ImportError)
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(file.with_name("optimized.onnx"))
    options.log_severity_level = 3
    runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


def test_onnx_runtime_fuses_standard_weights_into_its_own_products(rng, tmp_path):
    model = solved(tiny(), rng, [FOUR_BITS, Grid(8, 32, "integer"), Grid(3, 128)])
    found = optimized_operators(written(model, tmp_path, qdq=True)[0])
    assert found.count("MatMulNBits") == 15 and "MatMul" not in found


def test_onnx_runtime_fuses_the_first_norm_like_the_others(rng, tmp_path):
    found = optimized_operators(written(solved(tiny(), rng, [FOUR_BITS]), tmp_path)[0])
    assert found.count("SimplifiedLayerNormalization") == 1 and "Pow" not in found


def test_a_tied_head_shares_the_codes_of_its_embedding(rng, tmp_path):
    model = solved(tiny(), rng, [Grid(8, 32)])
    written(model, tmp_path)
    graph = graph_of(tmp_path)
    (head,) = (node for node in graph.node if "logits" in node.output)
    (reshape,) = (node for node in graph.node if node.op_type == "Reshape")
    assert head.input[1] == reshape.input[0] == EMBEDDING
    names = [initializer.name for initializer in graph.initializer]
    assert len(names) == len(set(names)) and not any("lm_head" in name for name in names)


def test_zero_points_are_stored_where_they_are_not_the_middle_and_for_every_embedding(
    rng, tmp_path
):
    model = solved(
        tiny(), rng, [Grid(4, 32), Grid(3, 32), Grid(4, 32, "integer"), Grid(4, 32, "offset")]
    )
    written(model, tmp_path)
    stored = {each.name: numpy_helper.to_array(each) for each in graph_of(tmp_path).initializer}
    for name, layer in model.layers.items():
        zeros = stored.get(f"{name}.zero_points")
        if name == EMBEDDING:
            assert (zeros == 0x88).all()
        elif layer.grid.zeros == "symmetric":
            assert zeros is None
        elif layer.grid.zeros == "offset":
            assert zeros.dtype == np.float32
            np.testing.assert_allclose(-zeros * layer.scales, layer.offsets, rtol=1e-6)
        else:
            assert zeros.dtype == np.uint8 and zeros.shape == (
                len(layer.codes),
                -(-layer.scales.shape[1] // 2),
            )


def test_the_manifest_tells_what_became_of_each_tensor(rng, tmp_path):
    model = solved(
        tiny(), rng, [Grid(4, 32), Grid(4, 32, "integer"), Grid(3, 64), Grid(2, 32, "offset"), None]
    )
    written(model, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["format"], manifest["file"]) == ("onnx", "model.onnx")
    assert manifest["settings"] == {"accuracy_level": 4, "qdq": False, "activations": "float32"}
    entries = entries_in(tmp_path)
    assert set(entries) == set(model.tensor_names())
    for name, layer in model.layers.items():
        grid, entry = layer.grid, entries[name]
        kept = "widened" if grid.bits == 3 else "exact"
        status = "rescaled" if grid.zeros == "offset" else kept
        assert entry["status"] == status
        assert (entry["bits"], entry["group_size"]) == (grid.bits, grid.group_size)
        assert entry["type"] == ("GatherBlockQuantized" if name == EMBEDDING else "MatMulNBits")
        assert (0 < entry["largest_deviation"] < 1e-6) == (status == "rescaled")
    for name in model.arrays:
        assert (entries[name]["status"], entries[name]["largest_deviation"]) == ("dense", 0.0)


def test_the_hashes_of_a_solution_are_those_of_its_gguf(rng, tmp_path):
    model = solved(tiny(vocab_size=320), rng, [Grid(4, 32), Grid(4, 64, "integer"), None])
    model.files = tokenizer_files()
    gguf = tmp_path / "gguf"
    gguf.mkdir()
    GgufExporter().write(model, gguf)
    written(model, tmp_path / "onnx")
    hashes = [
        {name: entry["sha256"] for name, entry in entries_in(tmp_path / kind).items()}
        for kind in ("gguf", "onnx")
    ]
    assert hashes[0] == hashes[1] and len(hashes[0]) == len(model.tensor_names())


@pytest.mark.parametrize("qdq", [False, True], ids=["blocks", "qdq"])
def test_the_same_model_gives_the_same_bytes(rng, tmp_path, qdq):
    model = solved(tiny(tie_word_embeddings=False), rng, [FOUR_BITS, None, Grid(3, 32, "integer")])
    for name in ("first", "second"):
        model.layers = dict(reversed(model.layers.items()))
        written(model, tmp_path / name, qdq=qdq)
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes(), file.name


def test_tensors_lie_aligned_and_whole_in_the_data_file(rng, tmp_path):
    written(solved(tiny(vocab_size=9000), rng, [None, FOUR_BITS]), tmp_path)
    places = []
    for each in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer:
        if each.data_location == TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in each.external_data}
            assert place["location"] == "model.onnx.data"
            places.append((int(place["offset"]), int(place["length"])))
    places.sort()
    assert all(offset % (65536 if length >= 1_000_000 else 64) == 0 for offset, length in places)
    assert any(length >= 1_000_000 for _, length in places)
    assert all(low + length <= high for (low, length), (high, _) in pairwise(places))
    assert sum(places[-1]) == (tmp_path / "model.onnx.data").stat().st_size


def test_a_failure_while_writing_leaves_no_file_behind(rng, tmp_path):
    model = solved(tiny(), rng, [FOUR_BITS])
    layer = model.layers[DOWN]
    parts = {"codes": layer.codes[:-1], "scales": layer.scales[:-1], "offsets": layer.offsets[:-1]}
    model.layers[DOWN] = dataclasses.replace(layer, **parts)
    with pytest.raises(BadInput, match=f"tensor '{DOWN}' has shape"):
        OnnxExporter().write(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_found_by_its_directory_and_by_its_graph(rng, tmp_path):
    file, *_ = written(solved(tiny(), rng, [FOUR_BITS]), tmp_path)
    for name in (tmp_path, file):
        found = find_export(str(name))
        assert (found.kind, found.path) == ("onnx", file)


def test_settings_for_generation_come_from_the_model(rng, tmp_path):
    model = solved(tiny(pad_token_id=None), rng, [FOUR_BITS])
    model.files["generation_config.json"] = (
        b'{"eos_token_id": [1, 7], "do_sample": true, "top_p": 0.9}'
    )
    written(model, tmp_path)
    settings = json.loads((tmp_path / "genai_config.json").read_text())
    tokens = [settings["model"][f"{key}_token_id"] for key in ("bos", "eos", "pad")]
    assert tokens == [0, [1, 7], 1]
    assert (settings["search"]["do_sample"], settings["search"]["top_p"]) == (True, 0.9)
    assert settings["search"]["max_length"] == settings["model"]["context_length"] == 128


def test_onnxruntime_genai_generates_what_torch_does(rng, tmp_path):
    genai = pytest.importorskip(
        "onnxruntime_genai", reason="no wheel for this system", exc_type=ImportError
    )
    model = tiny(vocab_size=320, eos_token_id=2)
    export = solved(model, rng, [Grid(4, 32), Grid(8, 64)])
    export.files = tokenizer_files()
    written(export, tmp_path, accuracy_level=0)
    loaded = genai.Model(str(tmp_path))
    ids = genai.Tokenizer(loaded).encode("the mice run")
    assert (
        ids.tolist()
        == Tokenizer.from_str(export.files["tokenizer.json"].decode()).encode("the mice run").ids
    )
    settings = genai.GeneratorParams(loaded)
    settings.set_search_options(max_length=len(ids) + 32, do_sample=False)
    generator = genai.Generator(loaded, settings)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    found = generator.get_sequence(0)
    torch_logits(model, export.weights(), np.asarray(ids, np.int64)[None])  # also loads the weights
    prompt = torch.from_numpy(np.asarray(ids, np.int64))[None]
    expected = model.generate(
        prompt, do_sample=False, max_new_tokens=32, attention_mask=torch.ones_like(prompt)
    )
    assert len(found) == len(ids) + 32
    assert found.tolist() == expected[0].tolist()


def test_the_exporter_loads_no_framework_and_no_runtime():
    code = "import sys, edgeq_exporters.onnx.exporter; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert not {"onnxruntime", "torch", "transformers"} & set(run.stdout.split())


def test_rotary_tables_and_copies_of_a_tied_head_are_left_out(rng, tmp_path):
    model = solved(tiny(), rng, [FOUR_BITS])
    model.arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, np.float32)
    model.arrays["lm_head.weight"] = model.layers[EMBEDDING].dequantized()
    assert OnnxExporter().reject_reason(model.record, model.files, shapes_of(model)) is None
    written(model, tmp_path)
    assert not any(
        "rotary" in each.name or "lm_head" in each.name for each in graph_of(tmp_path).initializer
    )


def test_the_accuracy_level_must_exist():
    with pytest.raises(BadInput, match="accuracy level 5 is not known; choose 0"):
        OnnxExporter(accuracy_level=5)


def test_embeddings_with_offsets_are_named(rng):
    model = with_grid(solved(tiny(), rng, [FOUR_BITS]), rng, EMBEDDING, Grid(4, 32, "offset"))
    reason = OnnxExporter().reject_reason(model.record, model.files, shapes_of(model))
    assert reason.startswith(
        f"tensor '{EMBEDDING}': an embedding holds no free offsets; use whole zero points"
    )
