"""A setting is one row: with it come recipes, refusals, options and documents."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from benchmarks.synthetic import make_config
from edgeq.architectures.record import read_record
from edgeq.commands.quantize import quantize_command
from edgeq.planning.time import block_seconds
from edgeq.recipe.recipe import make_recipe
from edgeq.recipe.settings import TABLE
from edgeq.registry import FORMATS

ROOT = Path(__file__).parent.parent
BEFORE = "    embedding_bits: int = setting("
TOY_ROW = """    toy_turns: int = setting(
        2,
        whole(0, 9),
        "Turn the toy this often.",
        cost="a turn each",
        fast=1,
        option=Option(),
        override=True,
    )
"""
READ = """
from edgeq.errors import BadInput
from edgeq.recipe.recipe import make_recipe, read_recipe, recipe_settings
chosen = make_recipe(read_recipe("recipe.toml"))
print(chosen.toy_turns, chosen.overrides[0].settings["toy_turns"])
print(make_recipe({}).toy_turns, recipe_settings(make_recipe({"quality": "fast"}))["toy_turns"])
for settings in ({"toy_turns": 10}, {"toy_turn": 1}):
    try:
        make_recipe(settings)
    except BadInput as error:
        print(error)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of edgeq, its documents and the script that writes them, with one more setting."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("edgeq", "docs", "scripts", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__", "data")
        shutil.copytree(ROOT / name, folder / name, ignore=None if name == "edgeq" else ignored)
    shutil.copy(ROOT / "README.md", folder)
    table = folder / "edgeq" / "recipe" / "settings.py"
    text = table.read_text(encoding="utf-8")
    assert text.count(BEFORE) == 1
    table.write_text(text.replace(BEFORE, TOY_ROW + BEFORE), encoding="utf-8")
    return folder


def run(folder, *arguments):
    """Run Python where the copy's edgeq is the one that is imported."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_recipes_read_a_new_setting_and_refuse_what_breaks_its_rule(copy):
    (copy / "recipe.toml").write_text(
        'toy_turns = 7\n[[overrides]]\nlayers = "*"\ntoy_turns = 3\n', encoding="utf-8"
    )
    read, preset, rule, nearest = run(copy, "-c", READ).stdout.splitlines()
    assert (read, preset) == ("7 3", "2 1")
    assert rule == "recipe setting toy_turns = 10: expected a whole number from 0 to 9"
    assert "did you mean 'toy_turns'" in nearest


def test_commands_have_an_option_for_a_new_setting(copy):
    for command in ("quantize", "plan"):
        shown = " ".join(run(copy, "-m", "edgeq", command, "--help-all").stdout.split())
        assert "--toy-turns N Turn the toy this often. [fast: 1; balanced, best: 2]" in shown
    refused = run(copy, "-m", "edgeq", "plan", "demo", "--toy-turns", "10")
    assert "--toy-turns 10: expected a whole number from 0 to 9" in refused.stderr


def test_documents_have_a_line_for_a_new_setting(copy):
    stale = run(copy, "scripts/document", "--check")
    assert (stale.returncode, "settings.md" in stale.stderr) == (1, True)
    assert "commands.md" in stale.stderr
    assert run(copy, "scripts/document").returncode == 0
    assert run(copy, "scripts/document", "--check").returncode == 0
    pages = copy / "docs" / "reference"
    text = (pages / "settings.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| `toy_turns`"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "`toy_turns`",
        "`--toy-turns`",
        "a whole number from 0 to 9",
        "2 (fast: 1)",
        "Turn the toy this often.",
        "a turn each",
    ]
    text = (pages / "commands.md").read_text(encoding="utf-8")
    assert "| `--toy-turns N` | Turn the toy this often. \\[fast: 1; balanced, best: 2] |" in text


COSTLIER = {
    "propagation_share": 1.0,
    "scale_candidates": 16,
    "sweeps": 6,
    "alternations": 1,
    "anneal_rounds": 2,
    "anneal_steps": 400,
    "samples": 128,
    "sequence_length": 1024,
    "token_weights": "gradient",
}


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.stage])
def test_a_setting_that_costs_time_makes_its_stage_of_the_plan_longer(name):
    config = make_config(hidden=256, inner=512, heads=4, blocks=2)
    decoder = read_record("small", config).decoder
    shapes = {linear.tensor: linear.shape for linear in decoder.linears()}
    rates = {"forward": 1e9, "solve": 1e9, "factor": 1e9, "search": 1e8, "columns": 1e5}
    seconds = [
        block_seconds(decoder, make_recipe({"anneal_rounds": 1, **chosen}), rates, False, shapes)
        for chosen in ({}, {name: COSTLIER[name]})
    ]
    assert seconds[1][TABLE[name].stage] > seconds[0][TABLE[name].stage]


def test_every_option_says_in_a_sentence_what_it_does():
    """Those of formats begin with the names of the formats that take them."""
    context = click.Context(quantize_command)
    parameters = quantize_command.get_params(context)
    options = [item for item in parameters if isinstance(item, click.Option)]
    texts = [option.get_help_record(context)[1] for option in options if not option.hidden]
    assert len(texts) > len([row for row in TABLE.values() if row.option])
    for text in texts:
        assert text[0].isupper() or text.split(":")[0] in FORMATS, text
        assert "." in text, text
