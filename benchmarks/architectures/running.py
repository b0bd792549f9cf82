"""Run one step of a row in a process of its own: a crash or a hang is then one cell of the table.

The process is forked, so it has the slow imports already.
"""

import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LONGEST = 300  # seconds of one step
CRASHED, TOO_LONG = 70, 124  # exit statuses of steps that raise, and that are stopped
WRITTEN_BY_LIBRARIES = ("it/s]", "%|")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step came to: its exit status, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Give the line of an error: edgeq's own, else the last one."""
        lines = [line.strip() for line in self.err.splitlines()]
        kept = [line for line in lines if line and not any(x in line for x in WRITTEN_BY_LIBRARIES)]
        own = [line for line in kept if line.startswith("edgeq:")]
        return (own or kept or [""])[-1]

    @property
    def kind(self) -> str:
        """Say "ok", "refused" (status 1 and one line of edgeq's own) or "crash"."""
        if self.status == 0:
            return "ok"
        odd = "Traceback" in self.err or "unforeseen" in self.said or "not foreseen" in self.said
        refused = self.status == 1 and self.said.startswith("edgeq:") and not odd
        return "refused" if refused else "crash"


def run_step(step: Callable[..., None], *arguments: object) -> Outcome:
    """Run a function in a forked process, with what it prints caught."""
    with tempfile.TemporaryDirectory(prefix="edgeq-matrix-") as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_child, args=(step, arguments, out, err))
        process.start()
        process.join(LONGEST)
        status = process.exitcode
        if status is None:
            process.kill()
            process.join()
            status = TOO_LONG
        texts = [path.read_text(errors="replace") if path.exists() else "" for path in (out, err)]
    return Outcome(status, *texts)


def run_edgeq(*words: object) -> Outcome:
    """Run a command as a user types it."""
    return run_step(_command, words)


def _command(words: tuple[object, ...]) -> None:
    from edgeq.commands.main import main  # noqa: PLC0415

    sys.argv = ["edgeq", *map(str, words)]
    main()


def _child(step: Callable[..., None], arguments: tuple[object, ...], out: Path, err: Path) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    status = CRASHED
    try:
        step(*arguments)
        status = 0
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
