"""A format is one folder and one line of the registry: everything else finds it by itself."""

import json

import pytest

from edgeq import registry
from edgeq.measuring.formats import markdown_table

PLAIN = ["--solver", "rtn", "--scales", "none", "--propagation-strength", "0", "--backend", "cpu"]
OPTIONS = ["--deflate", "--numbers", "negated", "--copies", "2"]


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(registry.FORMATS, "toy", "toy_format.format:FORMAT")


@pytest.fixture
def checkpoint(edgeq, saved_model, tmp_path):
    result = edgeq("quantize", saved_model, "-o", tmp_path / "out", "--bits", "3", *PLAIN)
    assert result.status == 0, result.err
    return tmp_path / "out"


def test_it_is_listed_with_what_it_holds(edgeq, checkpoint):
    rows = json.loads(edgeq("formats", checkpoint, "--json").out)["formats"]
    (row,) = [each for each in rows if each["name"] == "toy"]
    assert row["bits"] == [2, 3, 4, 5, 6, 7, 8] and row["groups"] == ["32", "64", "128", "row"]
    assert row["fits"] == "without loss" and row["options"] == ["deflate", "numbers", "copies"]
    assert "toy: bits 2 3 4 5 6 7 8; groups 32" in edgeq("formats").out
    assert edgeq("formats", checkpoint).out == edgeq("export", "--list", checkpoint).out
    assert "| `toy` | 2, 3, 4, 5, 6, 7, 8 |" in markdown_table()


@pytest.mark.parametrize("command", ["quantize", "plan", "export"])
def test_its_options_stand_in_the_help_of_commands(edgeq, command, monkeypatch):
    help_option = "--help" if command == "export" else "--help-all"
    text = " ".join(edgeq(command, help_option).out.split())
    assert "--deflate toy: compress the arrays." in text
    assert "--numbers plain|negated toy" in text and "--copies 1-3 toy" in text
    assert "--accuracy-level" in text
    monkeypatch.delitem(registry.FORMATS, "toy")
    assert "--deflate" not in edgeq(command, help_option).out


def test_it_is_planned_written_and_verified(edgeq, saved_model, tmp_path):
    words = [saved_model, "--export", "toy", *OPTIONS[1:], "--bits", "3", *PLAIN]
    planned = json.loads(edgeq("plan", *words, "--json").out)
    (row,) = planned["formats"]
    assert (row["format"], row["read_by"], row["refused"]) == ("toy", "these tests", None)
    result = edgeq("quantize", *words, "-o", tmp_path / "out")
    file = tmp_path / "out" / "toy" / "model.toy"
    assert result.status == 0 and f"with toys installed: toy-runner --file {file}" in result.out
    written = file.stat().st_size
    assert planned["disk"]["toy"] < written < planned["disk"]["toy"] + 20_000  # names, zip entries
    again = ["export", tmp_path / "out", "--format", "toy", *OPTIONS[1:], "--force"]
    assert edgeq(*again).status == 0
    verified = edgeq("verify", file.parent, "--against", tmp_path / "out", "--json")
    assert (verified.status, json.loads(verified.out)["differences"]) == (0, [])
    assert json.loads(verified.out)["statuses"] == {"dense": 5, "widened": 14, "exact": 1}


def test_its_options_reach_its_exporter_and_no_other(edgeq, checkpoint, tmp_path):
    assert edgeq("export", checkpoint, "--format", "toy", *OPTIONS).status == 0
    settings = json.loads((checkpoint / "toy" / "manifest.json").read_text())["settings"]
    assert settings == {"deflate": True, "numbers": "negated", "copies": 2}
    assert edgeq("verify", checkpoint / "toy", "--against", checkpoint).status == 0
    line = edgeq("export", checkpoint, "--format", "mlx", "--deflate").err
    assert line == "edgeq: option --deflate is one of format toy, not of mlx; leave it out\n"
    assert edgeq("export", checkpoint, "--format", "toy", "--copies", "4").status == 2


def test_a_changed_byte_of_it_is_found(edgeq, checkpoint):
    edgeq("export", checkpoint, "--format", "toy")
    file = checkpoint / "toy" / "model.toy"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    result = edgeq("verify", checkpoint / "toy")
    assert result.status == 1 and "model.toy" in result.out + result.err
    assert "unexpected" not in result.err


def test_what_nothing_runs_cannot_be_evaluated_and_the_line_says_what_can(
    edgeq, saved_model, tmp_path, checkpoint
):
    words = ["-o", tmp_path / "other", "--export", "toy", "--evaluate", *PLAIN]
    result = edgeq("quantize", saved_model, *words)
    assert result.status == 1 and not (tmp_path / "other").exists()
    assert result.err.startswith("edgeq: no runtime for format 'toy'; formats with one: gguf, ")
    edgeq("export", checkpoint, "--format", "toy")
    run = edgeq("verify", checkpoint / "toy", "--against", checkpoint, "--run")
    assert run.status == 1 and "no runtime for" in run.err
