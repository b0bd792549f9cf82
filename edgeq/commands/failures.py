"""What the command line says, and the status it ends with, when something stops it."""

import os
import re
import traceback

import click

from edgeq.commands.plain_text import visible, visible_line
from edgeq.commands.signals import Stopped
from edgeq.commands.usage import describe_usage
from edgeq.errors import EdgeqError, reason_of

TRACEBACK_VARIABLE = "EDGEQ_TRACEBACK"
INTERRUPTED = 130  # as shells say it of Ctrl-C: 128 + SIGINT
# What torch and MLX say of it: mere RuntimeErrors.
NO_MEMORY = re.compile(r"out of memory|can't allocate|unable to allocate", re.IGNORECASE)
OWN_MEMORY = re.compile(r"\b(CUDA|HIP)\b")
LOST_DEVICE = re.compile(
    r"\b(CUDA|cuDNN|cuBLAS|HIP|MPS|Metal)\b.*(error|fail|lost|unavailable)", re.IGNORECASE
)


def report_failure(error: BaseException) -> int:
    """Print one line on standard error; return the exit status."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):  # the help of the whole command line
        error.show()
        return error.exit_code
    if isinstance(error, click.ClickException):
        line = error.format_message()
        if isinstance(error, click.UsageError):
            line = describe_usage(error)
        click.echo(visible_line(f"edgeq: {line}"), err=True)
        return error.exit_code
    if os.environ.get(TRACEBACK_VARIABLE):
        click.echo(visible("".join(traceback.format_exception(error))), err=True)
    lines = [describe(error), *getattr(error, "__notes__", ())]
    click.echo(visible(f"edgeq: {' '.join('; '.join(lines).split())}"), err=True)
    if isinstance(error, Stopped):
        return error.status
    return INTERRUPTED if isinstance(error, click.Abort | KeyboardInterrupt) else 1


def describe(error: BaseException) -> str:
    """Describe an exception in the words of a user."""
    if isinstance(error, EdgeqError):
        return str(error)
    if isinstance(error, Stopped | click.Abort | KeyboardInterrupt):
        return "stopped"
    if isinstance(error, OSError):
        what = f"{error.filename!r}" if error.filename else "a file or connection"
        return (
            f"{what} cannot be read or written ({reason_of(error)}); "
            "check the path, its permissions and the disk"
        )
    first_line = str(error).strip().partition("\n")[0]
    of_framework = isinstance(error, RuntimeError)
    if isinstance(error, MemoryError) or (of_framework and NO_MEMORY.search(str(error))):
        advice = "close other programs or use another --backend"
        if OWN_MEMORY.search(first_line):
            advice = "close other programs there, or give less of it with --max-vram"
        return f"memory ran out ({first_line or 'no more is said'}); {advice}"
    if of_framework and LOST_DEVICE.search(first_line):
        return f"the device failed ({first_line}); try again or use another --backend"
    advice = f"please report it, with {TRACEBACK_VARIABLE}=1 set for details"
    return f"unexpected {type(error).__name__}: {first_line}; {advice}"
