"""Commands that edgeq prints begin as the user started edgeq, so that they can be pasted.

`edgeq ...` where that was typed and the shell finds it; else the path of the script that was typed
(`.venv/bin/edgeq`), `python -m edgeq`, or what stands before the arguments of uv (`uv run edgeq`,
`uv run --extra cpu edgeq`, `uvx edgeq`). What embeds edgeq and starts its `main` by itself is none
of these: there it is `edgeq`.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath

from edgeq.words import BY_UV_RUN, edgeq_command, shell_line

PROGRAM = "edgeq"
BY_UV = "UV"
"""The variable that uv sets for what it starts."""

__all__ = ["command_words", "program_words", "shell_line"]


def command_words(*words: object) -> str:
    """Write a command of edgeq as the user would type it, quoted for the shell."""
    return edgeq_command(*words)


def program_words() -> list[str]:
    """Say which words started edgeq, without its arguments."""
    if not _is_typed_name() and not _is_module():
        return [PROGRAM]
    return _words_of_uv() or (_words_of_python() if _is_module() else _words_of_script())


def _is_typed_name() -> bool:
    return PurePath(sys.argv[0]).stem == PROGRAM


def _is_module() -> bool:
    """Say whether edgeq was started as `python -m edgeq`."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == f"{PROGRAM}.__main__"


def _words_of_script() -> list[str]:
    """Give the name where the shell finds this very script by it, else the path that was typed."""
    typed = sys.argv[0]
    if not os.path.dirname(typed):
        return [typed]
    found = shutil.which(PROGRAM)
    # Windows starts edgeq.exe, and says edgeq
    same = found is not None and Path(found).with_suffix("") == Path(typed).with_suffix("")
    return [PROGRAM] if same else [typed]


def _words_of_python() -> list[str]:
    """Give the interpreter as it was typed, its options, and -m edgeq."""
    return _before_arguments(sys.orig_argv) or [sys.executable, "-m", PROGRAM]


def _words_of_uv() -> list[str]:
    """Give what uv was started with before the arguments of edgeq; empty without uv.

    A shell inside of `uv run` may have started edgeq: then `uv run edgeq` does the same.
    """
    if BY_UV not in os.environ:
        return []
    words = _before_arguments(_words_of_parent())
    if words and PurePath(words[0]).stem in ("uv", "uvx"):
        name = PurePath(words[0]).stem
        # shims of version managers put a path here that nobody typed
        return [name if shutil.which(name) else words[0], *words[1:]]
    if BY_UV_RUN not in os.environ:
        return []
    return ["uv", "run", *(["python", "-m"] if _is_module() else []), PROGRAM]


def _before_arguments(words: Sequence[str]) -> list[str]:
    """Cut the arguments of edgeq off a command line; empty where it does not end in them."""
    rest = sys.argv[1:]
    end = len(words) - len(rest)
    return list(words[:end]) if list(words[max(end, 0) :]) == rest else []


def _words_of_parent() -> list[str]:
    """Read the command line of the process that started this one; empty where no file has it."""
    try:
        text = os.fsdecode(Path(f"/proc/{os.getppid()}/cmdline").read_bytes())
    except OSError:
        return []
    return text.split("\0")[:-1]
