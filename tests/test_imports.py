"""Who may import whom, and how long files and functions may be: read from the syntax trees."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {"edgeq": ROOT, "edgeq_backends": ROOT / "backends", "edgeq_exporters": ROOT / "exporters"}
FRAMEWORKS = {
    "torch",
    "mlx",
    "mlx_lm",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "transformers",
    "accelerate",
    "cyllama",
}


def module_name(path, room):
    parts = path.relative_to(ROOMS[room]).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files_of(room):
    return sorted((ROOMS[room] / room).rglob("*.py"))


MODULES = {module_name(path, room): path for room in ROOMS for path in files_of(room)}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def is_type_checking(node):
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def imports_of(name, *, at_start=False):
    """Modules that a module imports, inside of functions too, or only those that its own import
    runs.
    """
    found, stack = set(), list(TREES[name].body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {member for member in members if member in MODULES} or {node.module}
        elif not (at_start and (is_type_checking(node) or isinstance(node, ast.FunctionDef))):
            stack += ast.iter_child_nodes(node)
    return found


def top(module):
    return module.split(".")[0]


def in_room(room):
    return [name for name in MODULES if top(name) == room]


@pytest.mark.parametrize("name", in_room("edgeq"))
def test_the_core_imports_no_framework_and_no_room(name):
    imported = imports_of(name)
    assert not {
        module
        for module in imported
        if top(module) in FRAMEWORKS | {"edgeq_backends", "edgeq_exporters"}
    }
    if not name.startswith("edgeq.sources"):
        assert "gguf" not in {top(module) for module in imported}


@pytest.mark.parametrize("room", ["edgeq_backends", "edgeq_exporters"])
def test_rooms_import_the_core_and_never_each_other(room):
    other = {"edgeq_backends", "edgeq_exporters"} - {room}
    assert in_room(room)
    for name in in_room(room):
        imported = imports_of(name)
        assert not {module for module in imported if top(module) in other}, name


def test_bare_names_of_source_roots_are_never_imported():
    for name in MODULES:
        assert not {"backends", "exporters", "tests"} & {
            top(module) for module in imports_of(name)
        }, name


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        name: {module for module in imports_of(name, at_start=True) if module in MODULES}
        for name in MODULES
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_only_the_registry_knows_rooms_and_only_as_strings():
    for name in in_room("edgeq"):
        strings = [
            n.value
            for n in ast.walk(TREES[name])
            if isinstance(n, ast.Constant) and isinstance(n.value, str)
        ]
        named = [text for text in strings if text.startswith(("edgeq_backends", "edgeq_exporters"))]
        assert bool(named) == (name == "edgeq.registry"), name


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_stay_short(name):
    limit = 200 if name.startswith("edgeq.algorithms") else 400
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= limit
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, f"{name}.{node.name}"


@pytest.mark.parametrize(
    "statement",
    [
        "import edgeq",
        "import edgeq.commands.main",
        "sys.argv = ['edgeq', '--help']; edgeq.commands.main.main()",
    ],
)
def test_starting_up_loads_no_framework(statement):
    """In a fresh interpreter, which then says what is loaded."""
    code = f"""
import atexit, sys
atexit.register(lambda: print("LOADED", *sorted({{name.split(".")[0] for name in sys.modules}})))
import edgeq
{"import edgeq.commands.main" if "main" in statement else ""}
{statement}
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    loaded = set(run.stdout.rsplit("LOADED", 1)[1].split())
    assert "edgeq" in loaded
    assert not loaded & (FRAMEWORKS | {"gguf", "edgeq_backends", "edgeq_exporters"})
    if "--help" in statement:
        assert "Usage" in run.stdout
