"""Budgets in bytes on the command line: kept by the files, written as recipes, resumed."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import gguf
import models
import pytest
from command_line import finished
from exported_files import gguf_in

from edgeq.checkpoint.reader import Checkpoint
from edgeq.files.storage import size_of
from edgeq.recipe.recipe import make_recipe, read_recipe
from edgeq.run import allocation, pipeline
from edgeq.run.budget import cache_bytes

FAST = ["--quality", "fast"]
FORMATS = ["gguf", "mlx", "onnx", "gptq", "compressed-tensors"]

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.disk]


def known_before(model, quick, *options):
    """What `edgeq plan` says of a budget."""
    return json.loads(finished("plan", model, *quick, *options, "--json").out)["budget"]


def middle(model, quick, name):
    """A size between those of the smallest and of the largest types."""
    found = known_before(model, quick, "--export", name, "--file-size", "1GB")
    return (found["smallest"] + found["largest"]) // 2


@pytest.fixture(scope="module")
def wide_model(save_model):
    """A model of one block whose widths hold K-quants."""
    return save_model(
        "llama",
        tie_word_embeddings=True,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=1,
    )


@pytest.fixture(scope="module")
def run(saved_model, quick, tmp_path_factory):
    """A run within a budget, its size, and its folder."""
    folder = tmp_path_factory.mktemp("budget") / "out"
    size = middle(saved_model, quick, "gguf")
    options = ["--file-size", size, "--export", "gguf", *FAST, "-o", folder]
    found = json.loads(finished("quantize", saved_model, *quick, *options, "--json").out)
    return size, folder, found


@pytest.mark.parametrize("name", FORMATS)
def test_the_written_file_keeps_within_the_budget(name, edgeq, saved_model, quick, tmp_path):
    size = middle(saved_model, quick, name)
    options = ["--export", name, "--file-size", size, *FAST, "-o", tmp_path / "out", "--json"]
    result = edgeq("quantize", saved_model, *quick, *options)
    assert result.status == 0, result.err
    found = json.loads(result.out)
    assert found["bytes"][name] <= found["budget"]["bytes"] <= size
    chosen = {
        tuple(value for key, value in each.items() if key != "layers")
        for each in found["budget"]["overrides"]
    }
    assert len(chosen) > 1


def test_super_blocks_are_chosen_where_widths_hold_them(edgeq, wide_model, quick, tmp_path):
    size = middle(wide_model, quick, "gguf")
    options = ["--file-size", size, "--export", "gguf", *FAST, "-o", tmp_path / "out", "--json"]
    result = edgeq("quantize", wide_model, *quick, *options)
    assert result.status == 0, result.err
    found = json.loads(result.out)
    assert found["bytes"]["gguf"] <= size
    types = {each["type"] for each in found["budget"]["overrides"]}
    assert types <= {"Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0"}
    curve = found["budget"]["curve"]
    assert [point["bytes"] for point in curve] == sorted(point["bytes"] for point in curve)
    losses = [point["predicted_kl"] for point in curve]
    assert losses == sorted(losses, reverse=True)
    # one type for all is a choice too, so none that keeps the budget is predicted to lose less
    for row in found["budget"]["uniform"]:
        assert row["bytes"] > size or row["predicted_kl"] >= found["budget"]["predicted_kl"]


def test_the_recipe_makes_the_same_checkpoint(run, saved_model, quick, tmp_path):
    _, folder, _ = run
    again = tmp_path / "again"
    finished("quantize", saved_model, *quick, "--recipe", folder / "recipe.toml", "-o", again)
    assert Checkpoint(again).head["recipe"] == Checkpoint(folder).head["recipe"]
    for path in [*sorted((folder / "blocks").iterdir()), folder / "outer.safetensors"]:
        assert (again / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_allocate_writes_the_recipe_without_quantizing(run, saved_model, quick, tmp_path):
    size, folder, _ = run
    file = tmp_path / "recipe.toml"
    options = ["--file-size", size, "--export", "gguf", *FAST, "-o", file]
    finished("allocate", saved_model, *quick, *options)
    assert file.read_bytes() == (folder / "recipe.toml").read_bytes()
    recipe = make_recipe(read_recipe(str(file)))
    assert len(recipe.overrides) == 14
    assert list(tmp_path.iterdir()) == [file]


def test_the_result_and_the_screen_say_how_it_was_spent(run, edgeq, saved_model, quick):
    size, folder, found = run
    stored = json.loads((folder / "report.json").read_text(encoding="utf-8"))["budget"]
    assert stored == found["budget"]
    assert stored["asked"] == {"file_size": size}
    result = edgeq(
        "quantize", saved_model, *quick, *FAST, "--file-size", size, "--export", "gguf",
        "-o", folder, "--resume", "--verbose",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert "KL divergence:" in result.out
    sizes = [line for line in result.out.splitlines() if " MB  " in line]
    assert sum(line.endswith("chosen") for line in map(str.rstrip, sizes)) == 1
    assert len(sizes) <= 8  # with that of the files


@pytest.mark.parametrize("export", [["--export", "gguf"], pytest.param([], marks=pytest.mark.slow)])
def test_bits_per_weight_are_those_of_the_file(export, edgeq, wide_model, quick, tmp_path):
    """By the library of the format; a budget without an export is that of a GGUF file."""
    options = ["--bits-per-weight", "5", *export, *FAST, "-o", tmp_path / "out"]
    result = edgeq("quantize", wide_model, *quick, *options, "--json")
    assert result.status == 0, result.err
    if not export:
        finished("export", tmp_path / "out", "--format", "gguf")
    tensors = gguf.GGUFReader(gguf_in(tmp_path / "out" / "gguf")).tensors
    weights = sum(int(tensor.n_elements) for tensor in tensors)
    bits = 8 * sum(int(tensor.n_bytes) for tensor in tensors) / weights
    # all is used but what the smallest step to a larger type would exceed
    assert 4.8 < bits <= 5


@pytest.mark.parametrize(
    ("name", "smallest"), [("wide_model", {"Q2_K"}), ("saved_model", {"Q4_0", "IQ4_NL"})]
)
def test_embeddings_are_chosen_too(name, smallest, request, quick, tmp_path):
    model = request.getfixturevalue(name)
    least = known_before(model, quick, "--export", "gguf", "--file-size", "1GB")["smallest"]
    out = tmp_path / "out"
    options = ["--file-size", least, "--export", "gguf", *FAST, "-o", out]
    finished("quantize", model, *quick, *options)
    tensors = {t.name: t for t in gguf.GGUFReader(gguf_in(out / "gguf")).tensors}
    assert tensors["token_embd.weight"].tensor_type.name in smallest
    assert size_of(gguf_in(out / "gguf")) <= least


def test_what_is_measured_stands_beside_what_is_predicted(edgeq, saved_model, quick, tmp_path):
    size, out = middle(saved_model, quick, "gguf"), tmp_path / "out"
    options = ["--file-size", size, "--export", "gguf", *FAST, "--evaluate", "-o", out]
    found = json.loads(finished("quantize", saved_model, *quick, *options, "--json").out)
    stored = json.loads((out / "report.json").read_text(encoding="utf-8"))["budget"]
    assert stored == found["budget"]
    assert stored["measured"]["kl"] == found["quality"]["kl"]
    again = finished("quantize", saved_model, *quick, *options, "--resume", "--verbose")
    assert " measured (llama.cpp" in " ".join(again.out.split())
    last = finished("quantize", saved_model, *quick, *options[:4], *FAST, "-o", out, "--resume")
    assert "not been measured" not in last.out and " predicted; " in last.out
    assert Path(found["result"]).stem.endswith(f"-{size / 10**6:.9g}MB")


def test_a_device_holds_weights_and_cache_and_runtime(saved_model, quick):
    context = 64
    found = known_before(saved_model, quick, "--fits", "1GB", "--context", context)
    # two blocks, keys and values of two heads of 16 numbers, in float16
    assert found["beside"]["keys and values"] == 2 * 2 * 2 * 16 * context * 2
    whole = known_before(saved_model, quick, "--fits", "1GB", "--context", 2 * context)
    assert whole["beside"]["keys and values"] == 2 * found["beside"]["keys and values"]


@pytest.mark.parametrize(
    ("sliding", "tokens"),
    # all blocks keep the context where llama.cpp knows of no window; else those with one keep it
    # and a batch
    [([None, None], 4096 + 4096), ([64, None], 64 + 512 + 4096), ([64, 64], 4096 + 4096)],
)
def test_blocks_with_a_window_keep_less(sliding, tokens):
    decoder = models.MemorySource(models.tiny_llama()).record.decoder
    layers = tuple(
        replace(layer, attention=replace(layer.attention, window=window))
        for layer, window in zip(decoder.layers, sliding, strict=True)
    )
    one = decoder.layers[0].attention
    numbers = 2 * one.key_heads * one.head_size
    assert cache_bytes(replace(decoder, layers=layers), 4096) == 2 * numbers * tokens


@pytest.mark.parametrize("kind", ["--file-size", "--fits", "--bits-per-weight"])
def test_too_small_a_budget_names_the_smallest_that_would_do(kind, edgeq, saved_model, quick):
    small = "1.5" if kind == "--bits-per-weight" else "20KB"
    more = ["--context", "64"] if kind == "--fits" else []
    result = edgeq("plan", saved_model, *quick, kind, small, *more)
    assert result.status == 1
    assert len(result.err.splitlines()) == 1
    least = result.err.partition("raise it to ")[2].partition(" or more")[0]
    enough = edgeq("plan", saved_model, *quick, kind, least.replace(" ", ""), *more)
    assert enough.status == 0, enough.err


def test_more_than_all_types_take_is_said(edgeq, saved_model, quick, tmp_path):
    file = tmp_path / "recipe.toml"
    result = edgeq("allocate", saved_model, *quick, "--file-size", "1GB", "-o", file)
    assert result.status == 0, result.err
    assert "larger than" in " ".join(result.out.split())


def test_layers_that_a_runtime_fuses_get_one_type(edgeq, saved_model, quick, tmp_path):
    name, file = "compressed-tensors", tmp_path / "recipe.toml"
    size = middle(saved_model, quick, name)
    result = edgeq(
        "allocate", saved_model, *quick, "--export", name, "--file-size", size, "-o", file
    )
    assert result.status == 0, result.err
    chosen = {each["layers"]: each for each in read_recipe(str(file))["overrides"]}
    for block in range(2):
        for fused in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            settings = {
                tuple(value for key, value in each.items() if key != "layers")
                for layer, each in chosen.items()
                if layer.startswith(f"model.layers.{block}.") and layer.endswith(fused)
            }
            assert len(settings) == 1
    # and no others: four choices in each block
    rows = finished("plan", saved_model, *quick, "--export", name, "--file-size", size, "--json")
    assert json.loads(rows.out)["budget"]["items"] == 8


def test_an_importance_matrix_is_no_budget(edgeq, saved_model, quick, tmp_path):
    matrix, out = tmp_path / "some.gguf", tmp_path / "out"
    finished("imatrix", saved_model, "-o", matrix, *quick)
    for command in (["plan"], ["quantize", "-o", out], ["allocate", "-o", out]):
        result = edgeq(
            command[0], saved_model, *command[1:], "--imatrix", matrix, "--file-size", "1GB",
            "--backend", "cpu",
        )  # fmt: skip
        assert result.status == 1
        assert result.err.startswith("edgeq: --imatrix with a budget")
        assert len(result.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [matrix]


def test_what_mlx_leaves_to_torch_is_said(edgeq, saved_model, quick, tmp_path):
    pytest.importorskip("mlx.core")
    options = ["--file-size", "1GB", "--backend", "mlx", "-o", tmp_path / "recipe.toml"]
    result = edgeq("allocate", saved_model, *quick, *options)
    assert result.status == 0, result.err
    assert "measured by torch" in " ".join(result.out.split())


def test_what_overrides_state_stays(edgeq, saved_model, quick, tmp_path):
    file = tmp_path / "recipe.toml"
    options = ["--keep-dense", "*.down_proj", "--file-size", "1GB", "-o", file]
    result = edgeq("allocate", saved_model, *quick, *options)
    assert result.status == 0, result.err
    overrides = read_recipe(str(file))["overrides"]
    assert overrides[-1] == {"layers": "*.down_proj", "bits": 16}
    assert not any(each["layers"].endswith("down_proj") for each in overrides[:-1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--file-size", "many"], "expected a size"),
        (["--file-size", "0"], "expected a size"),
        (["--bits-per-weight", "0.5"], "expected a number from 1 to 16"),
        (["--bits-per-weight", "nan"], "expected a number from 1 to 16"),
        (["--fits", "1GB"], "needs --context"),
        (["--context", "64"], "belongs to --fits"),
        (["--fits", "1GB", "--context", "0"], "expected a number of tokens"),
        (["--file-size", "1GB", "--bits-per-weight", "4"], "two budgets"),
        (["--file-size", "1GB", "--type", "Q4_K"], "leave out one of them"),
        (["--file-size", "1GB", "--keep-dense", "*"], "needs layers whose type it may choose"),
        (["--file-size", "1GB", "--outlier-columns", "0.1"], "outlier columns"),
    ],
)
def test_what_is_no_budget_is_refused_in_one_line(
    options, said, edgeq, saved_model, quick, tmp_path
):
    for command in (["plan"], ["quantize", "-o", tmp_path / "out"]):
        result = edgeq(command[0], saved_model, *quick, *command[1:], *options)
        assert result.status == 1
        assert len(result.err.splitlines()) == 1
        assert said in result.err
    assert list(tmp_path.iterdir()) == []


def test_allocate_asks_for_a_budget_and_a_free_place(edgeq, saved_model, quick, tmp_path):
    file = tmp_path / "recipe.toml"
    result = edgeq("allocate", saved_model, *quick, "-o", file)
    assert result.status == 2
    assert "give a budget" in result.err
    file.write_text("mine", encoding="utf-8")
    result = edgeq("allocate", saved_model, *quick, "--file-size", "1GB", "-o", file)
    assert result.status == 1
    assert "exists; choose another name" in result.err
    assert file.read_text(encoding="utf-8") == "mine"
    result = edgeq("allocate", saved_model, *quick, "--file-size", "1GB", "-o", file, "--force")
    assert result.status == 1
    assert "--force replaces only such files" in result.err
    assert file.read_text(encoding="utf-8") == "mine"


def test_allocate_replaces_its_own_recipe_if_it_is_told_to(edgeq, saved_model, quick, tmp_path):
    file = tmp_path / "recipe.toml"
    command = ["allocate", saved_model, *quick, "--file-size", "1GB", *FAST, "-o", file]
    assert edgeq(*command).status == 0
    first = file.read_bytes()
    assert edgeq(*command).status == 1
    assert edgeq(*command, "--force").status == 0
    assert file.read_bytes() == first


def interrupt(*arguments):
    os.kill(os.getpid(), signal.SIGINT)


def fail(*arguments):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stop", [interrupt, fail])
def test_a_stop_before_the_first_block_keeps_the_choice(
    stop, run, edgeq, saved_model, quick, tmp_path, monkeypatch
):
    size, folder, _ = run
    options = ["--file-size", size, "--export", "gguf", *FAST]
    output = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "write_part", stop)
        result = edgeq("quantize", saved_model, *quick, *options, "-o", output)
    assert "the types of the budget are kept; to continue: " in result.err
    kept = {path.name for path in (tmp_path / ".out.edgeq-partial").iterdir()}
    assert kept == {"EDGEQ-UNFINISHED", "allocation.json"}

    def measured_again(*arguments):
        raise AssertionError("measured again")

    monkeypatch.setattr(allocation, "measure_costs", measured_again)
    result = edgeq("quantize", saved_model, *quick, *options, "-o", output, "--resume")
    assert result.status == 0, result.err
    assert (output / "report.json").read_bytes() == (folder / "report.json").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_choice_for_other_files_is_not_taken(edgeq, saved_model, quick, tmp_path, monkeypatch):
    size, output = middle(saved_model, quick, "onnx"), tmp_path / "out"
    options = ["--file-size", size, *FAST, "-o", output]
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "write_part", interrupt)
        edgeq("quantize", saved_model, *quick, *options, "--export", "gguf")
    options += ["--export", "onnx", "--resume", "--json"]
    found = json.loads(finished("quantize", saved_model, *quick, *options).out)
    assert found["budget"]["format"] == "onnx"
    assert found["bytes"]["onnx"] <= size


def test_a_stop_while_types_are_measured_leaves_nothing(
    edgeq, saved_model, quick, tmp_path, monkeypatch
):
    monkeypatch.setattr(allocation, "measure_costs", interrupt)
    options = ["--file-size", "1GB", *FAST, "-o", tmp_path / "out"]
    assert edgeq("quantize", saved_model, *quick, *options).status == 130
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_goes_on_does_not_measure_again(
    run, edgeq, saved_model, quick, tmp_path, monkeypatch
):
    size, folder, _ = run
    options = ["--file-size", size, "--export", "gguf", *FAST]
    output = tmp_path / "out"
    calls = iter(range(100))
    write_part = pipeline.write_part

    def stop_at_the_second(*arguments):
        if next(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return write_part(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "write_part", stop_at_the_second)
        result = edgeq("quantize", saved_model, *quick, *options, "-o", output)
    assert "1 of 2 blocks are kept" in result.err

    other = edgeq(
        "quantize", saved_model, *quick, "--bits-per-weight", "7", "--export", "gguf", *FAST,
        "-o", output, "--resume",
    )  # fmt: skip
    assert other.status == 1
    assert "another budget" in other.err

    def measured_again(*arguments):
        raise AssertionError("measured again")

    monkeypatch.setattr(allocation, "measure_costs", measured_again)
    result = edgeq("quantize", saved_model, *quick, *options, "-o", output, "--resume")
    assert result.status == 0, result.err
    for name in ("report.json", "recipe.toml", f"gguf/{gguf_in(folder / 'gguf').name}"):
        assert (output / name).read_bytes() == (folder / name).read_bytes()
    assert size_of(gguf_in(output / "gguf")) <= size
