"""Shells complete the words of edgeq: each real shell reads the script that edgeq prints."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCES = os.pathsep.join(map(str, (ROOT, ROOT / "backends", ROOT / "exporters")))
SCRIPT = f"#!{sys.executable}\nfrom edgeq.commands.main import main\nmain()\n"
BASH = """
source ./edgeq.bash
COMP_WORDS=({words}) COMP_CWORD={index}
_edgeq_completion edgeq 2>/dev/null
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
ZSH = """
compdef() {{ }}
source ./edgeq.zsh
_describe() {{ print -l -- ${{(P)3%%:*}} }}
compadd() {{ print -l -- "${{(@P)argv[-1]}}" }}
words=({words}) CURRENT={current}
_edgeq_completion
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a command edgeq, its scripts for shells, a checkpoint and other things."""
    folder = tmp_path_factory.mktemp("completion")
    command = folder / "bin" / "edgeq"
    command.parent.mkdir()
    command.write_text(SCRIPT, encoding="utf-8")
    command.chmod(0o755)
    for name in ("small-4bit", "small-text"):
        (folder / name).mkdir()
    (folder / "small-4bit" / "edgeq.json").write_text("{}", encoding="utf-8")
    for shell in ("bash", "zsh", "fish"):
        text = run(folder, ["edgeq", "completion", shell])
        (folder / f"edgeq.{shell}").write_text(text, encoding="utf-8")
    return folder


def run(folder, words):
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": SOURCES, "HOME": str(folder)}
    result = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def completed(shell, folder, line):
    """What a shell offers for the last word of a line."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    words = line.split(" ")
    if shell == "fish":
        out = run(folder, ["fish", "-c", f"source edgeq.fish; complete -C '{line}'"])
        return {row.partition("\t")[0] for row in out.splitlines()}
    quoted = " ".join(f"'{word}'" for word in words)
    if shell == "bash":
        script = BASH.format(words=quoted, index=len(words) - 1)
        return set(run(folder, ["bash", "--norc", "-c", script]).split())
    out = run(folder, ["zsh", "-f", "-c", ZSH.format(words=quoted, current=len(words))])
    return set(out.split())


SLOW = pytest.mark.slow  # a process of edgeq each
LINES = {
    "edgeq quan": {"quantize"},
    "edgeq quantize --file-s": {"--file-size"},
    "edgeq quantize demo --export gg": {"gguf"},
    "edgeq quantize demo --type q4_k": {"Q4_K", "Q4_K_S", "Q4_K_M"},
    "edgeq quantize demo --quality b": {"balanced", "best"},
    "edgeq quantize demo --backend c": {"cuda", "cpu"},
    "edgeq evaluate demo --runtime ll": {"llama.cpp"},
    "edgeq export small": {"small-4bit"},
}


IN_DEFAULT = ("edgeq quantize demo --type q4_k", "edgeq export small")
BASH_LINES = [line if line in IN_DEFAULT else pytest.param(line, marks=SLOW) for line in LINES]


@pytest.mark.parametrize("line", BASH_LINES)
def test_bash_completes(place, line):
    assert completed("bash", place, line) == LINES[line]


@SLOW
@pytest.mark.parametrize("line", ["edgeq quan", "edgeq quantize demo --type q4_k"])
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_complete(place, shell, line):
    assert completed(shell, place, line) == LINES[line]


def test_models_are_files_or_the_demo(place):
    assert completed("bash", place, "edgeq quantize de") == {"demo"}


def test_a_shell_that_is_not_known_is_refused_with_those_that_are(edgeq, monkeypatch):
    monkeypatch.delenv("SHELL", raising=False)
    for words in ([], ["tcsh"]):
        result = edgeq("completion", *words)
        assert (result.status, result.out) == (2, "")
        assert "give one of bash, zsh, fish" in result.err
    monkeypatch.setenv("SHELL", "/bin/bash")
    assert "_EDGEQ_COMPLETE=bash_complete" in edgeq("completion").out
