"""Who may import whom, how long files and functions may be, how they read: from syntax trees.

ALLOWED is the table of rooms. An import inside of a function counts as one at the top.
"""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from edgeq.registry import FORMATS, find_format

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "edgeq": ROOT,
    "edgeq_backends": ROOT / "backends",
    "edgeq_exporters": ROOT / "exporters",
}
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
GROUND = (
    "errors",
    "types",
    "dtypes",
    "runtime_names",
    "decoder",
    "protocols",
    "format_parts",
    "stopwatch",
    "words",
    "version",
)
MOST_GROUND = 11  # modules directly in edgeq/, beside the package's own two

ALLOWED = {
    "ground": "",
    "registry": "ground",
    "files": "ground",
    "architectures": "ground registry",
    "sources": "ground files architectures",
    "grids": "ground",
    "calibration": "ground files architectures sources",
    "streams": "ground files",
    "algorithms": "ground grids",
    "checkpoint": "ground files architectures sources grids",
    "recipe": "ground files grids algorithms",
    "solving": "ground grids algorithms recipe",
    "measuring": "ground registry files sources grids calibration checkpoint recipe",
    "planning": "ground architectures calibration streams algorithms checkpoint recipe solving"
    " tuning",
    "tuning": "ground files streams checkpoint",
    "run": "ground registry files sources grids calibration streams algorithms checkpoint recipe"
    " solving"
    " planning measuring tuning",
    "talking": "ground registry files architectures sources calibration checkpoint measuring",
    "pages": "ground registry files checkpoint recipe solving measuring run",
    "api": "ground registry files sources checkpoint recipe solving planning measuring run talking"
    " pages",
    "commands": "ground registry files sources checkpoint recipe solving planning measuring run"
    " talking pages api",
    "edgeq": "ground api",
    "__main__": "commands",
    "backends": "ground grids algorithms architectures streams sources",
    "backends/*": "backends ground grids algorithms architectures streams sources tuning",
    "exporters": "ground files grids architectures checkpoint",
    "exporters/common": "exporters ground files grids architectures checkpoint",
    "exporters/*": "exporters exporters/common ground files grids architectures checkpoint",
}
"""Which rooms a room may import, beside itself; * stands for a folder without a row of its own."""


def module_name(path, package):
    parts = path.relative_to(PACKAGES[package]).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = [
    (path, package) for package in PACKAGES for path in (PACKAGES[package] / package).rglob("*.py")
]
MODULES = {module_name(path, package): path for path, package in sorted(FILES)}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def room_of(module):
    """The room of a module of this project."""
    package, *parts = module.split(".")
    if package == "edgeq":
        first = parts[0] if parts else "edgeq"
        return "ground" if first in GROUND else first
    folder = package.removeprefix("edgeq_")
    is_folder = parts and (PACKAGES[package] / package / parts[0]).is_dir()
    return f"{folder}/{parts[0]}" if is_folder else folder


def is_type_checking(node):
    return isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING"


def imports_in(tree, *, at_start=False):
    """Modules that a syntax tree imports, in functions too, or only those that its start runs."""
    found, stack = set(), list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {member for member in members if member in MODULES} or {node.module}
        elif not (at_start and (is_type_checking(node) or isinstance(node, ast.FunctionDef))):
            stack += ast.iter_child_nodes(node)
    return found


def imports_of(name, *, at_start=False):
    return imports_in(TREES[name], at_start=at_start)


def top(module):
    return module.split(".")[0]


def in_package(package):
    return [name for name in MODULES if top(name) == package]


def row_of(room):
    """The row of the table that a room goes by."""
    folder, slash, _ = room.partition("/")
    return room if room in ALLOWED or not slash else f"{folder}/*"


def forbidden(room, imported):
    """The imports of a room that the table does not allow it."""
    allowed = {room, *ALLOWED[row_of(room)].split()}
    own = [module for module in imported if top(module) in PACKAGES]
    return sorted(module for module in own if room_of(module) not in allowed)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_room_and_imports_what_the_table_allows_it(name):
    assert row_of(room_of(name)) in ALLOWED, f"{name} has no room"
    assert forbidden(room_of(name), imports_of(name)) == []


def test_the_table_has_no_circle():
    graph = {room: set(ALLOWED[room].split()) for room in ALLOWED}
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == set(ALLOWED)


def test_a_forbidden_import_is_found_wherever_it_stands():
    nested = "def f():\n    if True:\n        from edgeq.run.pipeline import quantize\n"
    assert forbidden("algorithms", imports_in(ast.parse(nested))) == ["edgeq.run.pipeline"]
    assert forbidden("backends", {"edgeq_exporters.common.manifest"}) != []
    assert row_of(room_of("edgeq.somewhere.new")) not in ALLOWED
    assert row_of(room_of("edgeq.loose")) not in ALLOWED
    assert row_of("exporters/newest") in ALLOWED
    assert forbidden("exporters/newest", {"edgeq_exporters.gguf.blocks"}) != []


def test_few_modules_lie_directly_in_the_package():
    beside = {path.stem for path in (ROOT / "edgeq").glob("*.py")} - {"__init__", "__main__"}
    assert beside == {*GROUND, "registry"}
    assert len(beside) <= MOST_GROUND


@pytest.mark.parametrize("name", in_package("edgeq"))
def test_the_core_imports_no_framework(name):
    imported = {top(module) for module in imports_of(name)}
    assert not imported & FRAMEWORKS
    if not name.startswith(("edgeq.sources", "edgeq.files.gguf_reader")):
        assert "gguf" not in imported


def test_bare_names_of_source_roots_are_never_imported():
    for name in MODULES:
        imported = {top(module) for module in imports_of(name)}
        assert not {"backends", "exporters", "tests"} & imported, name


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        name: {module for module in imports_of(name, at_start=True) if module in MODULES}
        for name in MODULES
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def strings_of(name):
    nodes = (node for node in ast.walk(TREES[name]) if isinstance(node, ast.Constant))
    return [node.value for node in nodes if isinstance(node.value, str)]


def test_only_the_registry_knows_backends_and_exporters_and_only_as_strings():
    for name in in_package("edgeq"):
        packages = ("edgeq_backends", "edgeq_exporters")
        named = [text for text in strings_of(name) if text.startswith(packages)]
        assert bool(named) == (name == "edgeq.registry"), name


READERS = [name for name in in_package("edgeq_exporters") if ".read" in name]
SHARED_BY_READERS = {
    "edgeq_exporters.common.manifest",  # what an export says of itself
    "edgeq_exporters.common.read_safetensors",
    "edgeq_exporters.common.read_words",
    "edgeq_exporters.gguf.read_super_blocks",  # a part of its reader
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_shares_no_knowledge_of_its_format_with_the_writer(name):
    """Otherwise a mistake of the writer undoes itself, and `edgeq verify` finds nothing."""
    own = {module for module in imports_of(name) if top(module) in PACKAGES}
    exporters = {module for module in own if top(module) == "edgeq_exporters"}
    assert exporters <= SHARED_BY_READERS
    assert {room_of(module) for module in own - exporters} <= {"ground", "files"}


def test_the_reader_of_every_format_is_among_them():
    readers = {find_format(name).reader.partition(":")[0] for name in FORMATS}
    assert readers | SHARED_BY_READERS == {*READERS, "edgeq_exporters.common.manifest"}


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_stay_short(name):
    limit = 200 if name.startswith("edgeq.algorithms") else 400
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= limit
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, f"{name}.{node.name}"


def nested_conditionals(tree):
    """Lines of the conditional expressions that stand inside of another."""
    conditionals = [node for node in ast.walk(tree) if isinstance(node, ast.IfExp)]
    inner = [node for outer in conditionals for node in ast.walk(outer) if node is not outer]
    return sorted({node.lineno for node in inner if isinstance(node, ast.IfExp)})


def first_lines(tree):
    """Name of every function and class with a docstring, and its first line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield node.name, text.partition("\n")[0]


@pytest.mark.parametrize("name", MODULES)
def test_no_conditional_expression_stands_inside_of_another(name):
    assert nested_conditionals(TREES[name]) == []


def test_a_nested_conditional_expression_is_found_wherever_it_stands():
    assert nested_conditionals(ast.parse("x = a if b else c")) == []
    assert nested_conditionals(ast.parse("x = a if b else c if d else e")) == [1]
    assert nested_conditionals(ast.parse("x = f([\n1 if a else 2]) if b else c")) == [2]


@pytest.mark.parametrize("name", MODULES)
def test_the_first_line_of_a_docstring_is_a_whole_sentence(name):
    torn = [of for of, line in first_lines(TREES[name]) if not line.endswith(".")]
    assert torn == []


def test_a_sentence_that_goes_on_in_a_second_line_is_found():
    whole = 'def f():\n    """Do it.\n\n    More.\n    """\n'
    torn = 'class C:\n    def g(self):\n        """Do it\n        now."""\n'
    assert dict(first_lines(ast.parse(whole + torn))) == {"f": "Do it.", "g": "Do it"}


@pytest.mark.parametrize(
    "statement",
    [
        "import edgeq",
        "import edgeq.commands.main",
        "sys.argv = ['edgeq', '--help']; edgeq.commands.main.main()",
    ],
)
def test_starting_up_loads_no_framework_and_not_even_numpy(statement):
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
    slow = {"numpy", "rich", "gguf", "edgeq_backends", "edgeq_exporters"}
    assert not loaded & (FRAMEWORKS | slow)
    if "--help" in statement:
        assert "Usage" in run.stdout
