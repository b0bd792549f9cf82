"""`edgeq ARGUMENTS` as a user types it, in this process: a process of its own takes seconds to
import frameworks.
"""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import pytest

from edgeq.commands import progress
from edgeq.commands.main import main


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


def run_edgeq(*arguments: object) -> Result:
    """Run a command; gives its status, standard output and standard error.

    What it prints does not depend on the terminal and the time that the tests run in, nor on uv.
    """
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["edgeq", *map(str, arguments)])
        patched.setenv("COLUMNS", "80")
        patched.setattr(progress, "PATIENCE", 1e6)  # no line because the machine is busy
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "UV"):
            patched.delenv(name, raising=False)
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stopped:
            main()
    return Result(int(stopped.value.code or 0), out.getvalue(), err.getvalue())


def finished(*arguments: object) -> Result:
    """Run a command that must succeed, such as one whose output many tests read."""
    result = run_edgeq(*arguments)
    assert result.status == 0, result.err
    return result
