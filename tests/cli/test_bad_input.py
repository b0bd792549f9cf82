"""Every kind of bad input: one clear line, exit status 1 or 2, nothing written."""

import subprocess
import sys

import pytest


def test_a_missing_path_is_refused(refuse, tmp_path):
    assert "does not exist" in refuse(tmp_path / "nowhere")


def test_an_empty_calibration_text_is_refused(refuse, saved_model, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    assert "empty" in refuse(saved_model, "--calibration", tmp_path / "empty.txt")


def test_a_calibration_text_that_is_too_short_is_refused(refuse, saved_model, tmp_path):
    (tmp_path / "short.txt").write_text("a few words")
    assert "--sequence-length" in refuse(saved_model, "--calibration", tmp_path / "short.txt")


def test_a_calibration_text_that_is_not_utf8_is_refused(refuse, saved_model, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 1000)
    assert "UTF-8" in refuse(saved_model, "--calibration", tmp_path / "latin.txt")


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


def test_force_keeps_an_output_in_which_the_user_put_a_file(
    edgeq, refuse, saved_model, quick, tmp_path
):
    rounding = ["--solver", "rtn", "--scales", "none", "--propagation-strength", "0"]
    command = [
        "quantize",
        saved_model,
        "-o",
        tmp_path / "out",
        *quick,
        *rounding,
        "--export",
        "gguf",
    ]
    assert edgeq(*command).status == 0
    assert edgeq(*command, "--force").status == 0
    (tmp_path / "out" / "gguf" / "notes.txt").write_text("measured on the phone")
    assert "'gguf/notes.txt', which edgeq did not write" in refuse(saved_model, "--force")
    result = edgeq("export", tmp_path / "out", "--format", "gguf", "--force")
    assert result.status == 1
    assert "'notes.txt', which edgeq did not write" in result.err


@pytest.mark.parametrize(
    ("name", "reason"),
    [("x" * 300, "File name too long"), ("/proc/edgeq-out", "cannot be written")],
)
def test_an_output_that_the_system_refuses_is_named(
    edgeq, saved_model, tmp_path, monkeypatch, name, reason
):
    monkeypatch.chdir(tmp_path)
    options = [
        "--solver",
        "rtn",
        "--scales",
        "none",
        "--propagation-strength",
        "0",
        "--backend",
        "cpu",
    ]
    result = edgeq("quantize", saved_model, f"--output={name}", *options)
    assert result.status == 1
    assert (
        result.err.startswith(f"edgeq: output '{name}' cannot be written")
        and result.err.count("\n") == 1
    )
    assert reason in result.err


def test_a_home_directory_is_understood_in_every_path(edgeq, saved_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
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
    assert edgeq("quantize", saved_model, "--output=~/out", *rounding).status == 0
    assert (tmp_path / "out" / "edgeq.json").is_file()
    assert edgeq("export", "~/out", "--format=gguf", "--output=~/file").status == 0
    assert edgeq("inspect", "~/file").status == 0


@pytest.mark.parametrize("option", ["--calibration", "--recipe"])
def test_a_directory_in_place_of_a_file_is_refused(refuse, saved_model, tmp_path, option):
    (tmp_path / "folder").mkdir()
    assert "it is a directory" in refuse(saved_model, option, tmp_path / "folder")


def test_more_samples_than_the_text_has_are_refused(refuse, saved_model, tmp_path):
    (tmp_path / "short.txt").write_text(
        "one line of text, not more than that, just enough for a few tokens"
    )
    line = refuse(
        saved_model,
        "--calibration",
        tmp_path / "short.txt",
        "--samples",
        "999",
        "--sequence-length",
        "8",
    )
    assert (
        "'short.txt'" in line and "not 499" in line
    )  # the other half comes from the text of every refused run


def test_an_unknown_recipe_key_is_refused_with_the_nearest_known_one(refuse, saved_model, tmp_path):
    (tmp_path / "recipe.toml").write_text("grop_size = 64\n")
    assert "did you mean 'group_size'" in refuse(saved_model, "--recipe", tmp_path / "recipe.toml")


def test_a_recipe_that_is_not_toml_is_refused(refuse, saved_model, tmp_path):
    (tmp_path / "recipe.toml").write_text("bits: 4\n")
    assert "TOML" in refuse(saved_model, "--recipe", tmp_path / "recipe.toml")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--bits", "1"),
        ("--bits", "9"),
        ("--group-size", "0"),
        ("--solver", "magic"),
        ("--scales", "third"),
        ("--propagation-strength", "nan"),
        ("--propagation-strength", "2"),
        ("--damping", "0"),
        ("--samples", "0"),
        ("--seed", "-1"),
        ("--embedding-bits", "12"),
    ],
)
def test_a_setting_outside_its_rule_is_refused_by_the_name_of_the_option(
    refuse, saved_model, option, value
):
    line = refuse(saved_model, option, value)
    assert "expected" in line
    assert option in line


def test_a_pattern_that_matches_no_layer_is_refused(refuse, saved_model):
    line = refuse(saved_model, "--keep-dense", "*.lm_proj")
    assert "matches no layer" in line
    assert "--keep-dense" in line


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
from edgeq.commands.main import main
main()
"""


def test_a_backend_that_is_not_installed_names_its_extra(saved_model, tmp_path):
    command = [
        sys.executable,
        "-c",
        WITHOUT_TORCH,
        "quantize",
        str(saved_model),
        "-o",
        str(tmp_path / "out"),
    ]
    result = subprocess.run(
        [*command, "--backend", "cpu"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "install edgeq with its extra 'cpu'" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["quantize"], ["export", "x"], ["frobnicate"], ["--bits"]])
def test_wrong_usage_exits_with_status_2(edgeq, arguments):
    assert edgeq(*arguments).status == 2


@pytest.mark.parametrize("command", [["evaluate"], ["inspect"], ["export", "--format", "gguf"]])
def test_other_commands_refuse_a_missing_path_in_one_line(edgeq, tmp_path, command):
    result = edgeq(*command, tmp_path / "nowhere")
    assert result.status == 1
    assert result.err.count("\n") == 1
    assert "nowhere" in result.err


@pytest.mark.parametrize(
    "command",
    [
        ["export", "FILE", "--format", "gguf", "-o", "out"],
        ["formats", "FILE"],
        ["quantize", "MODEL", "-o", "out", "--imatrix", "missing.gguf"],
    ],
)
def test_a_path_of_nothing_or_of_another_kind_is_not_a_matter_of_permissions(
    edgeq, saved_model, tmp_path, command
):
    places = {
        "FILE": saved_model / "config.json",
        "MODEL": saved_model,
        "out": tmp_path / "out",
        "missing.gguf": tmp_path / "missing.gguf",
    }
    result = edgeq(*(places.get(word, word) for word in command))
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert result.err.endswith("; check the path\n")
    assert not any(tmp_path.iterdir())


def test_a_recipe_on_types_gives_way_to_bits_that_are_asked_for(
    edgeq, saved_model, quick, tmp_path
):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('type = "Q4_K"\nnarrow_type = "Q5_0"\nembedding_type = "auto"\n')
    options = [
        "--recipe",
        recipe,
        "--bits",
        "3",
        "--solver",
        "rtn",
        "--scales",
        "none",
        "--verbose",
    ]
    result = edgeq("quantize", saved_model, "-o", tmp_path / "out", *quick, *options)
    assert result.status == 0, result.err
    assert "3 bits, group 32, symmetric" in result.out


@pytest.mark.parametrize("option", ["--asymmetric", "--symmetric", "--group-size 64"])
def test_options_that_the_type_of_a_recipe_excludes_are_named(
    refuse, saved_model, tmp_path, option
):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('type = "Q4_K"\n')
    line = refuse(saved_model, "--recipe", recipe, *option.split())
    assert "the recipe's type = Q4_K says bits, groups and zeros itself; leave out --" in line
    assert option.split()[0] in line
