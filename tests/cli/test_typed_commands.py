"""Commands that edgeq prints can be pasted: they begin as it was started, in real processes."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeq.commands import typed
from edgeq.words import edgeq_command, print_commands_with

ROOT = Path(__file__).parent.parent.parent
SOURCES = os.pathsep.join(map(str, (ROOT, ROOT / "backends", ROOT / "exporters")))
SHOW = "from edgeq.commands.typed import program_words; print(*program_words(), sep='\\n')"
SCRIPT = f"#!{sys.executable}\n{SHOW}\n"
MODULE = f"# edgeq as a module, which only says how it was started\n{SHOW}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a console script edgeq, and with a package whose module is run by -m."""
    folder = tmp_path_factory.mktemp("started")
    script = folder / "bin" / "edgeq"
    script.parent.mkdir()
    script.write_text(SCRIPT, encoding="utf-8")
    script.chmod(0o755)
    package = folder / "edgeq"
    shutil.copytree(ROOT / "edgeq" / "commands", package / "commands")
    for name in ("__init__.py", "words.py", "errors.py", "version.py"):
        shutil.copy(ROOT / "edgeq" / name, package)
    (package / "__main__.py").write_text(MODULE, encoding="utf-8")
    return folder


def started(words, folder, **environment):
    """The words that edgeq says it was started with, by a real process."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("UV")}
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), kept["PATH"]])
    run = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env={**kept, "PATH": path, "PYTHONPATH": SOURCES, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def by_shell(line, folder, **environment):
    return started(["bash", "-c", f"{line}; true"], folder, **environment)


def test_the_name_alone_was_typed(place):
    assert by_shell("edgeq quantize demo", place) == ["edgeq"]


def test_a_path_was_typed_that_the_shell_does_not_find_by_name(place):
    elsewhere = "/usr/bin:/bin"
    assert by_shell("bin/edgeq plan demo", place, PATH=elsewhere) == ["bin/edgeq"]
    other = place / "other place" / "edgeq"
    other.parent.mkdir(exist_ok=True)
    shutil.copy(place / "bin" / "edgeq", other)
    assert by_shell("'other place/edgeq' plan demo", place) == ["other place/edgeq"]


def test_a_module_was_started_with_options_of_python(place):
    assert by_shell("python -m edgeq plan demo", place) == ["python", "-m", "edgeq"]
    words = [sys.executable, "-X", "utf8", "-m", "edgeq"]
    assert started([*words, "--help"], place, PYTHONPATH=str(place)) == words


UV = pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
# the interpreter below this environment, whose own edgeq would be found before that of the test
INTERPRETER = str(Path(sys.base_prefix, "bin", "python3"))
UV_RUN = ["uv", "run", "--no-project", "--offline", "--python", INTERPRETER]


@UV
@pytest.mark.parametrize("start", [["edgeq"], ["python", "-m", "edgeq"]], ids=["script", "module"])
def test_uv_run_was_typed_with_its_own_options(place, start):
    words = [*UV_RUN, *start]
    assert started([*words, "quantize", "my model"], place, PYTHONPATH=str(place)) == words


@UV
def test_a_shell_inside_of_uv_run_started_it(place):
    inside = [*UV_RUN, "bash", "-c", "edgeq quantize demo; true"]
    assert started(inside, place) == ["uv", "run", "edgeq"]


def test_a_program_that_embeds_edgeq_is_not_named(place):
    assert started([sys.executable, "-c", SHOW, "quantize"], place) == ["edgeq"]


def test_messages_of_every_room_begin_as_the_command_line_was_started():
    before = edgeq_command()
    try:
        print_commands_with(["uv", "run", "edgeq"])
        assert typed.command_words("plan", Path("a b")) == "uv run edgeq plan 'a b'"
        assert edgeq_command("export", "--list") == "uv run edgeq export --list"
    finally:
        print_commands_with(shlex.split(before))


def test_windows_has_its_own_quotes(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert typed.command_words("plan", r"C:\my models\a") == r'edgeq plan "C:\my models\a"'
