"""`edgeq doctor`: what works on this machine, and which command brings what does not.

Heavy imports stand inside of the command.
"""

import os
import platform
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeq.commands.options import JSON_OPTION
from edgeq.version import __version__
from edgeq.words import install_command

if TYPE_CHECKING:
    from rich.console import Console


@click.command(name="doctor", short_help="Show which backends and runtimes work here.")
@JSON_OPTION
def doctor_command(as_json: bool) -> None:
    """Show which backends and runtimes work here, and the command that brings each other one.

    Each is tried by a small computation, in a process of its own.

    \b
    Example:
      edgeq doctor
    """
    from edgeq.commands.screen import print_result  # noqa: PLC0415

    print_result(examine(), as_json, show_examination)


def examine() -> dict[str, Any]:
    """Gather facts of this machine and installation, and try everything.

    Units: bytes; None where the system does not say.
    """
    from edgeq.commands.trials import try_all  # noqa: PLC0415

    total, free = memory_bytes()
    rows = try_all()
    for row in rows:
        row["command"] = install_command(row["extra"]) if row["missing"] else None
    return {
        "edgeq": __version__,
        "python": {"version": platform.python_version(), "path": sys.executable},
        "system": f"{platform.system()} {platform.machine()}",
        "cores": usable_cores(),
        "memory": {"total": total, "available": free},
        "disk": {"path": str(Path.cwd()), "free": shutil.disk_usage(Path.cwd()).free},
        "trials": rows,
    }


def show_examination(console: "Console", found: Mapping[str, Any]) -> None:
    """Print a line of each fact and each trial."""
    from edgeq.commands.screen import print_line  # noqa: PLC0415
    from edgeq.words import show_size  # noqa: PLC0415

    python, memory, disk = found["python"], found["memory"], found["disk"]
    rows = [
        ("edgeq", found["edgeq"], ""),
        ("Python", python["version"], python["path"]),
        ("system", found["system"], f"{found['cores']} cores"),
        ("disk", f"{show_size(disk['free'])} free", disk["path"]),
    ]
    if memory["total"] is not None:
        free = f"{show_size(memory['available'])} free" if memory["available"] else ""
        rows.append(("memory", show_size(memory["total"]), free))
    rows += [(f"{row['kind']} {row['name']}", *verdict_words(row)) for row in found["trials"]]
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(2)]
    for name, state, more in rows:  # lines, not a table: commands must not be broken
        line = f"{name:{widths[0]}}{state:{widths[1]}}{more}"
        print_line(console, line.rstrip())


def verdict_words(row: Mapping[str, Any]) -> tuple[str, str]:
    """Say in two cells whether something works, and its versions or what is to be done."""
    if row["works"]:
        return "works", ", ".join(f"{name} {number}" for name, number in row["versions"].items())
    if row["command"] is not None:
        return "missing", f"{row['problem']}; to install it: {row['command']}"
    return "no", row["problem"]


def usable_cores() -> int | None:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def memory_bytes() -> tuple[int | None, int | None]:
    """Read the memory of this machine, and how much of it is free; None where nothing says it."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            rows = dict(line.split(":") for line in file)
        return tuple(int(rows[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))  # type: ignore[return-value]
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None, None
