"""`edgeq plan` and `--max-ram` as users meet them."""

import json
import re
import shlex
import shutil

import pytest
from exported_files import gguf_in

from benchmarks.synthetic import SHAPES, make_config, write_checkpoint
from edgeq.sources.refusals import SHARD_INDEX
from edgeq.words import parse_size


@pytest.fixture(scope="module")
def giant(tmp_path_factory):
    """The shapes of a 70B model: config and index, not a single weight."""
    folder = tmp_path_factory.mktemp("giant") / "llama-70b"
    return write_checkpoint(folder, make_config(**SHAPES["llama-2-70b"]), outline=True)


def test_a_70b_model_is_planned_from_config_and_index_alone(edgeq, giant):
    result = edgeq(
        "plan", giant, "--backend", "cpu", "--json", "--export", "mlx", "--export", "mlx"
    )
    assert result.status == 0, result.err
    plan = json.loads(result.out)
    assert plan["seconds"]["blocks"] == 80
    assert plan["memory"]["peak"] == sum(plan["memory"]["parts"].values()) > 6 * 8 * 28672**2
    assert plan["original"] == pytest.approx(138e9, rel=0.01)  # 69 billion parameters of two bytes
    assert plan["disk"]["checkpoint"] == pytest.approx(69e9 * 4.5 / 8, rel=0.02)
    assert [row["format"] for row in plan["formats"]] == ["mlx"]


def test_a_plan_on_the_screen_names_memory_time_and_disk(edgeq, saved_model, quick):
    result = edgeq("plan", saved_model, *quick, "--export", "gguf")
    assert result.status == 0, result.err
    for word in (
        "memory",
        "framework and program",
        "all batches held at each layer (fast)",
        "disk",
        "checkpoint",
        "time",
        "gguf",
        "llama.cpp",
    ):
        assert word in result.out


def test_the_planned_checkpoint_is_as_large_as_the_written_one(edgeq, saved_model, quick, tmp_path):
    planned = json.loads(edgeq("plan", saved_model, *quick, "--json").out)["disk"]["checkpoint"]
    written = json.loads(
        edgeq("quantize", saved_model, *quick, "--json", "--output", tmp_path / "out").out
    )
    assert written["bytes"]["checkpoint"] == pytest.approx(planned, rel=0.15)  # headers


FORMATS = ("gguf", "onnx", "mlx", "gptq", "compressed-tensors")


@pytest.mark.parametrize("words", [["--embedding-bits", "8"], ["--embedding-bits", "16"]])
def test_planned_exports_are_as_large_as_written_ones(edgeq, tmp_path, words):
    config = make_config(hidden=256, inner=512, heads=4, blocks=2) | {
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    source = write_checkpoint(tmp_path / "model", config)
    exports = [word for name in FORMATS for word in ("--export", name)]
    rounding = [
        "--solver",
        "rtn",
        "--scales",
        "none",
        "--propagation-strength",
        "0",
        "--backend",
        "cpu",
    ]
    planned = json.loads(edgeq("plan", source, *rounding, *words, *exports, "--json").out)["disk"]
    result = edgeq("quantize", source, *rounding, *words, *exports, "--output", tmp_path / "out")
    assert result.status == 0, result.err
    weights = {"gguf": gguf_in(tmp_path / "out" / "gguf").name, "onnx": "model.onnx.data"}
    for name in FORMATS:
        written = (tmp_path / "out" / name / weights.get(name, "model.safetensors")).stat().st_size
        assert written == pytest.approx(planned[name], rel=0.03), name


def test_a_plan_takes_the_words_of_a_run_and_says_what_is_free(edgeq, saved_model, quick, tmp_path):
    run = [
        "--output",
        tmp_path / "there" / "out",
        "--force",
        "--resume",
        "--evaluate",
        "--log-file",
        tmp_path / "log",
    ]
    plan = json.loads(edgeq("plan", saved_model, *quick, *run, "--json").out)
    assert plan["disk free"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_refuses_the_sequences_that_a_run_refuses(edgeq, saved_model, quick):
    result = edgeq("plan", saved_model, *quick, "--sequence-length", 129)
    assert (result.status, result.out) == (1, "")
    assert "the model reads at most 128 tokens" in result.err


def test_a_plan_counts_the_hidden_states_that_a_run_keeps_to_be_continued(
    edgeq, saved_model, quick, tmp_path
):
    recipe = tmp_path / "half.toml"
    recipe.write_text("propagation_share = 0.5")
    disk = json.loads(edgeq("plan", saved_model, *quick, "--recipe", recipe, "--json").out)["disk"]
    assert disk["hidden states, while it runs"] == 2 * 1.5 * (
        4 * 32 * 64 * 4
    )  # twice while a block is committed


def test_a_limit_that_is_too_small_is_refused_before_any_work(refuse, saved_model):
    line = refuse(saved_model, "--max-ram", "1MB")
    assert "--max-ram 1 MB: this run needs at least" in line


def test_what_is_no_size_is_refused(refuse, saved_model):
    assert "--max-ram 'plenty': expected a size such as 8GB" in refuse(
        saved_model, "--max-ram", "plenty"
    )


def test_an_index_without_weights_cannot_be_quantized(refuse, model):
    (model / "model.safetensors").unlink()
    names = {"model.norm.weight": "model-00001-of-00001.safetensors"}
    (model / SHARD_INDEX).write_text(json.dumps({"weight_map": names}))
    assert "which is missing" in refuse(model)


def test_a_limited_run_writes_what_an_unlimited_one_does(edgeq, saved_model, quick, tmp_path):
    for name, words in (("free", []), ("limited", ["--max-ram", "20GB"])):
        assert (
            edgeq("quantize", saved_model, *quick, "--output", tmp_path / name, *words).status == 0
        )
    first, second = (
        [
            (tmp_path / name / file).read_bytes()
            for file in ("blocks/0000.safetensors", "blocks/0001.safetensors")
        ]
        for name in ("free", "limited")
    )
    assert first == second


def test_a_plan_says_on_which_types_layers_lie(edgeq, saved_model, quick):
    result = edgeq("plan", saved_model, *quick, "--type", "q4_k_m")
    assert result.status == 0, result.err
    assert "Q5_0: " in result.out and "embedding Q8_0" in result.out
    assert "inputs lie on Q5_0: Q4_K needs a multiple of 256" in " ".join(result.out.split())
    plan = json.loads(edgeq("plan", saved_model, *quick, "--type", "Q4_0", "--json").out)
    assert set(plan["grids"]["linear layers"]) == {"Q4_0"}
    plan = json.loads(edgeq("plan", saved_model, *quick, "--bits", "3", "--json").out)
    assert set(plan["grids"]["linear layers"]) == {"3 bits, group 32, symmetric"}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--type", "Q9_K"], "did you mean Q6_K or Q5_K or Q4_K?"),
        (["--type", "IQ3_S"], "IQ3_S has codebooks of vectors"),
        (["--type", "Q4_K", "--bits", "3"], "--type Q4_K says bits, groups and zeros itself"),
        (["--type", "Q4_K", "--asymmetric"], "leave out --symmetric or --asymmetric"),
        (["--type", "Q4_K", "--outlier-columns", "0.1"], "types have no outlier columns"),
        (["--embedding-type", "Q6_K", "--embedding-bits", "4"], "leave out --embedding-bits"),
        (["--narrow-type", "Q4_K_M"], "expected a type of llama.cpp's"),
    ],
)
def test_types_that_cannot_be_are_refused_in_one_line(edgeq, saved_model, quick, words, part):
    result = edgeq("plan", saved_model, *quick, *words)
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
    assert part in result.err


def test_options_that_say_grids_in_another_way_win_over_a_recipe(
    edgeq, saved_model, quick, tmp_path
):
    recipe = tmp_path / "recipe.toml"

    def planned(text, *words):
        recipe.write_text(text, encoding="utf-8")
        result = edgeq("plan", saved_model, *quick, "--recipe", recipe, "--json", *words)
        assert result.status == 0, result.err
        return json.loads(result.out)["grids"]["linear layers"]

    assert set(planned("bits = 3\ngroup_size = 64", "--type", "Q8_0")) == {"Q8_0"}
    assert set(planned('type = "Q8_0"', "--bits", "3")) == {"3 bits, group 32, symmetric"}


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """The shapes of a 7B model: config and index, not a single weight."""
    folder = tmp_path_factory.mktemp("seven") / "llama-7b"
    return write_checkpoint(folder, make_config(**SHAPES["llama-2-7b"]), outline=True)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("7GB", ["--quality", "fast"]),
        ("4GB", ["--solver", "rtn", "--scales", "none", "--propagation-strength", "0"]),
        ("2GB", ["--max-ram"]),
    ],
)
def test_a_plan_that_does_not_fit_names_a_command_that_does(edgeq, seven, size, words):
    """The printed words are planned again."""
    result = edgeq("plan", seven, "--backend", "cpu", "--max-ram", size, "--export", "mlx")
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
    assert "this run needs at least" in result.err
    command = shlex.split(result.err.split("this fits: edgeq ")[1])
    assert command[:2] == ["quantize", str(seven)] and command.count("--max-ram") == 1
    assert " ".join(words) in " ".join(command)
    again = edgeq("plan", *command[1:], "--json")
    assert again.status == 0, again.err
    limit = parse_size(command[command.index("--max-ram") + 1], "--max-ram")
    assert json.loads(again.out)["memory"]["peak"] <= limit
    assert (limit == parse_size(size, "--max-ram")) == (words != ["--max-ram"])


def test_a_plan_names_the_smallest_memory_and_what_each_format_would_take(edgeq, seven):
    shown = " ".join(edgeq("plan", seven, "--backend", "cpu").out.split())
    least = shown.split("the least, slower: --max-ram ")[1].split()[0]
    again = edgeq("plan", seven, "--backend", "cpu", "--max-ram", least)
    assert again.status == 0, again.err
    assert re.search(r"time about \S+ (min|h) to \S+ (min|h) on this machine", shown)
    plan = json.loads(edgeq("plan", seven, "--backend", "cpu", "--json").out)
    assert plan["formats"] == [] and {"mlx", "gptq"} <= {
        row["format"] for row in plan["other formats"]
    }
    assert "for mlx-lm" in shown


def test_sequences_are_as_long_as_a_model_reads_unless_a_length_is_asked_for(edgeq, saved_model):
    result = edgeq("plan", saved_model, "--backend", "cpu", "--json")
    assert result.status == 0, result.err
    assert "sequences of 128 tokens instead of 512: the model reads no more" in result.out
    result = edgeq("plan", saved_model, "--backend", "cpu", "--sequence-length", 512)
    assert "the model reads at most 128 tokens" in result.err


def test_a_plan_of_a_budget_states_what_the_budget_leaves(edgeq, saved_model, quick):
    words = ["--fits", "1GB", "--context", "4096"]
    plan = json.loads(edgeq("plan", saved_model, *quick, *words, "--json").out)
    assert [row["format"] for row in plan["formats"]] == ["gguf"]
    assert plan["grids"] == {}
    shown = edgeq("plan", saved_model, *quick, *words).out
    assert "the model reads only 128 tokens of that --context" in " ".join(shown.split())


@pytest.mark.parametrize("command", ["plan", "quantize"])
def test_a_limit_on_a_device_is_refused_where_there_is_none(edgeq, saved_model, tmp_path, command):
    words = [saved_model, "--backend", "cpu", "-o", tmp_path / "out", "--max-vram"]
    result = edgeq(command, *words, "8GB")
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
    assert "--max-vram 8.0 GB: backend 'cpu' computes in the memory of the machine" in result.err
    result = edgeq(command, *words, "plenty")
    assert "--max-vram 'plenty': expected a size such as 8GB" in result.err
    assert list(tmp_path.iterdir()) == []
