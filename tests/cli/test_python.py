"""The functions of `edgeq` do what the commands do, and say it in the words of Python."""

import dataclasses
import json
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from command_line import finished

import edgeq
from edgeq.api.arguments import OPTION
from edgeq.registry import all_formats

QUICK = {"samples": 4, "sequence_length": 32, "backend": "cpu"}
BITS = {"bits": 3, "group_size": 32, "zeros": "asymmetric", "keep_dense": "*.0.mlp.down_proj"}


def contents(folder):
    """The bytes of all files by name; what was measured of a run depends on time and place."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    timed = {"measured.json", "report.html"}
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.name not in timed}


@pytest.fixture(scope="module")
def quick_text(text_file):
    return {**QUICK, "calibration": [text_file]}


@pytest.fixture(scope="module")
def events():
    return []


@pytest.fixture(scope="module")
def run(saved_model, quick_text, events, tmp_path_factory):
    output = tmp_path_factory.mktemp("python") / "out"
    return edgeq.quantize(
        saved_model,
        output,
        **quick_text,
        **BITS,
        export="gguf",
        evaluate=True,
        progress=events.append,
    )


@pytest.fixture(scope="module")
def command(saved_model, text_file, tmp_path_factory):
    """The same words as a command: its directory and what it printed."""
    output = tmp_path_factory.mktemp("command") / "out"
    words = ["--bits", 3, "--group-size", 32, "--asymmetric", "--keep-dense", "*.0.mlp.down_proj"]
    of_text = ["--samples", 4, "--sequence-length", 32, "--backend", "cpu", "--calibration"]
    last = [text_file, "--export", "gguf", "--evaluate", "--json"]
    result = finished("quantize", saved_model, "-o", output, *words, *of_text, *last)
    return output, json.loads(result.out)


def test_the_function_writes_the_bytes_of_the_command(run, command):
    assert contents(run.output) == contents(command[0])
    assert "edgeq.json" in contents(run.output)


def test_its_result_is_what_the_command_prints(run, command):
    output, printed = command
    moved = json.loads(json.dumps(run.details).replace(str(run.output), str(output)))
    for found in (moved, printed):
        del found["seconds"], found["total_seconds"]
    assert moved == printed
    assert run.sizes == printed["bytes"]
    assert run.bits_per_weight == printed["bits_per_weight"]["model"]
    assert run.quality.kl == printed["quality"]["kl"] > 0
    assert run.result == run.exports["gguf"]


def test_progress_counts_up_to_the_total_and_tells_each_layer(run, events):
    counted = [event for event in events if event.what == "quantizing"]
    blocks = counted[-1].total
    assert [e.done for e in counted if e.layer is None] == list(range(blocks + 1))
    assert [e.layer for e in counted if e.layer is not None] == list(run.report.layers)
    assert counted[-1].share == 1
    windows = [event for event in events if event.what == "evaluating" and event.total]
    assert windows[-1].done == windows[-1].total > 0
    assert windows[-1].unit == "windows"
    assert str(counted[-1]) == f"quantizing: {blocks} of {blocks} blocks"


def test_results_are_frozen_and_say_in_a_line_what_they_are(run):
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.model = "other"
    assert repr(run).startswith(f"<RunResult of {run.model!r} in ")
    assert f"KL divergence {run.quality.kl:.4g}" in repr(run.quality)
    assert "\n" not in repr(run)


def test_an_opened_checkpoint_gives_codes_and_what_they_stand_for(run):
    model = edgeq.open(run)
    name = "model.layers.1.mlp.up_proj.weight"
    codes, grid = model.codes(name), model.grids[name]
    assert codes.dtype == np.uint8
    assert codes.shape == model.shape(name)
    assert grid.bits == 3
    offsets = np.repeat(model.quantized(name).offsets, 32, axis=1)
    by_hand = np.repeat(model.scales(name), 32, axis=1) * codes + offsets
    assert np.array_equal(model.dequantized(name), by_hand)
    assert np.array_equal(model[name], by_hand)
    assert model.report.layers == run.report.layers
    assert name in model
    assert list(model) == list(model.names)
    assert model.recipe["group_size"] == 32
    assert "model.layers.0.mlp.down_proj.weight" not in model.grids


def test_an_opened_model_gives_its_tensors_and_has_no_codes(saved_model):
    model = edgeq.open(saved_model)
    assert not any(map(model.is_quantized, model))
    assert model.report is None
    assert model.grids == {}
    with pytest.raises(edgeq.BadInput, match="has no codes, it is F32"):
        model.codes(model.names[0])
    with pytest.raises(KeyError):
        model.shape("no.such.tensor")


def test_exports_and_formats_go_by_the_result_of_a_run(run, tmp_path):
    written = edgeq.export(run, "onnx", tmp_path / "onnx", accuracy_level=0)
    assert all(size == path.stat().st_size for path, size in written.files.items())
    assert edgeq.verify(written.path.parent, against=run).ok
    rows = {row.name: row for row in edgeq.formats(run)}
    assert set(rows) == {each.name for each in all_formats()}
    assert rows["gguf"].fits == "without loss"
    again = edgeq.evaluate(run.exports["gguf"], windows=2, sequence_length=16)
    assert again.kl is None
    assert again.tokens == 2 * 16


def test_a_model_writes_what_the_command_prints(run):
    words = {"max_tokens": 5, "seed": 3, "temperature": 0.5}
    pieces = edgeq.generate(run.exports["gguf"], "It's 2026", **words)
    options = ["--max-tokens", 5, "--seed", 3, "--temperature", 0.5, "--json"]
    printed = finished("generate", run.exports["gguf"], "It's 2026", *options)
    assert "".join(pieces) == json.loads(printed.out)["text"]


@pytest.mark.parametrize(
    "wrong, line",
    [
        ({"prompt": ""}, r"^prompt = '': expected a text"),
        ({"max_tokens": 0}, r"^max_tokens = 0: expected a whole number of 1 or more"),
        ({"temperature": "hot"}, r"^temperature = 'hot': expected a number"),
        ({"temperature": -1}, r"^temperature -1: give 0"),
        ({"raw": True, "system": "Be brief."}, r"^system with raw=True"),
        ({"runtime": "tensorrt"}, r"^runtime 'tensorrt' is not known"),
        ({"target": "no/such"}, r"no/such"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_one_line(run, wrong, line):
    with pytest.raises(edgeq.BadInput, match=line):
        edgeq.generate(**{"target": run.exports["gguf"], "prompt": "Hi", **wrong})


def test_several_targets_are_compared_with_progress(run, saved_model):
    told = []
    found = edgeq.evaluate(
        [run, run.exports["gguf"]], reference=saved_model, windows=2, progress=told.append
    )
    alone = edgeq.evaluate(run, reference=str(saved_model), windows=2)
    assert found.targets[0].kl == alone.kl
    low, high = alone.intervals["kl"]
    assert low <= alone.kl <= high
    assert len(found.pairs) == 1
    assert [event.done for event in told] == sorted(event.done for event in told)
    assert told[-1].share == 1
    assert {event.what for event in told} == {"evaluating"}
    assert str(run.output) in {event.model for event in told}


@pytest.mark.parametrize(
    "wrong, line",
    [
        ({"target": []}, r"^target = \[\]: expected a target"),
        ({"target": 5}, r"^target = 5: expected a str, or a list"),
        ({"windows": 0}, r"^windows = 0: expected a whole number of 1 or more"),
        ({"windows": 2.5}, r"^windows = 2.5: expected a whole number"),
        ({"sequence_length": 4}, r"^sequence_length = 4: expected a whole number of 8 or more"),
        ({"reference": 1}, r"^reference = 1: expected a path"),
        ({"text": "nothing.txt"}, r"^text 'nothing.txt': no such file"),
        ({"runtime": "tensorrt"}, r"^runtime 'tensorrt' is not known"),
    ],
)
def test_what_cannot_be_measured_is_one_line(run, wrong, line):
    with pytest.raises(edgeq.BadInput, match=line):
        edgeq.evaluate(**{"target": run, **wrong})


def test_a_plan_reads_no_weights_and_takes_the_words_of_a_run(saved_model, tmp_path, text_file):
    outline = tmp_path / "outline"
    outline.mkdir()
    shutil.copy(saved_model / "config.json", outline)
    plan = edgeq.plan(outline, max_ram="8GB", export=["gguf"], calibration=str(text_file), **QUICK)
    assert 0 < plan.memory <= 8e9
    assert [row["format"] for row in plan.formats] == ["gguf"]
    assert plan.disk["gguf"] > 0


def test_ctrl_c_in_the_callback_keeps_blocks_and_resume_goes_on(
    run, saved_model, quick_text, tmp_path
):
    def stop(event):
        if event.what == "quantizing" and event.done == 1:
            raise KeyboardInterrupt

    words = {**quick_text, **BITS, "export": "gguf", "evaluate": True}
    with pytest.raises(KeyboardInterrupt) as stopped:
        edgeq.quantize(saved_model, tmp_path / "out", **words, progress=stop)
    assert "resume=True" in " ".join(stopped.value.__notes__)
    assert not (tmp_path / "out").exists()
    with pytest.raises(edgeq.BadInput, match=r"add resume=True to continue it or force=True"):
        edgeq.quantize(saved_model, tmp_path / "out", **words)
    done = []
    again = edgeq.quantize(
        saved_model, tmp_path / "out", **words, resume=True, progress=done.append
    )
    assert next(e.done for e in done if e.what == "quantizing") == 1
    assert contents(again.output) == contents(run.output)


def test_nothing_is_printed_and_signals_stay_as_they_were(saved_model, quick_text, tmp_path, capfd):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    threads = threading.active_count()
    found = []

    def work():
        # outside of the main thread too, where no handler could be installed
        words = {**quick_text, "quality": "fast", "evaluate": True}
        found.append(edgeq.quantize(str(saved_model), str(tmp_path / "out"), **words))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].quality.perplexity > 0
    assert capfd.readouterr() == ("", "")
    assert [signal.getsignal(number) for number in numbers] == handlers
    assert threading.active_count() == threads


WRONG = [
    ({"bits": "4"}, r"bits = '4': expected a whole number from 2 to 8 or 16"),
    ({"bits": True}, r"bits = True: expected a whole number"),
    ({"bits": 9}, r"bits = 9: expected a whole number"),
    ({"group_size": 33.0}, r"group_size = 33.0: expected a whole number"),
    ({"type": "Q9"}, r"type = 'Q9': expected a type or mix"),
    ({"type": "Q4_K", "bits": 4}, r"type = Q4_K says bits, .* leave out bits"),
    ({"quality": "great"}, r"quality = 'great': expected one of fast, balanced, best"),
    ({"zeros": "none"}, r"zeros = 'none': expected one of"),
    ({"export": "ggml"}, r"format 'ggml' is not known; .*choose one of gguf"),
    ({"export": 5}, r"export = 5: expected a str, or a list of them"),
    ({"export": [b"gguf"]}, r"export = b'gguf': expected a text"),
    ({"calibration": {"a.txt": 1}}, r"calibration = .*: expected a str, or a list of them"),
    ({"calibration": ["no/such/file"]}, r"text 'no/such/file': no such file"),
    ({"keep_dense": ["*.nothing"]}, r"'\*\.nothing' of keep_dense or an override matches no"),
    ({"max_ram": "lots"}, r"max_ram='lots': expected a size such as 8GB"),
    ({"max_ram": 2.5}, r"max_ram = 2.5: expected a whole number"),
    ({"max_ram": "1MB"}, r"max_ram=1 MB: this run"),
    ({"file_size": "1KB"}, r"file_size=0.00 MB is too little"),
    ({"file_size": 10, "fits": 10}, r"file_size and fits are two budgets"),
    ({"context": 512}, r"context belongs to fits SIZE"),
    ({"bits_per_weight": "3"}, r"bits_per_weight = '3': expected a number"),
    ({"bits_per_weight": 99}, r"bits_per_weight=99: expected a number from 1 to 16"),
    ({"backend": "gpu"}, r"backend 'gpu' is not known"),
    ({"backend": None}, r"backend = None: expected a text"),
    ({"force": 1}, r"force = 1: expected True or False"),
    ({"evaluate": "yes"}, r"evaluate = 'yes': expected True or False"),
    ({"recipe": "none.toml"}, r"recipe 'none.toml': no such file"),
    ({"recipe": 4}, r"recipe = 4: expected a path"),
    ({"imatrix": b"x"}, r"imatrix = b'x': expected a path"),
    ({"overrides": "x"}, r"overrides = 'x': expected a list of dicts"),
    ({"overrides": [{"bits": 3}]}, r"override without 'layers'"),
    ({"qdq": 1, "export": "onnx"}, r"qdq = 1: expected True or False"),
    ({"accuracy_level": 9, "export": "onnx"}, r"accuracy_level = 9: expected a whole number"),
    ({"qdq": True, "export": "gguf"}, r"option qdq is one of format onnx, not of gguf"),
    ({"revision": "main"}, r"revision='main' with .* only a model on the hub"),
    ({"sequence_length": 4096}, r"choose sequence_length=128 or less"),
    ({"imatrix": "a.gguf", "calibration": "self"}, r"imatrix with calibration='self'"),
]


@pytest.mark.parametrize("wrong, line", WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_value_is_one_line_in_pythons_words_and_writes_nothing(
    saved_model, tmp_path, wrong, line
):
    with pytest.raises(edgeq.EdgeqError, match=line) as refused:
        edgeq.quantize(saved_model, tmp_path / "out", **{**QUICK, **wrong})
    assert "\n" not in str(refused.value)
    assert not OPTION.search(str(refused.value)), "an option of the command line"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model, output", [(5, "out"), ("", "out"), ("a\0b", "out"), (b"x", "out")])
def test_what_is_no_path_is_refused_by_name(model, output):
    with pytest.raises(edgeq.BadInput, match=r"^model = "):
        edgeq.quantize(model, output)
    with pytest.raises(edgeq.BadInput, match=r"^output = "):
        edgeq.quantize("demo", model)
    with pytest.raises(edgeq.BadInput, match=r"^path = "):
        edgeq.open(model)


@pytest.mark.parametrize(
    "function, wrong, nearest",
    [
        (edgeq.quantize, "exports", "export"),
        (edgeq.quantize, "bit", "bits"),
        (edgeq.quantize, "max_memory", "max_ram"),
        (edgeq.plan, "calibrate", "calibration"),
        (edgeq.allocate, "size", "file_size"),
        (edgeq.export, "accuracy", "accuracy_level"),
    ],
)
def test_an_unknown_argument_is_a_type_error_with_the_nearest(function, wrong, nearest):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{wrong}'.*{nearest}"):
        function("demo", "out", **{wrong: 1})


def test_a_path_is_a_file_even_where_its_name_is_a_word(
    saved_model, text_file, tmp_path, monkeypatch
):
    shutil.copy(text_file, tmp_path / "self")
    monkeypatch.chdir(tmp_path)
    run = edgeq.quantize(saved_model, Path("out"), **QUICK, solver="rtn", calibration=Path("self"))
    assert run.output == Path("out")
    head = json.loads((tmp_path / "out/edgeq.json").read_text(encoding="utf-8"))
    assert head["calibration"]["texts"][0]["name"] == "self"
    assert "tokens" in head["calibration"]["texts"][0]
