"""The documents say what the code does."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click

from edgeq.commands.main import cli
from edgeq.recipe.recipe import make_recipe

ROOT = Path(__file__).parent.parent


def test_every_option_in_the_readme_exists():
    items = [
        item
        for command in cli.commands.values()
        for item in command.get_params(click.Context(command))
    ]
    options = {option for item in items for option in item.opts}
    secondary = {option for item in items for option in item.secondary_opts}
    commands = re.findall(
        r"^uv run (edgeq .*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert commands
    for command in commands:
        assert command.split()[1] in cli.commands
        assert set(re.findall(r"--[a-z-]+", command)) <= options | secondary, command


def test_every_option_in_the_examples_of_the_command_line_exists():
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    (edgeq .*)$", text, re.MULTILINE)
    assert any(command.startswith("edgeq allocate ") for command in commands)
    for command in commands:
        items = cli.commands[command.split()[1]].get_params(click.Context(cli))
        options = {option for item in items for option in (*item.opts, *item.secondary_opts)}
        assert set(re.findall(r" (--?[a-z][a-z-]*)", command)) <= options, command


def test_the_recipe_in_the_readme_is_valid():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    recipe = make_recipe(tomllib.loads(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1]))
    assert recipe.grid_of("model.layers.0.mlp.down_proj").bits == 4


def test_documents_say_what_formats_settings_and_commands_say_of_themselves():
    """Otherwise run: uv run python scripts/document"""
    command = [sys.executable, "scripts/document", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_tested_versions_are_what_uv_installs():
    """Otherwise run: uv run scripts/pin"""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tested = (ROOT / "constraints.txt").read_text(encoding="utf-8").split("\n")
    assert project["tool"]["uv"]["constraint-dependencies"] == tested[:-1]
    assert all(re.fullmatch(r"[a-z0-9._-]+==[0-9][0-9a-z.+!]*", line) for line in tested[:-1])


def test_the_page_on_the_architecture_names_rooms_and_files_that_are_there():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("## Where to go")[2]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    paths = [re.findall(r"`([a-z_/]+/[a-z_/.0-9]*)`", row)[-1] for row in rows]
    assert len(paths) == 12
    assert all((ROOT / path).exists() for path in paths), paths
    rooms = {name.split("/")[0] for name in re.findall(r"`([a-z]+/)", text)}
    packages = {path.name for path in (ROOT / "edgeq").iterdir() if path.is_dir()}
    assert rooms <= packages | {"edgeq", "exporters", "backends", "tests", "blocks", "common"}
    named = set(re.findall(r"\b([a-z]+)/", text))
    assert packages - {"data", "__pycache__"} <= named
