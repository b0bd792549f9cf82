"""The documents say what the code does; links lead somewhere; the site builds."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import documents
import pytest
from documents import ROOT, blocks, code_in_prose, lines, pages

from edgeq.commands.main import cli
from edgeq.recipe.recipe import make_recipe

RUN = {"sh", "python"}
CHECKED = {"toml", "json"}
SHOWN = {"text"}
FOREIGN = {"kotlin", "swift", "js"}
"""Languages of blocks: run, parsed, only shown, and those of other systems, which say why."""
OTHER_PROGRAMS = (
    "python ",
    "pytest ",
    "uv ",
    "pip ",
    "scripts/",
    "llama-",
    "ollama ",
    "hf ",
    "brew ",
)
OUTSIDE = ("http:", "https:", "//")


def options_of(command):
    """Every flag of a command, also those that formats bring."""
    items = command.get_params(click.Context(command))
    return {flag for item in items for flag in (*item.opts, *getattr(item, "secondary_opts", ()))}


def all_options():
    return set().union(*map(options_of, cli.commands.values())) | options_of(cli)


@pytest.mark.parametrize("page", pages())
def test_blocks_say_what_they_are(page):
    for block in blocks(page):
        assert block.language in RUN | CHECKED | SHOWN | FOREIGN, block.place
        assert block.reason or block.language not in FOREIGN, block.place


@pytest.mark.parametrize("page", pages())
def test_blocks_that_cannot_run_here_parse(page):
    for block in blocks(page):
        if block.language == "sh":
            assert list(lines(block)), block.place
        if block.language == "python":
            assert ast.parse(block.text).body, block.place
        if block.language == "json":
            texts = block.text.splitlines() if "jsonl" in str(block.file) else [block.text]
            assert all(map(json.loads, texts)), block.place
        if block.language == "toml":
            make_recipe(tomllib.loads(block.text))


@pytest.mark.parametrize("page", pages())
def test_commands_and_options_in_the_text_exist(page):
    known = all_options() | {"--help", "--version"}
    for code in code_in_prose(page):
        if code.startswith("edgeq ") and code.split()[1] not in ("COMMAND", *cli.commands):
            raise AssertionError(f"{page}: `{code}` is no command")
        if code.startswith(OTHER_PROGRAMS):
            continue
        unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", code)) - known
        assert not unknown, f"{page}: `{code}`"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files_and_headings(page):
    for file, anchor in documents.links(page):
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), f"{page}: {file}"
        if anchor:
            headings = documents.anchors(path.read_text(encoding="utf-8"))
            assert anchor in headings, f"{page}: {file}#{anchor}"


@pytest.mark.slow  # CI builds it too
def test_the_site_builds_without_a_warning_and_loads_nothing_from_the_net(tmp_path):
    """A warning is also a link or an anchor that leads nowhere, or an unknown Python name."""
    site = tmp_path / "site"
    command = [sys.executable, "scripts/site", str(site)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    built = {path.relative_to(site).with_suffix(".md").as_posix() for path in site.rglob("*.html")}
    written = {page.removeprefix("docs/") for page in pages() if page.startswith("docs/")}
    assert built - {"404.md"} == written
    loaded = re.compile(r'<(?:script|link|img|source|iframe)\b[^>]*?(?:src|href|srcset)="([^"]+)"')
    shown = [path.read_text(encoding="utf-8") for path in site.rglob("*.html")]
    assert not any("```" in page for page in shown)  # a fence that was not understood
    for path in site.rglob("[!4]*.html"):  # 404.html is for servers, with addresses from their root
        for address in loaded.findall(path.read_text(encoding="utf-8")):
            assert not address.startswith(OUTSIDE), f"{path.name}: {address}"
            assert (path.parent / address.partition("#")[0]).exists(), f"{path.name}: {address}"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", path.read_text(encoding="utf-8"))


def test_every_page_is_in_the_navigation():
    config = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))
    named = set(re.findall(r"'([a-z0-9/-]+\.md)'", str(config["project"]["nav"])))
    assert named == {page.removeprefix("docs/") for page in pages() if page.startswith("docs/")}


def test_the_readme_is_short():
    assert len(documents.read("README.md").splitlines()) <= 200


def test_documents_say_what_formats_settings_commands_and_results_say():
    """Otherwise run: uv run python scripts/document"""
    command = [sys.executable, "scripts/document", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", sorted({*cli.commands} - {"plan", "allocate"}))
def test_the_reference_has_every_option_of_a_command(name):
    text = documents.read("docs/reference/commands.md")
    section = text.partition(f"### edgeq {name}\n")[2].partition("\n### ")[0]
    assert f"| `edgeq {name}" in text.partition("## Commands and their options")[0]
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", section))
    flags = {flag for flag in options_of(cli.commands[name]) if flag.startswith("--")}
    assert flags - {"--help", "--help-all"} <= shown


def test_the_tested_versions_are_what_uv_installs():
    """Otherwise run: uv run scripts/pin"""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tested = (ROOT / "constraints.txt").read_text(encoding="utf-8").split("\n")
    assert project["tool"]["uv"]["constraint-dependencies"] == tested[:-1]
    assert all(re.fullmatch(r"[a-z0-9._-]+==[0-9][0-9a-z.+!]*", line) for line in tested[:-1])


def test_the_page_on_the_architecture_names_rooms_and_files_that_are_there():
    text = documents.read("docs/develop/architecture.md")
    table = text.partition("## Where to go")[2]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    paths = [re.findall(r"`([a-z_/]+/[a-z_/.0-9]*)`", row)[-1] for row in rows]
    assert len(paths) == 13
    assert all((ROOT / path).exists() for path in paths), paths
    rooms = {name.split("/")[0] for name in re.findall(r"`([a-z]+/)", text)}
    packages = {path.name for path in (ROOT / "edgeq").iterdir() if Path(path).is_dir()}
    assert rooms <= packages | {"edgeq", "exporters", "backends", "tests", "blocks", "common"}
    named = set(re.findall(r"\b([a-z]+)/", text))
    assert packages - {"data", "__pycache__"} <= named
