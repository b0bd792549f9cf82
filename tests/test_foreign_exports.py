"""Targets of other makers, without a manifest of edgeq's: what each is, and what runs it."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest
from command_line import finished, run_edgeq
from models import save_small_llama
from onnx import TensorProto, helper, numpy_helper
from tiny_models import tokenizer_files

from edgeq.errors import BadInput
from edgeq.measuring.evaluate import evaluate_all
from edgeq.measuring.targets import find_export
from edgeq_backends.llama_cpp import load_cyllama
from edgeq_backends.onnx_runtime import OnnxRuntimeLogits

QUICK = ["--samples", "2", "--sequence-length", "32", "--backend", "cpu", "--solver", "rtn"]
PLAINLY = ["--scales", "none", "--propagation-strength", "0"]
EXPORTS = ("gguf", "onnx", "mlx", "compressed-tensors", "gptq")
SHORT = {"windows": 2, "sequence_length": 32, "backend": "cpu", "text": "dialogue"}
Q4_K_M = 15  # llama.cpp's number of the mix


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "original"
    return save_small_llama(folder, pad_token="<|pad|>")  # as transformers takes it


@pytest.fixture(scope="module")
def exports(original, tmp_path_factory):
    """One directory for each format, in which no manifest tells that edgeq wrote it."""
    out, bare = (tmp_path_factory.mktemp("runs") / name for name in ("out", "bare"))
    words = [word for name in EXPORTS for word in ("--export", name)]
    grid = ["--bits", 8, "--group-size", 32]
    finished("quantize", original, "-o", out, *grid, *words, *QUICK, *PLAINLY)
    for name in EXPORTS:
        shutil.copytree(out / name, bare / name, ignore=shutil.ignore_patterns("manifest.json"))
    return bare


def the_file(folder, suffix):
    [file] = Path(folder).glob(f"*{suffix}")
    return file


def in_parts(source, folder, *, parts=2):
    """Write a GGUF in parts as gguf-py does; gives the first."""
    read = gguf.GGUFReader(source)
    architecture = read.fields["general.architecture"].contents()
    most = -(-len(read.tensors) // parts)
    writer = gguf.GGUFWriter(folder / "theirs.gguf", architecture, split_max_tensors=most)
    for field in read.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for tensor in read.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / f"theirs-00001-of-{parts:05}.gguf"


def test_each_kind_runs_in_its_own_runtime(original, exports, tmp_path):
    """Beside edgeq's formats a mix of llama.cpp's own types, whole and in parts."""
    llama = load_cyllama()
    parameters = llama.LlamaModelQuantizeParams()
    parameters.ftype, parameters.allow_requantize, parameters.nthread = Q4_K_M, True, 1
    mixed = tmp_path / "theirs-Q4_K_M.gguf"
    llama.model_quantize(str(the_file(exports / "gguf", ".gguf")), str(mixed), parameters)
    (tmp_path / "parts").mkdir()
    first = in_parts(mixed, tmp_path / "parts")
    runtimes = {
        str(the_file(exports / "gguf", ".gguf")): "llama.cpp",
        str(exports / "gguf"): "llama.cpp",
        str(exports / "onnx"): "onnxruntime",
        str(exports / "mlx"): "mlx-lm",
        str(exports / "compressed-tensors"): "compressed-tensors",
        str(mixed): "llama.cpp",
        str(first): "llama.cpp",
        str(first.parent): "llama.cpp",
    }
    found = evaluate_all(list(runtimes), reference=str(original), **SHORT)["targets"]
    assert [each["runtime"] for each in found] == list(runtimes.values())
    kl = [each["kl"] for each in found]
    assert max(kl[:5]) < 0.01
    assert kl[5] == kl[6] == kl[7] > max(kl[:5])
    assert found[6]["bytes"] == sum(part.stat().st_size for part in first.parent.iterdir())
    assert not any(each["notes"] for each in found)


def test_what_mlx_lm_converts_itself_runs_in_mlx_lm(original, tmp_path):
    convert = pytest.importorskip("mlx_lm", reason="MLX has no build for this system").convert
    convert(str(original), str(tmp_path / "theirs"), quantize=True, q_bits=4, q_group_size=32)
    [found] = evaluate_all([str(tmp_path / "theirs")], reference=str(original), **SHORT)["targets"]
    assert found["runtime"] == "mlx-lm"
    assert 0 < found["kl"] < 1


def test_a_gptq_directory_is_known_and_names_what_runs_it(original, exports):
    assert find_export(str(exports / "gptq")).kind == "gptq"
    result = run_edgeq("evaluate", exports / "gptq", "--reference", original)
    assert result.status == 1
    assert "runtime 'gptqmodel' needs gptqmodel" in result.err


@pytest.mark.parametrize("method", ["awq", "bitsandbytes", "fp8"])
def test_other_packings_are_refused_by_their_name(original, exports, tmp_path, method):
    folder = shutil.copytree(exports / "gptq", tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    result = run_edgeq("evaluate", folder, "--reference", original)
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert f"packed by '{method}', which nothing here runs; give an export for one of" in result.err


def test_parts_are_taken_by_the_first_and_only_whole(exports, tmp_path):
    first = in_parts(the_file(exports / "gguf", ".gguf"), tmp_path, parts=3)
    assert find_export(str(tmp_path)).path == first
    second = tmp_path / "theirs-00002-of-00003.gguf"
    with pytest.raises(BadInput, match=r"is one of 3 parts; give 'theirs-00001-of-00003.gguf'"):
        find_export(str(second))
    second.unlink()
    for target in (first, tmp_path):
        with pytest.raises(BadInput, match=r"'theirs-00002-of-00003.gguf' is not beside it"):
            find_export(str(target))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["a.gguf", "b.gguf"], "holds 2 GGUF models"),
        (["a.onnx", "onnx/b.onnx"], "holds 2 ONNX graphs"),
        (["a.gguf", "model.onnx"], "an ONNX graph and a GGUF model"),
    ],
)
def test_several_models_in_a_directory_are_to_be_chosen_from(tmp_path, files, said):
    (tmp_path / "onnx").mkdir()
    for name in files:
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(BadInput, match=f"{said}.*name one of them"):
        find_export(str(tmp_path))


def test_a_graph_is_found_where_repositories_have_it(exports, tmp_path):
    """The only graph, that of genai_config.json, and one below its config."""
    graph = the_file(exports / "onnx", ".onnx")
    (tmp_path / "onnx").mkdir()
    shutil.copy(graph, tmp_path / "onnx" / "model.onnx")
    shutil.copy(exports / "onnx" / "config.json", tmp_path)
    assert find_export(str(tmp_path)).path == tmp_path / "onnx" / "model.onnx"
    (tmp_path / "genai_config.json").write_text('{"model": {"decoder": {"filename": "q4.onnx"}}}')
    shutil.copy(graph, tmp_path / "q4.onnx")
    assert find_export(str(tmp_path)).path == tmp_path / "q4.onnx"
    (tmp_path / "genai_config.json").write_text('{"model": {"decoder": {"filename": "/q4.onnx"}}}')
    with pytest.raises(BadInput, match="names no graph of a decoder in this directory"):
        find_export(str(tmp_path))


def graph_of(path, inputs, *, last_only=False):
    """Write a graph whose logits are a row for the token plus one for its position."""
    rng = np.random.default_rng(0)
    rows, places = (rng.standard_normal((size, 96)).astype("f4") for size in (96, 64))
    nodes = [
        helper.make_node("Gather", ["rows", "input_ids"], ["of_token"]),
        helper.make_node("Gather", ["places", "position_ids"], ["of_place"]),
        helper.make_node("Add", ["of_token", "of_place"], ["sum" if last_only else "logits"]),
    ]
    if last_only:
        nodes.append(helper.make_node("Gather", ["sum", "end"], ["logits"], axis=1))
    known = [numpy_helper.from_array(rows, "rows"), numpy_helper.from_array(places, "places")]
    known.append(numpy_helper.from_array(np.array([-1]), "end"))
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", "v"])
    graph = helper.make_graph(nodes, "g", inputs, [output], known)
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return rows, places


def taking(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


TOKENS = taking("input_ids", TensorProto.INT32, ["b", "s"])
PLACES = taking("position_ids", TensorProto.INT64, ["b", "s"])


def test_positions_and_a_count_of_logits_are_filled(rng, tmp_path):
    keep = taking("num_logits_to_keep", TensorProto.INT64, [])
    cache = taking("past_key_values.0.key", TensorProto.FLOAT16, ["b", 2, "past", 16])
    rows, places = graph_of(tmp_path / "theirs.onnx", [TOKENS, PLACES, keep, cache])
    windows = rng.integers(0, 96, (2, 20))
    logits = OnnxRuntimeLogits(tmp_path / "theirs.onnx", threads=1).logits(windows)
    for ids, found in zip(windows, logits, strict=True):
        np.testing.assert_allclose(found, rows[ids] + places[:20], rtol=1e-6)


@pytest.mark.parametrize(
    "unknown",
    [
        taking("inputs_embeds", TensorProto.FLOAT, ["b", "s", 64]),
        taking("past_conv.0", TensorProto.FLOAT, ["b", 64, 3]),
        taking("past_key_values.0.key", TensorProto.FLOAT, ["b", "heads", "past", 16]),
        taking("use_cache_branch", TensorProto.BOOL, [1]),
    ],
)
def test_an_input_that_nothing_fills_is_named(tmp_path, unknown):
    graph_of(tmp_path / "theirs.onnx", [TOKENS, PLACES, unknown])
    with pytest.raises(BadInput, match=f"takes '{unknown.name}'"):
        OnnxRuntimeLogits(tmp_path / "theirs.onnx", threads=1)


def test_a_graph_that_predicts_at_the_last_token_only_is_refused(rng, tmp_path):
    graph_of(tmp_path / "theirs.onnx", [TOKENS, PLACES], last_only=True)
    logits = OnnxRuntimeLogits(tmp_path / "theirs.onnx", threads=1)
    with pytest.raises(BadInput, match=r"logits of shape \(1, 1, 96\) for 20 tokens"):
        next(logits.logits(rng.integers(0, 96, (1, 20))))


def test_a_file_of_another_tokenizer_is_refused(original, exports, tmp_path):
    """llama.cpp says the text of each token itself; here two were exchanged in the file."""
    source = the_file(exports / "gguf", ".gguf")
    changed = tmp_path / "theirs.gguf"
    content, texts = source.read_bytes(), [gguf_text(text) for text in ("Ġthe", "Ġrun")]
    assert [content.count(text) for text in texts] == [1, 1]
    first, second = (content.index(text) for text in texts)
    swapped = bytearray(content)
    for place, text in ((first, texts[1]), (second, texts[0])):
        swapped[place : place + len(text)] = text
    changed.write_bytes(swapped)
    with pytest.raises(BadInput, match=r"another tokenizer: token \d+ is 'Ġrun' in it and 'Ġthe'"):
        evaluate_all([str(changed)], reference=str(original), **{**SHORT, "windows": 16})


def gguf_text(text):
    data = text.encode()
    return len(data).to_bytes(8, "little") + data


def test_a_target_without_a_tokenizer_is_measured_with_a_note(original, exports, tmp_path):
    folder = shutil.copytree(exports / "onnx", tmp_path / "theirs")
    for name in tokenizer_files():
        (folder / name).unlink(missing_ok=True)
    [found] = evaluate_all([str(folder)], reference=str(original), **SHORT)["targets"]
    assert found["notes"] == [
        "it brings no tokenizer.json, so that only its context and vocabulary were compared "
        "with the original's"
    ]
    words = ["--reference", original, "--windows", 1, "--text", "dialogue", "--backend", "cpu"]
    assert "it brings no tokenizer.json" in finished("evaluate", folder, *words).out
