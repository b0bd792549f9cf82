"""The names of `edgeq`: complete, documented, typed, and the same as those of the command line."""

import ast
import inspect
import pydoc
import re
import types
from pathlib import Path
from typing import get_type_hints

import click
import pytest

import edgeq
import edgeq.types as data
from edgeq.api.arguments import OPTION, in_python_words
from edgeq.api.request import ARGUMENTS, PlanArguments, RunArguments
from edgeq.api.settings import FormatOptions, LayerSettings, RunSettings
from edgeq.commands.allocate import allocate_command
from edgeq.commands.export import export_command
from edgeq.commands.main import cli
from edgeq.commands.plan import plan_command
from edgeq.commands.quantize import quantize_command
from edgeq.recipe.settings import TABLE, Settings
from edgeq.registry import all_formats

ROOT = Path(__file__).parents[1]
MEMBERS = {name: getattr(edgeq, name) for name in edgeq.__all__}
FUNCTIONS = [name for name, member in MEMBERS.items() if isinstance(member, types.FunctionType)]
CLASSES = [name for name, member in MEMBERS.items() if isinstance(member, type)]
ONLY_OF_COMMANDS = {
    "_click_default_help",
    "help_all",
    "verbose",
    "page",
    "as_json",
    "log_file",
    "export_options",
    "listed",
}
"""What is there for a terminal: in Python results are data, and a callback may write a log."""
CALLED = {"exports": "export", "evaluated": "evaluate", "format_name": "format", "running": "run"}
CALLED |= {"targets": "target", "texts": "text"}


def test_all_is_sorted_and_nothing_public_is_missing():
    assert sorted(edgeq.__all__) == edgeq.__all__
    assert set(edgeq.__all__) <= set(dir(edgeq))
    imported = {name for name in vars(edgeq) if not name.startswith("_")}
    modules = {name for name in imported if isinstance(vars(edgeq)[name], types.ModuleType)}
    assert imported - modules - {"TYPE_CHECKING", "Any", "import_module"} <= set(edgeq.__all__)
    assert FUNCTIONS
    assert len(FUNCTIONS) + len(CLASSES) + 1 == len(edgeq.__all__)  # and the version


def test_every_command_that_gives_data_is_a_function():
    shown = {"inspect": "open"}
    missing = {shown.get(name, name) for name in cli.commands} - set(FUNCTIONS)
    assert missing <= {"imatrix", "chat", "completion", "doctor", "report"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        _ = edgeq.quantise


def test_types_for_editors_are_those_of_the_names():
    tree = ast.parse((ROOT / "edgeq/__init__.py").read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    late = {name for name in edgeq.__all__ if name in typed}
    assert late == set(typed)
    for name, module in typed.items():
        assert MEMBERS[name].__module__ == module


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_types_and_help(name):
    function = MEMBERS[name]
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Parameter.empty
    text = function.__doc__
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name
        described = re.search(rf"^        {parameter.name}: \S", text, re.MULTILINE)
        assert described, f"{name}: its help does not say what {parameter.name} is"
    assert f"edgeq.{name}(" in text, "an example"
    assert "Raises:" in text
    assert "KEYWORDS" not in text
    assert not OPTION.search(text)
    shown = pydoc.plain(pydoc.render_doc(function))
    assert text.strip().splitlines()[0] in shown
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_and_its_members_are_documented(name):
    found = MEMBERS[name]
    assert found.__doc__
    assert not found.__doc__.startswith(f"{name}(")  # what `dataclass` writes
    for member, value in vars(found).items():
        if not member.startswith("_") and isinstance(value, property):
            assert get_type_hints(value.fget)["return"], member


def without_none(annotation):
    return {*getattr(annotation, "__args__", (annotation,))} - {type(None)}


def test_typed_settings_are_those_of_the_table():
    typed, stated = get_type_hints(RunSettings), get_type_hints(Settings, None, vars(data))
    formats = {option.name for each in all_formats() for option in each.options}
    assert set(typed) == {*TABLE, "quality", "overrides", *formats}
    assert set(get_type_hints(FormatOptions)) == formats
    for name in {*TABLE} - {"zeros"}:
        assert typed[name] == stated[name], name
    assert {*typed["zeros"].__args__} == {*stated["zeros"].__args__, "asymmetric"}
    of_model = {"narrow_type", "propagation_share", "embedding_bits", "embedding_type", "samples"}
    of_model |= {"sequence_length", "tune", "tune_tokens", "tune_passes", "tune_rate"}
    of_model |= {"tune_codes", "token_weights"}
    assert set(get_type_hints(LayerSettings)) == {*TABLE, "quality"} - of_model


def test_values_of_formats_have_the_types_that_are_stated():
    typed = get_type_hints(FormatOptions)
    for each in all_formats():
        for option in each.options:
            kind = bool if option.values is None else type(option.values[0])
            assert without_none(typed[option.name]) == {kind}


@pytest.mark.parametrize(
    "command, function",
    [
        (quantize_command, edgeq.quantize),
        (plan_command, edgeq.plan),
        (allocate_command, edgeq.allocate),
        (export_command, edgeq.export),
        (cli.commands["evaluate"], edgeq.evaluate),
        (cli.commands["tune"], edgeq.tune),
        (cli.commands["generate"], edgeq.generate),
        (cli.commands["verify"], edgeq.verify),
        (cli.commands["formats"], edgeq.formats),
    ],
)
def test_arguments_and_defaults_are_those_of_the_command(command, function):
    context = click.Context(command)
    options = {
        CALLED.get(param.name, param.name): param
        for param in command.get_params(context)
        if param.name not in ONLY_OF_COMMANDS and not getattr(param, "hidden", False)
    }
    if function is edgeq.evaluate:
        del options["force"]  # which is of the page
    parameters = inspect.signature(function).parameters
    only_of_python = {*TABLE, "quality", "overrides", "progress"}
    assert set(options) - set(parameters) == set()
    assert set(parameters) - set(options) <= only_of_python
    for name, param in options.items():
        default = param.get_default(context)
        given = parameters[name].default
        if name not in TABLE and name != "quality" and not param.required:
            stated = default if isinstance(default, bool | int | float | str) else None
            if given is not inspect.Parameter.empty:  # --list of a command needs no checkpoint
                assert (given or None) == (stated or None), name


def test_keyword_arguments_are_described_once():
    assert set(get_type_hints(RunArguments)) - set(get_type_hints(RunSettings)) == (
        set(ARGUMENTS) - {"progress"}
    )
    assert set(get_type_hints(RunArguments)) - set(get_type_hints(PlanArguments)) == {
        "evaluate",
        "force",
        "resume",
    }


@pytest.mark.parametrize(
    "option, argument",
    [
        ("pass --force to replace it", "pass force=True to replace it"),
        ("--max-ram '8': expected a size", "max_ram='8': expected a size"),
        ("choose --quality fast or a smaller model", 'choose quality="fast" or a smaller model'),
        ("leave out --symmetric or --asymmetric", "leave out zeros"),
        ("more --samples help", "more samples help"),
        (
            "replace it: edgeq export out --format gguf --force",
            "replace it: edgeq export out --format gguf --force",
        ),
        ("pip install --no-deps x; give --bits too", "pip install --no-deps x; give bits too"),
    ],
)
def test_messages_name_arguments_where_commands_name_options(option, argument):
    assert in_python_words(option) == argument


def messages():
    """Every text of the packages that may reach a user of functions."""
    for package in ("edgeq", "backends/edgeq_backends", "exporters/edgeq_exporters"):
        for path in (ROOT / package).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            if "commands" in path.parts or "pages" in path.parts or "--" not in source:
                continue
            tree = ast.parse(source)
            documented = ast.Module | ast.ClassDef | ast.FunctionDef
            docs = {
                ast.get_docstring(node, clean=False)
                for node in ast.walk(tree)
                if isinstance(node, documented)
            }
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    if node.value not in docs:
                        yield path, node.value


def test_every_option_that_a_message_names_is_an_argument():
    parameters = {name for of in FUNCTIONS for name in inspect.signature(MEMBERS[of]).parameters}
    known = parameters | {"symmetric", "asymmetric", "list"}
    foreign = {"merge", "no_deps", "model", "its_name", "no", "json"}
    foreign |= {"help", "verbose"}  # none of a message's own
    foreign |= {"extra", "inexact", "python"}  # of uv
    found = {}
    for path, text in messages():
        for option in re.findall(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)", text):
            found.setdefault(option.replace("-", "_"), path)
    assert found
    assert set(found) - known - foreign == set(), found
