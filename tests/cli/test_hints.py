"""What a newcomer types wrongly is answered with what to type, in one line; help has groups."""

import json

import click
import pytest
from tiny_models import TEXT

from edgeq.commands.groups import EVERYDAY, GROUPS, group_of
from edgeq.commands.main import SECTIONS, cli
from edgeq.commands.quantize import quantize_command
from edgeq.commands.usage import COMMANDS_MEANT, MEANT
from edgeq.recipe.settings import TABLE
from edgeq.run.output_name import default_output

QUANTIZE = {
    ("--size", "700MB"): (2, "did you mean --file-size?"),
    ("--trust-remote-code",): (2, "edgeq never runs code of a model"),
    ("--bits",): (2, "requires an argument"),
    ("--context", "many"): (2, "--context: 'many' is not a whole number"),
    ("--bits", "Q4_K_M"): (1, "--type Q4_K_M"),
    ("--bits", "int4"): (1, "did you mean 4?"),
    ("--bits", "3.4"): (1, "--bits-per-weight 3.4"),
    ("--type", "4"): (1, "--bits 4"),
    ("--export", "ollama"): (1, "Ollama reads gguf; use --export gguf"),
    ("--export", "LM Studio"): (1, "use --export gguf or --export mlx"),
    ("--export", "llama.cpp"): (1, "llama.cpp reads gguf"),
    ("--export", "q4_k_m"): (1, "use --export gguf --type Q4_K_M"),
    ("--export", "coreml"): (1, "choose one of gguf, mlx, onnx, gptq, compressed-tensors"),
    ("--export", "gguf,onnx"): (1, "repeat it: --export gguf --export onnx"),
    ("--export", "gguf", "onnx"): (2, "repeat the option: --export onnx"),
    ("--export", "guff"): (1, "did you mean gguf?"),
    ("--max-ram", "8"): (1, "did you mean 8GB?"),
    ("--max-ram", "700"): (1, "did you mean 700MB?"),
    ("--fits", "8,5GB", "--context", "64"): (1, "did you mean 8.5GB?"),
    ("--backend", "GPU"): (1, "use cuda (NVIDIA), mps or mlx (Apple)"),
}


@pytest.mark.parametrize("options", QUANTIZE, ids=" ".join)
def test_a_wrong_value_is_answered_with_the_right_one(edgeq, saved_model, tmp_path, options):
    status, hint = QUANTIZE[options]
    result = edgeq("quantize", saved_model, "-o", tmp_path / "out", *options)
    assert (result.status, result.out, result.err.count("\n")) == (status, "", 1)
    assert result.err.startswith("edgeq: ")
    assert hint in result.err
    assert result.err.endswith("(edgeq quantize --help)\n") == (status == 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["convert", "x"], "did you mean export?"),
        (["qantize", "x"], "did you mean quantize?"),
        (["./models/tiny"], "to quantize it: edgeq quantize ./models/tiny"),
        (["run", "x"], "did you mean chat?"),
        (["version"], "use edgeq --version"),
        (["help", "quantize"], "use edgeq --help"),
        (["-v"], "did you mean --version?"),
        (["--type", "Q4_K_M", "quantize", "a"], "behind it, such as edgeq quantize ... --type"),
        (["generate", "x", "--prompt", "Hello"], "the prompt is the second argument"),
        (["generate", "x", "Hello", "--temperature", "hot"], "'hot' is not a number"),
        (["export", "x", "gguf"], "did you mean --format gguf?"),
        (["allocate", "x"], "--output FILE is missing, such as -o recipe.toml"),
        (["evaluate", "nothing.gguf"], "a checkpoint, an export"),
        (["verify", "tiny-model/config.json"], "is not an export"),
        (["export", "tiny-model", "--format", "gguf"], "edgeq quantize tiny-model --export gguf"),
        (["report", "tiny-model"], "edgeq quantize tiny-model"),
        (["xyzzy"], "commands are quantize, "),
        (["quantize"], "MODEL is missing (edgeq quantize --help)"),
        (["quantize", "a", "b"], "unexpected extra argument (b); to write there: -o b"),
        (["export", "x", "--format", "ollama"], "use --format gguf"),
        (["quantize", "Llama-3.2-1B"], "a hub name as owner/name"),
        (["quantize", "https://huggingface.co/a/Model-1B"], "by its name: a/Model-1B"),
        (["quantize", "tiny-modell"], "did you mean 'tiny-model'?"),
        (["quantize", "tiny-model/config.json"], "give its directory"),
    ],
)
def test_a_wrong_word_is_answered_with_what_was_meant(edgeq, tmp_path, monkeypatch, words, hint):
    (tmp_path / "tiny-model").mkdir()
    (tmp_path / "tiny-model" / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    result = edgeq(*words)
    assert result.status in (1, 2)
    assert result.err.count("\n") == 1
    assert hint in result.err


def test_words_are_read_in_any_case(edgeq, saved_model):
    words = [
        "--sequence-length",
        64,
        "--export",
        "GGUF",
        "--type",
        "q8_0",
        "--quality",
        "BEST",
        "--backend",
        "CPU",
    ]
    result = edgeq("Plan", saved_model, *words, "--json")
    assert result.status == 0, result.err
    plan = json.loads(result.out)
    assert [row["format"] for row in plan["formats"]] == ["gguf"]


def test_what_is_meant_by_other_names_is_there():
    options = {name for command in cli.commands.values() for p in command.params for name in p.opts}
    switches = {name for p in quantize_command.params for name in p.secondary_opts}
    assert MEANT.keys() <= options | switches
    assert COMMANDS_MEANT.keys() <= cli.commands.keys()
    names = [name for commands in SECTIONS.values() for name in commands]
    assert len(names) == len(cli.commands)


def test_every_option_of_quantize_has_a_group_and_settings_state_theirs():
    context = click.Context(quantize_command)
    for param in quantize_command.get_params(context):
        if isinstance(param, click.Option) and not {"--help", "--help-all"} & {*param.opts}:
            assert group_of(param) in GROUPS, param.name
    stated = {group_of(p) for p in quantize_command.params if p.name == "bits"}
    assert stated == {TABLE["bits"].option.group} == {EVERYDAY}


@pytest.mark.parametrize("command", ["quantize", "plan"])
def test_help_fits_a_screen_and_names_what_help_all_describes(edgeq, command):
    text = edgeq(command, "--help").out
    assert len(text.splitlines()) <= 60
    assert max(map(len, text.splitlines()[10:])) <= 80
    whole = edgeq(command, "--help-all").out
    for row in TABLE.values():
        if row.option is not None:
            assert (row.switch or row.flag).split("/")[0] in text
            assert " ".join(row.help.split()[:3]) in " ".join(whole.split())
    assert "[fast: 0.01; balanced, best: 0.1]" in " ".join(whole.split())


@pytest.mark.parametrize(
    ("model", "settings", "budget", "name"),
    [
        ("demo", {}, {}, "SmolLM2-135M-Instruct-4bit"),
        ("models/Tiny One/", {"bits": 3}, {}, "Tiny-One-3bit"),
        ("owner/Name@main", {"type": "Q4_K_M"}, {}, "Name-Q4_K_M"),
        ("a/b/Big.Q8_0.gguf", {}, {"file_size": "700 mb"}, "Big.Q8_0-700MB"),
        ("x", {}, {"file_size": "1.5GB"}, "x-1.5GB"),
        ("-x", {"bits": 3}, {"bits_per_weight": 3.4}, "x-3.4bpw"),
        ("x", {}, {"fits": "6GB", "context": 64}, "x-fits-6GB"),
    ],
)
def test_an_output_is_named_after_the_model_and_its_bits(model, settings, budget, name):
    assert str(default_output(model, settings, budget)) == name


def test_a_run_without_output_is_found_again(edgeq, saved_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT * 200, encoding="utf-8")
    words = [saved_model, "--samples", "2", "--sequence-length", "32", "--backend", "cpu"]
    words += ["--calibration", "text.txt", "--quality", "fast"]
    assert edgeq("quantize", *words).status == 0
    assert (tmp_path / "tiny-4bit" / "edgeq.json").is_file()
    again = edgeq("quantize", *words)
    assert again.status == 1
    assert "output 'tiny-4bit' exists; choose another name with --output" in again.err
    assert edgeq("quantize", *words, "--resume").status == 0
